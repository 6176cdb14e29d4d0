"""Text from strangers (users, models, file names), made harmless for terminals, logs and tables."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable

# Categories that a terminal obeys instead of showing: controls (Cc), formats such as the bidirectional
# overrides of CVE-2021-42574 (Cf), line and paragraph separators (Zl, Zp), lone surrogates (Cs).
_OBEYED = frozenset({"Cc", "Cf", "Zl", "Zp", "Cs"})
_JOINERS = "\u200c\u200d"  # Cf too, but scripts and emoji sequences need them, and they move nothing


def harmless(text: str, *, keep: str = "", escape: Callable[[str], str] | None = None) -> str:
    r"""Write characters that a terminal would obey as escapes (``\x1b``), except those in ``keep``."""
    if text.isascii() and text.isprintable():
        return text
    write = escape or _python_escape
    return "".join(
        character if character in keep or not is_obeyed(character) else write(character) for character in text
    )


def is_obeyed(character: str) -> bool:
    """Say whether a terminal would act on this character instead of showing it."""
    return unicodedata.category(character) in _OBEYED and character not in _JOINERS


def _python_escape(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")


def one_line(text: str, *, limit: int) -> str:
    """Squeeze text into one harmless line of at most ``limit`` characters; ``…`` shows a cut."""
    line = harmless(" ".join(text.split()))
    return line if len(line) <= limit else line[: limit - 1].rstrip() + "…"
