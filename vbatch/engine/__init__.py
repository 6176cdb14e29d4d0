"""Where requests are answered: ``POST url body -> (status, body)``, in one protocol for every home of it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """An HTTP answer. ``body`` is JSON, exactly as the engine wrote it."""

    status: int
    body: bytes
    request_id: str | None = None
    retry_after: float | None = None


class EngineDied(Exception):
    """The engine is gone; nothing it answered since may be believed. ``cause`` is one line for people."""

    def __init__(self, cause: str) -> None:
        self.cause = cause
        super().__init__(cause)


class Blame(StrEnum):
    """Where the reason lies that an engine did not start, which decides how its worker goes on."""

    MODEL = "model"  # or its own flags (not found, gated, too big): others may still be loaded
    MACHINE = "machine"  # or the installation: no other model would load
    FLAGS = "flags"  # those that every model gets: a person must mend them
    UNKNOWN = "unknown"  # the model's, if another one loads


class EngineStartFailed(Exception):
    """The engine did not start. ``transient`` says whether trying again may help (memory that settles)."""

    def __init__(
        self,
        cause: str,
        *,
        transient: bool,
        blame: Blame = Blame.UNKNOWN,
        hint: str | None = None,
        log: str | None = None,
    ) -> None:
        self.cause = cause
        self.transient = transient
        self.blame = blame
        self.hint = hint
        self.log = log
        super().__init__(cause)


class Engine(Protocol):
    """One loaded model. Made by ``vllm.load`` or ``echo.load``; used from one event loop."""

    @property
    def max_inflight(self) -> int:
        """How many requests keep it busy without queueing more than it needs."""
        ...

    @property
    def died(self) -> str | None:
        """None while it lives; else the cause, in one line."""
        ...

    @property
    def progress(self) -> int:
        """A number that rises with every token it processes; one that stands still while requests run hangs."""
        ...

    async def post(self, url: str, body: bytes) -> Reply:
        """Answer one request. Cancelling the call aborts its sequence. Raises EngineDied."""
        ...

    async def close(self) -> None:
        """End every process of it and give its memory back."""
        ...
