"""The setting ``gpu`` and the flag ``--gpu``: one number, several for one engine, or ``all`` for one engine per GPU."""

from __future__ import annotations

import re

ALL = "all"
_IN_UNITS = "_"  # a unit's name has no comma
_LIST = re.compile(r"\d+(?:,\d+)*", re.ASCII)


def normalised(value: object) -> object:
    """Return the setting as a text without blanks: ``0``, ``0,1`` (in the name of a unit ``0_1``) or ``all``.

    Raises ValueError with what is wrong, for pydantic.
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError(_wanted(str(value)))
    text = of_unit(re.sub(r"\s", "", str(value)).lower())
    if text == ALL:
        return text
    if not _LIST.fullmatch(text):
        raise ValueError(_wanted(str(value)))
    numbers = [str(int(number)) for number in text.split(",")]
    if len(set(numbers)) < len(numbers):
        raise ValueError(f"{text} names a GPU twice")
    return ",".join(numbers)


def numbers(setting: str | None) -> tuple[int, ...]:
    """Return the numbers that the setting gives; none for ``all`` and where nothing is set."""
    return tuple(int(number) for number in setting.split(",")) if setting not in (None, ALL) else ()


def in_unit(setting: str) -> str:
    """Return the setting as a part of a unit's name."""
    return setting.replace(",", _IN_UNITS)


def of_unit(part: str) -> str:
    """Return the setting that a part of a unit's name stands for."""
    return part.replace(_IN_UNITS, ",")


def first(setting: str | None) -> int:
    """Return the lowest number of a setting, 0 where it has none: what a worker adds to the metrics' port."""
    return min(numbers(setting), default=0)


def _wanted(value: str) -> str:
    return f"it must be the number of a GPU (0), several for one engine (0,1), or {ALL}, not {value[:60]}"
