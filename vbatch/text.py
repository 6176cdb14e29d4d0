"""Text for people: strangers' text made harmless for terminals and logs; durations, sizes and plurals in words."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

GIB = 1 << 30  # bytes
MIB = 1 << 20  # bytes
LONGEST_DURATION = timedelta(days=36_500)  # so that adding it to today's date gives a date

# Categories that a terminal obeys instead of showing: controls (Cc), formats such as the bidirectional
# overrides of CVE-2021-42574 (Cf), line and paragraph separators (Zl, Zp), lone surrogates (Cs).
_OBEYED = frozenset({"Cc", "Cf", "Zl", "Zp", "Cs"})
_JOINERS = "\u200c\u200d"  # Cf too, but scripts and emoji sequences need them, and they move nothing

_READ_UNITS = {
    "ms": "milliseconds",
    "s": "seconds",
    "m": "minutes",
    "min": "minutes",
    "h": "hours",
    "d": "days",
}
_PART = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|min|m|s|h|d)\s*")
_SHOWN_UNITS = (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1))


_REQUIRED = tuple(
    (re.compile(pattern), words)
    for pattern, words in (
        (r"Input should be a valid integer\b.*", "it must be a whole number"),
        (r"Input should be a valid number\b.*", "it must be a number"),
        (r"Input should be greater than or equal to ", "it must be at least "),
        (r"Input should be less than or equal to ", "it must be at most "),
        (r"Input should be greater than ", "it must be more than "),
        (r"Input should be less than ", "it must be less than "),
        (r"Input should be ", "it must be "),
    )
)


def harmless(text: str, *, keep: str = "", escape: Callable[[str], str] | None = None) -> str:
    r"""Write characters that a terminal would obey as escapes (``\x1b``), except those in ``keep``."""
    if text.isascii() and text.isprintable():
        return text
    write = escape or _python_escape
    return "".join(
        character if character in keep or not is_obeyed(character) else write(character) for character in text
    )


def is_obeyed(character: str) -> bool:
    """Return whether a terminal would act on this character instead of showing it."""
    return unicodedata.category(character) in _OBEYED and character not in _JOINERS


def _python_escape(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")


def one_line(text: str, *, limit: int) -> str:
    """Squeeze text into one harmless line of at most ``limit`` characters; ``…`` shows a cut."""
    line = harmless(" ".join(text.split()))
    return line if len(line) <= limit else line[: limit - 1].rstrip() + "…"


def required(message: str) -> str:
    """Put what Pydantic asks of a value ("Input should be greater than 0") into plain words."""
    for pattern, words in _REQUIRED:
        message = pattern.sub(words, message)
    return message


def parse_duration(text: str) -> timedelta:
    """Read ``90s``, ``15m``, ``1h30m``, ``2d`` or a bare number of seconds.

    Raises ValueError, in words for people, for anything else and for what is not above zero.
    """
    compact = text.strip().lower()
    if re.fullmatch(r"\d+(\.\d+)?", compact):
        compact += "s"
    parts = _PART.findall(compact)
    if not parts or "".join(_PART.split(compact)[::3]) != "":
        raise ValueError(f"'{text}' is not a duration; write 90s, 15m, 1h30m or 2d")
    try:
        found = sum((timedelta(**{_READ_UNITS[unit]: float(number)}) for number, unit in parts), timedelta())
    except OverflowError:
        raise ValueError(f"'{text}' is too long a duration") from None
    if found > LONGEST_DURATION:
        raise ValueError(f"'{text}' is too long a duration; the longest is {LONGEST_DURATION.days}d")
    if found <= timedelta():
        raise ValueError(f"'{text}' is not a duration above zero")
    return found


def duration(seconds: float) -> str:
    """Return the two largest units: ``3 d 4 h``, ``2 min 34 s``, ``12 s``; below a second ``< 1 s``."""
    if seconds < 1:
        return "< 1 s"
    left = round(seconds)
    parts: list[str] = []
    for unit, length in _SHOWN_UNITS:
        number, left = divmod(left, length)
        if number:
            parts.append(f"{number} {unit}")
        elif parts:
            break
    return " ".join(parts[:2])


def ago(moment: datetime, *, now: datetime | None = None) -> str:
    """Return how long ago that was: the largest unit alone."""
    seconds = ((now or datetime.now(UTC)) - moment).total_seconds()
    return "just now" if seconds < 1 else " ".join(duration(seconds).split()[:2]) + " ago"


def local_time(moment: datetime) -> str:
    """Return a time in the reader's own zone, to the second."""
    return moment.astimezone().strftime("%Y-%m-%d %H:%M:%S")


def count(number: int, noun: str) -> str:
    """Return ``1 request``, ``5,000 requests``, ``2 batches``."""
    plural = noun + ("es" if noun.endswith(("ch", "s", "x")) else "s")
    return f"{number:,} {noun if number == 1 else plural}"


def rate(number: float) -> str:
    """Return three figures of something per second: ``0.42``, ``12.3``, ``1,405``."""
    return f"{number:.2f}" if number < 10 else f"{number:.1f}" if number < 100 else f"{number:,.0f}"


def percent(done: int, total: int) -> str:
    """Return the share, rounded down: 100 % means all of it."""
    return f"{100 * done // total if total else 100} %"


def size(number: int) -> str:
    """Return bytes as ``15.6 GiB``, or as ``340 MiB`` below a tenth of a GiB."""
    return f"{number / GIB:.1f} GiB" if number >= GIB // 10 else f"{number / MIB:.0f} MiB"
