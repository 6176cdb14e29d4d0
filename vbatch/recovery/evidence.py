"""How vbatch recognises its own engine processes: by a random token in the title and the same token in a private file.

The store is not enough: anyone who can write to it could list any process as an engine. Before a load, the worker
writes a file named after the token into its state folder, which only its user can write; the titles of all processes
that the load starts contain the token (``VLLM_PROCESS_NAME_PREFIX``).
"""

from __future__ import annotations

import os
import re
import secrets
import stat
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec

from vbatch.system.processes import ProcessIdentity

FOLDER = "engines"  # in the state folder
_TITLE = re.compile(r"vbatch-([0-9a-f]{16})::")


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """The worker that loaded an engine, and the user (``uid``) who owns the file that records it."""

    worker: ProcessIdentity
    uid: int


def leave(state_dir: Path, *, worker: ProcessIdentity) -> str:
    """Record that this worker is about to load an engine; return the token for the titles of its processes."""
    token = secrets.token_hex(8)
    write(state_dir, token, worker=worker)
    return token


def write(state_dir: Path, token: str, *, worker: ProcessIdentity) -> None:
    """Write the file of a token. Raises FileExistsError if there is anything with its name."""
    folder = state_dir / FOLDER
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle = os.open(
        folder / token, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600
    )
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(msgspec.json.encode(worker))
    except OSError:  # the disk is full
        withdraw(state_dir, token)
        raise


def title_prefix(token: str) -> str:
    """Return the beginning of the titles of a load's processes; vLLM adds ``::`` and a name."""
    return f"vbatch-{token}"


def find(state_dir: Path, title: str) -> Evidence | None:
    """Return the evidence for a process with this title; None if there is none, or none that can be trusted.

    A file counts only if its owner alone can read or write it (0600), and if it is no link.
    """
    if (named := _TITLE.match(title)) is None:
        return None
    try:
        handle = os.open(
            state_dir / FOLDER / named[1], os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        )
    except OSError:
        return None
    try:
        status = os.fstat(handle)
        if stat.S_IMODE(status.st_mode) & 0o077:
            return None
        worker = msgspec.json.decode(os.read(handle, 4096), type=ProcessIdentity)
    except (OSError, msgspec.MsgspecError):
        return None
    finally:
        os.close(handle)
    return Evidence(worker=worker, uid=status.st_uid)


def tokens(state_dir: Path) -> dict[str, ProcessIdentity]:
    """Return the tokens that have a file, each with its worker."""
    with suppress(OSError):
        names = [path.name for path in (state_dir / FOLDER).iterdir()]
        found = {name: find(state_dir, f"{title_prefix(name)}::") for name in names}
        return {name: evidence.worker for name, evidence in found.items() if evidence is not None}
    return {}


def withdraw(state_dir: Path, token: str) -> None:
    """Remove the file of a token, when all processes of its load have ended."""
    with suppress(OSError):
        (state_dir / FOLDER / token).unlink()
