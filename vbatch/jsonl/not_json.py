"""Why the bytes of a line are not JSON, in words that say what to fix."""

from __future__ import annotations

import re

import msgspec

from vbatch.jsonl.formats import BOM

NO_LINE_FEED = (
    "The line holds carriage returns, but no line feed ends it, as on an old Mac: "
    "convert the file with tr '\\r' '\\n'."
)
_PYTHON = re.compile(rb"\{'[\w ]+': ")
_NO_NUMBER = re.compile(rb"[\[:,]\s*(-?Infinity|NaN)\b")


def malformed(line: bytes, error: Exception) -> str:
    """Say why a decoder has refused a line."""
    if b"\r" in line.rstrip():
        return NO_LINE_FEED
    text = line.strip()
    if text.endswith(b",") and _parses(text[:-1]):
        return "A comma follows the object: remove it; lines are not separated by commas."
    if _PYTHON.match(text):
        return "This is a Python dictionary, not JSON: write it with json.dumps."
    return f"This is not JSON: {words(error)}"


def is_utf8(line: bytes) -> bool:
    """Return whether a line can be decoded."""
    if line.isascii():
        return True
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True


def bytes_of(line: bytes) -> str | None:
    """Name the byte-level reasons why a line cannot be JSON; None when there is none of these."""
    if line.startswith(BOM):
        return "The line begins with a byte order mark (BOM), which only the first line of a file may have."
    if b"\0" in line:
        return f"The line holds a NUL byte (at byte {line.index(0) + 1}): the file may be damaged or UTF-16."
    try:
        line.decode()
    except UnicodeDecodeError as error:
        return f"The line is not UTF-8 (at byte {error.start + 1}): save the file as UTF-8."
    if (number := _NO_NUMBER.search(line)) is not None and not _parses(line):
        name, place = number[1].decode(), number.start(1) + 1
        return f"{name} is not JSON (at byte {place}): write null, or a number."
    return None


def words(error: Exception) -> str:
    """Say what a decoder has found, with places counted from 1."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply."
    text = re.sub(r"\(byte (\d+)\)", lambda place: f"(byte {int(place[1]) + 1})", str(error))  # 1-based
    return text.removeprefix("JSON is malformed: ").removesuffix(".") + "."


def _parses(line: bytes) -> bool:
    try:
        msgspec.json.decode(line)
    except (msgspec.MsgspecError, RecursionError):
        return False
    return True
