"""All checks in causal order, and the entry of every finding: ``vbatch doctor --list`` and the table of findings."""

from __future__ import annotations

from collections.abc import Sequence

from vbatch.doctor.checks import (
    chat,
    driver,
    endpoints,
    engine,
    fits,
    gpu_memory,
    host,
    hosts,
    models,
    neighbours,
    power,
    queue,
    server,
    server_unit,
    service,
    store,
)
from vbatch.doctor.findings import Check, Entry
from vbatch.doctor.running import CRASHED, HANGING
from vbatch.errors import UsageError

# The store comes first: nearly everything else is known from it.
CHECKS: tuple[Check, ...] = (
    *store.CHECKS,
    *power.CHECKS,
    *host.CHECKS,
    *queue.CHECKS,
    *hosts.CHECKS,
    *driver.CHECKS,
    *gpu_memory.CHECKS,
    *engine.CHECKS,
    *endpoints.CHECKS,
    *models.CHECKS,
    *fits.CHECKS,
    *service.CHECKS,
    *server.CHECKS,
    *server_unit.CHECKS,
    *chat.CHECKS,
    *neighbours.CHECKS,
)


def meanings() -> dict[str, Entry]:
    """Return the entry of every finding by its id, in the order of the checks."""
    entries = (*(entry for check in CHECKS for entry in check.finds), CRASHED, HANGING)
    return {entry.id: entry for entry in entries}


def chosen(names: Sequence[str]) -> tuple[Check, ...]:
    """Return the checks that these groups, checks or findings name, with what they need.

    No name stands for all but those that run only where they are named.

    Raises UsageError for any other name.
    """
    if not names:
        return tuple(check for check in CHECKS if not check.by_name)
    wanted: set[str] = set()
    for name in names:
        fitting = {check.name for check in CHECKS if name in (check.name, check.group)} or {
            check.name for check in CHECKS if name in {entry.id for entry in check.finds}
        }
        if not fitting:
            groups = ", ".join(dict.fromkeys(check.group for check in CHECKS))
            raise UsageError(
                f"doctor has no check '{name}'; its groups are {groups}", hint="vbatch doctor --list"
            )
        wanted |= fitting
    before = {check.name: {*check.needs, *check.after} for check in CHECKS}
    while needed := set[str]().union(*(before[name] for name in wanted)) - wanted:
        wanted |= needed
    return tuple(check for check in CHECKS if check.name in wanted)
