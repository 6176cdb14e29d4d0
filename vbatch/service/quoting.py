"""Write any text into a unit file so that systemd reads back exactly that text.

systemd.syntax(7) for quotes, systemd.unit(5) for ``%``, systemd.service(5) for command lines. Environment files have
rules of their own (``vbatch.service.environment``).
"""

from __future__ import annotations

import re
import shlex

from vbatch.errors import UsageError
from vbatch.text import harmless

_PLAIN = re.compile(r"[A-Za-z0-9_@%+,./:=-]+")


def word(text: str) -> str:
    """Return one word of a setting that is split into words; ``%`` is doubled, for specifiers."""
    _refuse_controls(text)
    text = text.replace("%", "%%")
    if _PLAIN.fullmatch(text):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def words(text: str) -> list[str]:
    """Read back what ``word`` wrote, and any line that a person quoted alike; of other lines, nothing."""
    try:
        return [found.replace("%%", "%") for found in shlex.split(text)]
    except ValueError:
        return []


def command(prefix: str, program: str, *arguments: str) -> str:
    """Return a command line for ``Exec…=``.

    ``prefix`` is systemd's (``-`` may fail, ``+`` full privileges). ``:`` is added to it: without it ``$``
    is expanded in the arguments but not in the program, so no single way of writing a path suits both.
    Raises UsageError for a program that systemd refuses (string_is_safe in its source).
    """
    if any(character in program for character in "\"'\\"):
        raise UsageError(
            f"systemd runs no program with a quote or a backslash in its path: {harmless(program)}"
        )
    return " ".join([word(f"{prefix}:{program}"), *map(word, arguments)])


def path(text: str) -> str:
    """Return a path for a setting that takes the rest of its line as it stands, such as EnvironmentFile=."""
    _refuse_controls(text)
    return text.replace("%", "%%")


def _refuse_controls(text: str) -> None:
    """Control characters are legal in file names, but systemd takes none in a command."""
    if any(ord(character) < 32 or ord(character) == 127 for character in text):
        raise UsageError(f"systemd cannot run what has control characters in its name: {harmless(text)}")
