"""What an error of a database means: which kind of trouble it is, and whether it passes by itself."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Fault(StrEnum):
    """What is wrong, for code that must decide something by it; people read the words beside it."""

    # These pass by themselves.
    AWAY = "away"  # refused, closed, reset, unknown host: no server listens there yet
    STARTING = "starting"
    RECOVERING = "recovering"
    STOPPING = "stopping"
    FULL = "full"  # no free connection
    HANGING = "hanging"
    DISK = "disk"
    LOCKED = "locked"
    # These a person must fix.
    PASSWORD = "password"
    FORBIDDEN = "forbidden"
    NO_DATABASE = "no_database"
    NO_USER = "no_user"
    URL = "url"
    READ_ONLY = "read_only"
    DAMAGED = "damaged"
    CANNOT_OPEN = "cannot_open"
    NOT_SQLITE = "not_sqlite"


@dataclass(frozen=True, slots=True)
class Transient:
    """Try again. ``reason`` completes "waiting for the store: …"."""

    reason: str
    fault: Fault = Fault.AWAY
