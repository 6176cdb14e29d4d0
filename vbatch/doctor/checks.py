"""A check: a small function that looks at one thing and returns what it finds, and when it makes sense to ask."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum

from vbatch.doctor.facts import Facts
from vbatch.doctor.findings import Finding


class Group(StrEnum):
    """What a check is about, in causal order."""

    HOST = "host"
    STORE = "store"
    QUEUE = "queue"
    GPU = "gpu"
    ENGINE = "engine"
    SERVICE = "service"
    NEIGHBOURS = "neighbours"


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One check. ``needs`` are the names of checks that must not fail before this one.

    ``after`` are those that are asked before it too, and waited for, whatever they find.
    ``run`` returns at least one finding (``ok`` where all is well), whose ids begin with the group's name.
    """

    name: str
    group: Group
    run: Callable[[Facts], Iterable[Finding]]
    needs: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    limit: timedelta = timedelta(seconds=20)


_NEED_WORDS = {
    "store.reach": "the store",
    "store.state": "a sound store",
    "gpu.driver": "the driver",
    "gpu.holders": "the orphan to be ended first",
}


def need_in_words(name: str) -> str:
    """Say what a check needs as a person would: "needs the driver"."""
    return _NEED_WORDS.get(name, name)
