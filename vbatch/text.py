"""Text from strangers (users, models, file names), made harmless for terminals, logs and tables."""

from __future__ import annotations

import unicodedata

# Categories that a terminal obeys instead of showing: controls (Cc), formats such as the bidirectional
# overrides of CVE-2021-42574 (Cf), line and paragraph separators (Zl, Zp), lone surrogates (Cs).
_OBEYED = frozenset({"Cc", "Cf", "Zl", "Zp", "Cs"})
_JOINERS = "\u200c\u200d"  # Cf too, but scripts and emoji sequences need them, and they move nothing


def harmless(text: str, *, keep: str = "") -> str:
    r"""Write characters that a terminal would obey as escapes (``\x1b``), except those in ``keep``."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        character
        if character in keep or character in _JOINERS or unicodedata.category(character) not in _OBEYED
        else character.encode("unicode_escape", "surrogatepass").decode("ascii")
        for character in text
    )


def one_line(text: str, *, limit: int) -> str:
    """Squeeze text into one harmless line of at most ``limit`` characters; ``…`` shows a cut."""
    line = harmless(" ".join(text.split()))
    return line if len(line) <= limit else line[: limit - 1].rstrip() + "…"
