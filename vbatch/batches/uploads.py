"""Files that come in parts: on the disk alone, until they are whole; what is not completed goes after an hour.

An upload is a folder of its own with what was asked for in ``upload.json`` and a file for each part.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import shutil
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from pathlib import Path

from vbatch.batches.files import Incoming
from vbatch.errors import UsageError, VbatchError, WrongStatus
from vbatch.store import Store, files
from vbatch.store.files import StoredFile
from vbatch.system.files import atomic_file, locked, replace_text, sync

LIFE = timedelta(hours=1)
MOST_PARTS = 10_000
_ID = re.compile(r"upload_[0-9a-f]{24}")
_PART = re.compile(r"part_[0-9a-f]{24}")
_BLOCK = 1 << 20  # bytes
_LOCK = ".lock"


class NoSuchUpload(VbatchError):
    """No upload has this id."""

    code = "no_such_upload"


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """An upload. Times are Unix seconds; ``file_id`` and ``part_ids`` are there once it is completed."""

    id: str
    filename: str
    purpose: str
    mime_type: str
    bytes: int
    created_at: int
    expires_at: int
    expires_after: int | None
    status: str = "pending"
    file_id: str | None = None
    part_ids: Sequence[str] = ()


def begin(
    folder: Path, *, filename: str, purpose: str, mime_type: str, size: int, expires_after: int | None
) -> Upload:
    """Begin an upload."""
    now = int(time.time())
    upload = Upload(
        id=f"upload_{secrets.token_hex(12)}",
        filename=filename,
        purpose=purpose,
        mime_type=mime_type,
        bytes=size,
        created_at=now,
        expires_at=now + int(LIFE.total_seconds()),
        expires_after=expires_after,
    )
    place = folder / "uploads" / upload.id
    place.parent.mkdir(mode=0o700, exist_ok=True)
    place.mkdir(mode=0o700)
    _write(place, upload)
    return upload


def find(folder: Path, upload_id: str) -> Upload:
    """Return an upload as it is now. Raises NoSuchUpload."""
    upload = _read(_place(folder, upload_id))
    if upload.status == "pending" and upload.expires_at <= time.time():
        return replace(upload, status="expired")
    return upload


class Part:
    """A part that is coming in; it is there when it is kept, whole or not at all."""

    def __init__(self, folder: Path, upload_id: str) -> None:
        self._upload = pending(folder, upload_id)
        place = _place(folder, upload_id)
        self._place = place
        if sum(1 for _ in place.glob("part_*")) >= MOST_PARTS:
            raise UsageError(f"an upload takes at most {MOST_PARTS:,} parts")
        self.taken = sum(path.stat().st_size for path in place.glob("part_*"))
        self.most = self._upload.bytes
        self.id = f"part_{secrets.token_hex(12)}"
        self._context = atomic_file(place / self.id, tag=self.id, mode=0o600)
        self._file = self._context.__enter__()

    def write(self, data: bytes) -> None:
        """Add to it. Raises OSError when the disk refuses, UsageError for more than the upload is to have."""
        self.taken += len(data)
        if self.taken > self.most:
            raise UsageError(
                f"the parts have more than the {self.most:,} bytes that the upload was begun with"
            )
        self._file.write(data)

    def keep(self) -> None:
        """Bring it to the disk. Raises NoSuchUpload where the time of the upload has passed meanwhile."""
        try:
            self._context.__exit__(None, None, None)
        except FileNotFoundError:
            raise NoSuchUpload(f"there is no upload {self._upload.id!r}") from None

    def abandon(self) -> None:
        """Remove every trace of it."""
        with suppress(_Abandoned):
            self._context.__exit__(_Abandoned, _Abandoned(), None)


class _Abandoned(Exception):
    pass


def pending(folder: Path, upload_id: str) -> Upload:
    """Return an upload that takes parts. Raises NoSuchUpload, WrongStatus."""
    upload = find(folder, upload_id)
    if upload.status != "pending":
        raise WrongStatus(f"the upload is {upload.status}")
    return upload


def complete(
    store: Store, folder: Path, upload_id: str, part_ids: Sequence[str], md5: str | None
) -> tuple[Upload, StoredFile]:
    """Make the file of these parts, in this order. Asked again, as by a client that got no answer: the same file.

    Raises NoSuchUpload, WrongStatus, UsageError, OSError.
    """
    place = _place(folder, upload_id)
    find(folder, upload_id)
    with locked(place / _LOCK, wait=True):
        upload = find(folder, upload_id)
        again = upload.status == "completed" and list(upload.part_ids) == list(part_ids)
        if again and (file := files.get(store, file_id=upload.file_id or "")) is not None:
            return upload, file
        return _complete(store, folder, pending(folder, upload_id), part_ids, md5)


def _complete(
    store: Store, folder: Path, upload: Upload, part_ids: Sequence[str], md5: str | None
) -> tuple[Upload, StoredFile]:
    place = _place(folder, upload.id)
    paths = []
    for part_id in part_ids:
        if _PART.fullmatch(part_id) is None or not (place / part_id).is_file():
            raise UsageError(f"the upload has no part {part_id!r}")
        paths.append(place / part_id)
    size = sum(path.stat().st_size for path in paths)
    if len(set(paths)) != len(paths) or size != upload.bytes:
        raise UsageError(
            f"the parts have {size:,} bytes, and the upload was begun with {upload.bytes:,}; each part counts once"
        )
    incoming = Incoming(folder)
    try:
        digest = hashlib.md5(usedforsecurity=False)
        for path in paths:
            with path.open("rb") as stream:
                while block := stream.read(_BLOCK):
                    incoming.write(block)
                    digest.update(block)
        if md5 is not None and md5.lower() != digest.hexdigest():
            raise UsageError(f"the md5 of the parts is {digest.hexdigest()}, not {md5}")
        after = None if upload.expires_after is None else timedelta(seconds=upload.expires_after)
        file = incoming.keep(store, filename=upload.filename, purpose=upload.purpose, expires_after=after)
    except BaseException:
        incoming.abandon()
        raise
    done = replace(upload, status="completed", file_id=file.id, part_ids=list(part_ids))
    _write(place, done)
    _remove_parts(place)
    return done, file


def cancel(folder: Path, upload_id: str) -> Upload:
    """Cancel an upload; its parts go. Raises NoSuchUpload, WrongStatus."""
    place = _place(folder, upload_id)
    find(folder, upload_id)
    with locked(place / _LOCK, wait=True):
        done = replace(pending(folder, upload_id), status="cancelled")
        _write(place, done)
        _remove_parts(place)
    return done


def sweep(folder: Path) -> int:
    """Remove the uploads whose time has passed, but for those that are just being completed; return how many."""
    removed = 0
    for place in (folder / "uploads").glob("upload_*"):
        with suppress(FileNotFoundError, BlockingIOError):
            try:
                over = _read(place).expires_at <= time.time()
            except NoSuchUpload:  # cut off in its first moment, or not as this version writes it
                over = place.stat().st_mtime + LIFE.total_seconds() <= time.time()
            if over:
                with locked(place / _LOCK, wait=False):
                    shutil.rmtree(place, ignore_errors=True)
                removed += 1
    return removed


def parts_bytes(folder: Path) -> int:
    """Return how much the parts take that have not become files yet."""
    size = 0
    for path in (folder / "uploads").glob("upload_*/part_*"):
        with suppress(FileNotFoundError):
            size += path.stat().st_size
    return size


def _place(folder: Path, upload_id: str) -> Path:
    if _ID.fullmatch(upload_id) is None:
        raise NoSuchUpload(f"there is no upload {upload_id!r}")
    return folder / "uploads" / upload_id


def _read(place: Path) -> Upload:
    try:
        return Upload(**json.loads((place / "upload.json").read_text()))
    except (FileNotFoundError, NotADirectoryError, ValueError, TypeError):
        raise NoSuchUpload(f"there is no upload {place.name!r}") from None


def _write(place: Path, upload: Upload) -> None:
    replace_text(place / "upload.json", json.dumps(asdict(upload)), mode=0o600)
    sync(place.parent)


def _remove_parts(place: Path) -> None:
    for path in place.glob("part_*"):
        path.unlink(missing_ok=True)
