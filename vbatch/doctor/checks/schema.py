"""What doctor says of a store with the tables of another version of vbatch."""

from __future__ import annotations

from vbatch.doctor.findings import Entry, Finding
from vbatch.errors import ExitCode
from vbatch.store import Store, overview
from vbatch.store.database import migrate

SCHEMA = Entry(
    id="store.schema",
    means="an older vbatch made the tables; the next command or worker migrates them, once no process of that "
    "version uses them",
)
SCHEMA_NEWER = Entry(
    id="store.schema_newer",
    means="a newer vbatch used this store, and this one would not understand what it reads",
    commands=("pip install --upgrade vbatch",),
)


def of_another_version(store: Store, revision: str) -> Finding:
    """Return what a revision that is not the current one means."""
    if revision not in migrate.REVISIONS:
        return SCHEMA_NEWER.fail(
            f"{store} was used by a newer vbatch (schema {revision}; this one supports {migrate.CURRENT})",
            exit_code=ExitCode.MISCONFIGURED,
        )
    if (in_use := overview.in_use_by_older(store)) is not None:
        hint = in_use.hint or ""
        command = "systemctl" in hint
        return SCHEMA.fail(
            in_use.message,
            why=f"no command of this version works before that process has ended{'' if command else f': {hint}'}",
            commands=(hint,) if command else (),
            passing=True,
            exit_code=ExitCode.STORE_UNREACHABLE,
        )
    return SCHEMA.info(f"{store} has the tables of an older vbatch")
