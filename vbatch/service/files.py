"""Read, write and remove small files so that a power cut a second later finds them whole."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path


def text_of(file: Path) -> str:
    """Return the file's text; none where there is no file."""
    try:
        return file.read_text()
    except FileNotFoundError:
        return ""


def write(file: Path, text: str, *, mode: int) -> None:
    """Replace the file in one step, on the disk when this returns. The mode holds from the first byte on."""
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, mode)
        with os.fdopen(handle, "w") as stream:
            os.fchmod(stream.fileno(), mode)
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        draft.replace(file)
    finally:
        draft.unlink(missing_ok=True)
    sync_folder(file.parent)


def sync_folder(folder: Path) -> None:
    """Bring the folder's entries to the disk."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_if_empty(*folders: Path) -> None:
    """Remove folders that nothing is in, in this order."""
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()
