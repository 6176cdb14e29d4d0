"""The image of a row: a URL as it is, a file as a data: URL."""

from __future__ import annotations

import base64
import os
import stat
from pathlib import Path
from typing import Any

from vbatch.outbound.fetch import check_form
from vbatch.outbound.http import Refused
from vbatch.text import MIB

LARGEST_IMAGE = 20 * MIB  # bytes, as OpenAI has it; four thirds of it in a line, which may have 64 MiB

_MAGIC = {
    b"\x89PNG\r\n\x1a\n": "image/png",
    b"\xff\xd8\xff": "image/jpeg",
    b"GIF8": "image/gif",
    b"BM": "image/bmp",
    b"II*\x00": "image/tiff",
    b"MM\x00*": "image/tiff",
}
_URLS = ("http://", "https://", "data:")


def image_url(cell: Any, folder: Path) -> str:
    """Return the URL of an image: of a path, relative ones below ``folder``, of a URL, or of its bytes.

    Also takes what a Parquet file of a Hugging Face dataset has: ``{"bytes": …, "path": …}``.
    Raises ValueError with the reason.
    """
    match cell:
        case {"bytes": bytes(data)} | bytes(data):
            return _data_url(data, "it")
        case {"path": str(text)} | str(text) if text.strip():
            text = text.strip()
        case _:
            raise ValueError("it is empty")
    if text.lower().startswith(_URLS):
        try:
            check_form(text)
        except Refused as error:
            raise ValueError(str(error)) from None
        return text
    if "://" in text[:20] and not text.startswith("file://"):
        raise ValueError(f"{text} is a kind of URL that is not known")
    path = folder / text.removeprefix("file://")
    try:
        with open(path, "rb", opener=_without_waiting) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise ValueError(f"{path} is not a file")
            data = file.read(LARGEST_IMAGE + 1)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    return _data_url(data, str(path))


def _without_waiting(path: str, flags: int) -> int:
    """Open a file; of a pipe that no process writes to, too."""
    return os.open(path, flags | os.O_NONBLOCK)


def _data_url(data: bytes, name: str) -> str:
    if len(data) > LARGEST_IMAGE:
        raise ValueError(f"{name} is larger than {LARGEST_IMAGE // MIB} MiB")
    kind = next((kind for magic, kind in _MAGIC.items() if data.startswith(magic)), None)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        kind = "image/webp"
    if kind is None:
        raise ValueError(f"{name} is not an image (png, jpeg, gif, webp, bmp, tiff)")
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
