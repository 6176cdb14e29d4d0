"""All checks in causal order, and what each finding means: ``vbatch doctor --list``, and the README's table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from vbatch.errors import UsageError

if TYPE_CHECKING:
    from vbatch.doctor.checks import Check


@dataclass(frozen=True, slots=True, kw_only=True)
class Meaning:
    """One finding explained: a sentence what it means, and one what a person can do."""

    means: str
    remedy: str


# Each has CHECKS and MEANINGS. The store comes first: nearly everything else is known from it.
_MODULES = (
    "store", "story", "host", "sleep", "queue", "driver", "memory", "engine", "models", "service", "neighbours",
)  # fmt: skip


def checks() -> tuple[Check, ...]:
    """Return every check in the order in which they run."""
    return tuple(check for module in _modules() for check in module.CHECKS)


def meanings() -> dict[str, Meaning]:
    """Return what every finding means, in the order of the checks."""
    found: dict[str, Meaning] = {}
    for module in _modules():
        found |= module.MEANINGS
    return found | _OF_EVERY_GROUP


def chosen(names: Sequence[str]) -> tuple[Check, ...]:
    """Return the checks that these groups, checks or findings name, with what they need; all for no name.

    Raises UsageError for a name that is none of these.
    """
    every = checks()
    if not names:
        return every
    wanted: set[str] = set()
    for name in names:
        fitting = {check.name for check in every if name in (check.name, check.group)}
        if not fitting and name in meanings():
            fitting = {check.name for check in every if check.group == name.partition(".")[0]}
        if not fitting:
            groups = ", ".join(dict.fromkeys(check.group for check in every))
            raise UsageError(
                f"doctor has no check '{name}'; its groups are {groups}", hint="vbatch doctor --list"
            )
        wanted |= fitting
    before = {check.name: {*check.needs, *check.after} for check in every}
    while needed := set[str]().union(*(before[name] for name in wanted)) - wanted:
        wanted |= needed
    return tuple(check for check in every if check.name in wanted)


_OF_EVERY_GROUP = {
    "GROUP.crashed": Meaning(
        means="A check met something that it does not know; the other checks are not touched by it.",
        remedy="vbatch doctor -v --report FILE, and report it.",
    ),
    "GROUP.hanging": Meaning(
        means="A check got no answer in time: a disk, a network file system or a driver hangs below it.",
        remedy="Look at dmesg; a wedged driver needs a reboot.",
    ),
}


def _modules() -> list[Any]:
    names = [f"vbatch.doctor.{name}" for name in _MODULES]
    return [import_module(name) for name in names if find_spec(name) is not None]
