"""Checks of `vbatch serve`: whether it answers, who can read its key or use it without one, how full its folder is."""

from __future__ import annotations

import os
import pwd
import stat
from collections.abc import Iterator

from vbatch.batches import files, serving, upkeep
from vbatch.doctor.facts import Facts, NothingStored
from vbatch.doctor.findings import Check, Entry, Finding
from vbatch.errors import VbatchError
from vbatch.text import count, size

_FULL = 0.9  # of the quota
_NO_LOGIN = ("nologin", "false", "sync", "halt", "shutdown")
_FIRST_PERSON, _NOBODY = 1000, 65534  # user ids, as distributions give them

RUNNING = Entry(
    id="server.running",
    means="`vbatch serve` answers programs, validates their batches and writes their files; without it these wait",
    commands=("vbatch serve",),
)
KEY = Entry(
    id="server.key",
    means="whoever reads the key can read all prompts and answers; the server does not start with such a key file",
    commands=("chmod 600 {path}",),
)
SILENT = Entry(
    id="server.silent",
    means="a server holds the folder of the files, so that no other one can start, and does not answer: it is stopped "
    "or hangs, or has a network of its own, as in a container; a kill loses nothing",
    commands=("fuser -v {path}", "fuser -k {path}"),
)
OPEN = Entry(
    id="server.open",
    means="with --no-key every account of this machine can read all prompts and answers, and submit batches",
    commands=("vbatch serve   # without --no-key",),
)
QUOTA = Entry(
    id="server.quota",
    means="files of programs stay until they are deleted or expire; at the quota an upload is refused (507)",
    commands=("du -sh {path}", "vbatch delete --ended-before 30d"),
    advice="delete files (DELETE /v1/files/ID), or set expires_after in [serve]",
)


def _key(facts: Facts) -> Iterator[Finding]:
    """Look at the mode of the key file."""
    path = facts.settings.data_dir / "api-key"
    try:
        status = path.stat()
    except OSError:
        yield KEY.skip("there is no key file: vbatch serve was not started here")
        return
    if stat.S_IMODE(status.st_mode) & 0o077:
        yield KEY.warn(f"other users can read {path}", values={"path": path})
    else:
        yield KEY.ok("the key of the server is for this account alone")


def _running(facts: Facts) -> Iterator[Finding]:
    """Look whether a server runs, answers, and asks for a key."""
    found = serving.running(facts.settings.data_dir)
    if found is None:
        yield _not_running(facts)
        return
    status = serving.health(found)
    if status is None:
        lock = facts.settings.data_dir / "files" / serving.LOCK
        yield SILENT.warn(f"the server does not answer at {found.url}", values={"path": lock})
    elif status == "store_unreachable":
        yield RUNNING.warn(
            f"the server at {found.url} cannot reach the store",
            why="it answers 503 until then, and continues by itself",
            commands=("vbatch doctor store",),
        )
    else:
        yield RUNNING.ok(f"the server answers at {found.url}")
    others = [] if found.asks_for_key else _other_accounts()
    if found.asks_for_key:
        yield OPEN.ok("the server asks for a key")
    elif others:
        yield OPEN.warn(f"the server asks for no key, and others can log in here: {', '.join(others[:5])}")
    else:
        yield OPEN.ok("the server asks for no key; no other account can log in here")


def _not_running(facts: Facts) -> Finding:
    try:
        waiting = upkeep.waiting_for_server(facts.records)
    except (VbatchError, NothingStored):
        waiting = []
    if not waiting:
        return RUNNING.skip("no server runs here")
    return RUNNING.warn(
        f"no server runs here, and {count(len(waiting), 'batch')} of programs cannot continue"
    )


def _other_accounts() -> list[str]:
    """Return the accounts of other people: those that can log in."""
    return [
        account.pw_name
        for account in pwd.getpwall()
        if _FIRST_PERSON <= account.pw_uid < _NOBODY
        and account.pw_uid != os.geteuid()
        and not account.pw_shell.endswith(_NO_LOGIN)
    ]


def _quota(facts: Facts) -> Iterator[Finding]:
    """Look how much the files take."""
    folder = facts.settings.data_dir / "files"
    if not folder.is_dir():
        yield QUOTA.skip("there are no files of programs")
        return
    try:
        used = files.usage(facts.records, folder).files
    except (VbatchError, NothingStored):
        yield QUOTA.skip("the store cannot be read")
        return
    quota = facts.settings.serve.files_quota
    if quota is None:
        yield QUOTA.ok(f"the files of programs take {size(used)}; there is no quota")
    elif used > quota * _FULL:
        yield QUOTA.warn(f"the files of programs take {size(used)} of {size(quota)}", values={"path": folder})
    else:
        yield QUOTA.ok(f"the files of programs take {size(used)} of {size(quota)}")


CHECKS = (
    Check(name="server.key", finds=(KEY,), run=_key),
    Check(name="server.running", finds=(RUNNING, SILENT, OPEN), run=_running),
    Check(name="server.quota", finds=(QUOTA,), run=_quota),
)
