"""Write any text into a unit file or an environment file so that systemd reads back exactly that text.

systemd.syntax(7) for quotes, systemd.unit(5) for ``%``, systemd.service(5) for command lines, and
systemd.exec(5) for environment files, which have rules of their own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from vbatch.errors import UsageError
from vbatch.text import harmless

_PLAIN = re.compile(r"[A-Za-z0-9_@%+,./:=-]+")
_LINE = re.compile(
    r"""^[ \t]*(?:
        [#;].* |
        (?P<name>[A-Za-z_][A-Za-z0-9_]*)=[ \t]*
        (?: "(?P<double>(?:[^"\\]|\\[\s\S])*)" | '(?P<single>[^']*)' | (?P<bare>[^"'\n].*?)? )
    )[ \t]*$""",
    re.M | re.X,
)
_IN_QUOTES = str.maketrans({character: "\\" + character for character in '\\"`$'})


def word(text: str) -> str:
    """Return one word of a setting that is split into words; ``%`` is doubled, for specifiers."""
    _refuse_controls(text)
    text = text.replace("%", "%%")
    if _PLAIN.fullmatch(text):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


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


def environment_file(variables: Mapping[str, str]) -> str:
    """Return the assignments of an environment file, sorted."""
    return "".join(f'{name}="{variables[name].translate(_IN_QUOTES)}"\n' for name in sorted(variables))


def read_environment_file(text: str) -> dict[str, str]:
    """Read the assignments of an environment file, as written here or by a person in the usual forms."""
    found: dict[str, str] = {}
    for line in _LINE.finditer(text):
        if line["name"] is not None:
            double, single, bare = line["double"], line["single"], line["bare"]
            found[line["name"]] = re.sub(r"\\([\s\S])", r"\1", double) if double else single or bare or ""
    return found


def _refuse_controls(text: str) -> None:
    """Control characters are legal in file names, but systemd takes none in a command."""
    if any(ord(character) < 32 or ord(character) == 127 for character in text):
        raise UsageError(f"systemd cannot run what has control characters in its name: {harmless(text)}")
