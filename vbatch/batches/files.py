"""Files of programs: taken in whole or not at all, listed, read, removed. On the disk each is named by its id alone.

No name of a request, and no path of a row, is ever opened: a place is made of an id that fits the pattern below.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from vbatch.batches.rendered import Rendered
from vbatch.errors import NoSuchBatch, VbatchError, WrongStatus
from vbatch.store import Store, catalog, files, served
from vbatch.store.files import StoredFile
from vbatch.store.records import Batch
from vbatch.system import processes
from vbatch.system.files import abandoned, atomic_file, remove_unless_locked, sync

BATCH, OUTPUT = "batch", "batch_output"
_ID = re.compile(r"file-(?:(output|errors)-)?[0-9a-f]{24}")
UNKNOWN = "unknown"  # below the server's files: whole ones that its store does not know
_NAME = 255  # characters of a filename


class NoSuchFile(VbatchError):
    """No file has this id."""

    code = "no_such_file"


class _Abandoned(Exception):
    """The client went away, or sent too much: the file is not to be."""


def folder_of(data_dir: Path) -> Path:
    """Return the folder of the files, made for this account alone where it is missing."""
    folder = data_dir / "files"
    if not folder.is_dir():
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        folder.chmod(0o700)
        sync(folder.parent)
    return folder


def place(folder: Path, file_id: str) -> Path:
    """Return where the content of a file is. Raises NoSuchFile for what is no id."""
    if _ID.fullmatch(file_id) is None:
        raise NoSuchFile(f"there is no file {file_id!r}")
    return folder / file_id


def made_files(batch_id: str) -> tuple[str, str]:
    """Return the ids of a batch's output and error file."""
    suffix = batch_id.removeprefix("batch_")
    return f"file-output-{suffix}", f"file-errors-{suffix}"


class Incoming:
    """A file that is coming in. It appears under its id, durably, when it is kept; until then nothing is there."""

    def __init__(self, folder: Path) -> None:
        self.id = f"file-{secrets.token_hex(12)}"
        self.size = 0
        self._digest = hashlib.sha256()
        self._place = place(folder, self.id)
        self._stack = ExitStack()
        self._file = self._stack.enter_context(atomic_file(self._place, tag=self.id, mode=0o600))

    def write(self, data: bytes) -> None:
        """Add to it. Raises OSError when the disk refuses."""
        self._file.write(data)
        self._digest.update(data)
        self.size += len(data)

    def keep(
        self,
        store: Store,
        *,
        filename: str,
        purpose: str,
        expires_after: timedelta | None,
    ) -> StoredFile:
        """Bring it to the disk, then enter it into the store. Raises OSError when the disk refuses."""
        self._stack.close()
        now = datetime.now(UTC)
        file = StoredFile(
            id=self.id,
            filename=base_name(filename),
            purpose=purpose,
            bytes=self.size,
            sha256=self._digest.hexdigest(),
            created_at=now,
            expires_at=None if expires_after is None else now + expires_after,
            state="processed",
            host=processes.current().host,
        )
        try:
            files.add(store, file)
        except BaseException:
            self._place.unlink(missing_ok=True)
            raise
        return file

    def abandon(self) -> None:
        """Remove every trace of it."""
        with suppress(_Abandoned):
            self._stack.__exit__(_Abandoned, _Abandoned(), None)


def base_name(filename: str) -> str:
    """Return a client's name for a file as it is kept: without folders, never empty, of at most 255 characters."""
    name = filename.replace("\\", "/").rsplit("/", 1)[-1].replace("\0", "")
    return name.encode(errors="replace").decode()[-_NAME:] or "file"


def retrieve(store: Store, file_id: str) -> StoredFile:
    """Return a file: an uploaded one, one that the server made, or what a batch of the command line has written.

    Raises NoSuchFile.
    """
    if (found := _get(store, file_id)) is not None:
        return found
    made = _rendered(store, file_id)
    return StoredFile(
        id=file_id,
        filename=made.filename,
        purpose=OUTPUT,
        bytes=made.size(),
        sha256="",  # of no use: its content is final
        created_at=made.ended_at,
        expires_at=None,
        state="processed",
        host=None,
    )


def content(store: Store, folder: Path, file_id: str) -> tuple[StoredFile, Path] | Rendered:
    """Return where the content of a file is; of a batch of the command line, what it is made of.

    Raises NoSuchFile, also for a file on another host's disk.
    """
    found = _get(store, file_id)
    if found is None:
        return _rendered(store, file_id)
    where = place(folder, file_id)
    if found.host != processes.current().host or not where.is_file():
        raise NoSuchFile(f"the content of {file_id} is not on this machine, but on {found.host}")
    return found, where


