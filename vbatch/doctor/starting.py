"""For how long a database has been starting, recovering or stopping, as far as that can be known from here."""

from __future__ import annotations

import re
from datetime import timedelta

from vbatch import processes
from vbatch.doctor.facts import Facts
from vbatch.service.database import Database, Kind

_BUSY = ("starting", "recovering", "stopping")
_AT_IT = re.compile(r"postgres: (?:.*: )?startup\b")  # the process that starts a server, and replays its log


def so_far(facts: Facts, fault: str, where: Database) -> str:
    """Say for how long: as that process of a server on this machine tells, or as long as this run has seen it."""
    if fault not in _BUSY:
        return ""
    found = [] if where.kind is Kind.REMOTE else processes.entitled(_AT_IT)
    age = processes.age(found[0]) if len(found) == 1 else None  # of several nobody knows which is meant
    if age is not None:
        return f"; for {span(age)} so far"
    return f"; for {span(facts.looked)} at least" if facts.looked >= timedelta(seconds=1) else ""


def span(duration: timedelta) -> str:
    """Write a duration in its greatest unit."""
    seconds = int(duration.total_seconds())
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"