def list_files(
    store: Store,
    *,
    limit: int,
    purpose: str | None = None,
    after: str | None = None,
    newest_first: bool = True,
) -> tuple[Sequence[StoredFile], bool]:
    """Return a page of files, and whether more follow. Raises NoSuchFile for an ``after`` that is not there."""
    last = None if after is None else _get(store, after)
    if after is not None and last is None:
        raise NoSuchFile(f"there is no file {after!r}")
    if purpose not in (None, BATCH, OUTPUT):
        return [], False
    found = files.page(store, limit=limit + 1, purpose=purpose, after=last, newest_first=newest_first)
    return found[:limit], len(found) > limit


def delete_file(store: Store, folder: Path, file_id: str) -> None:
    """Remove a file. Raises NoSuchFile; WrongStatus while a batch needs it, and for what is in the store."""
    where = place(folder, file_id)
    if files.get(store, file_id=file_id) is None:
        batch = _rendered(store, file_id).batch
        raise WrongStatus(f"the answers of {batch.id} are in the store; delete the batch to remove them")
    if (batch_id := served.needs(store, file_id=file_id)) is not None:
        raise WrongStatus(f"{batch_id}, which is not finished yet, needs this file")
    files.remove(store, file_id=file_id)
    where.unlink(missing_ok=True)


def expire_files(store: Store, folder: Path) -> int:
    """Remove the files whose time has passed, but for those that an unfinished batch needs; return how many."""
    removed = 0
    for file in files.expired(store, now=datetime.now(UTC), host=processes.current().host):
        if served.needs(store, file_id=file.id) is None:
            files.remove(store, file_id=file.id)
            place(folder, file.id).unlink(missing_ok=True)
            removed += 1
    return removed


def sweep(store: Store, folder: Path) -> tuple[int, int]:
    """Tidy up after a server that was killed; return how many files were removed and set aside. At the start only.

    Half files are removed. A whole file that no row names was being entered, or it is of another store (a wrong URL,
    an older backup): it is kept in the folder UNKNOWN, and is back in its place when a row names it.
    """
    known = files.known(store, host=processes.current().host)
    removed = sum(remove_unless_locked(path) for path in abandoned(folder))
    aside = folder / UNKNOWN
    if aside.is_dir():
        for path in [path for path in aside.iterdir() if path.name in known]:
            path.replace(folder / path.name)
    left = [path for path in folder.iterdir() if _ID.fullmatch(path.name) and path.name not in known]
    for path in (strange := [path for path in left if not _belongs(store, path.name)]):
        aside.mkdir(mode=0o700, exist_ok=True)
        path.replace(aside / path.name)
    return removed, len(strange)


def _belongs(store: Store, file_id: str) -> bool:
    """Whether a file is one of a batch that is being finalized: its row comes after it."""
    with suppress(NoSuchBatch, NoSuchFile):
        batch, _errors = _batch_of(store, file_id)
        return not batch.status.final
    return False


def _get(store: Store, file_id: str) -> StoredFile | None:
    """Return a file by its id; whatever else a client calls an id is none."""
    return files.get(store, file_id=file_id) if _ID.fullmatch(file_id) is not None else None


def _rendered(store: Store, file_id: str) -> Rendered:
    """Return the ended batch of the command line that such a file is of. Raises NoSuchFile."""
    try:
        batch, errors = _batch_of(store, file_id)
    except NoSuchBatch:
        raise NoSuchFile(f"there is no file {file_id!r}") from None
    if batch.input_file is not None or not batch.status.final:
        raise NoSuchFile(f"there is no file {file_id!r}")
    return Rendered(store=store, batch=batch, errors=errors)


def _batch_of(store: Store, file_id: str) -> tuple[Batch, bool]:
    matched = _ID.fullmatch(file_id)
    if matched is None or matched[1] is None:
        raise NoSuchFile(f"there is no file {file_id!r}")
    batch = catalog.find(store, f"batch_{file_id.rpartition('-')[2]}")
    return batch, matched[1] == "errors"


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """How much the files of this host take, and how much room their disk has, in bytes."""

    files: int
    free: int
    total: int


def usage(store: Store, folder: Path) -> Usage:
    """Return how much room the files take and how much is left."""
    room = os.statvfs(folder)
    return Usage(
        files=files.total_bytes(store, host=processes.current().host),
        free=room.f_bavail * room.f_frsize,
        total=room.f_blocks * room.f_frsize,
    )


def add_made(
    store: Store, folder: Path, batch: Batch, file_id: str, *, expires_after: timedelta | None
) -> None:
    """Enter a file that the server has made for a batch, where it made one."""
    where = place(folder, file_id)
    if not where.is_file():
        return
    digest = hashlib.sha256()
    with where.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    now = datetime.now(UTC)
    kind = "errors" if "errors" in file_id else "output"
    files.add(
        store,
        StoredFile(
            id=file_id,
            filename=f"{batch.id}_{kind}.jsonl",
            purpose=OUTPUT,
            bytes=where.stat().st_size,
            sha256=digest.hexdigest(),
            created_at=now,
            expires_at=None if expires_after is None else now + expires_after,
            state="processed",
            host=processes.current().host,
        ),
    )
