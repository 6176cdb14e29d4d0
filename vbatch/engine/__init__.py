"""What answers requests: ``POST url body -> (status, body)``, one protocol for every kind of engine."""

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
    """The engine has died; no answer from after its death may be used. ``cause`` is one line for people."""

    def __init__(self, cause: str) -> None:
        self.cause = cause
        super().__init__(cause)


class Blame(StrEnum):
    """What prevents the load: the worker decides by it whether to try its other models."""

    MODEL = "model"  # the model or its own flags (not found, gated, too big): other models may load
    MACHINE = "machine"  # the machine or the installation: no other model would load
    FLAGS = "flags"  # the flags that every model gets: a person must fix them
    UNKNOWN = "unknown"  # the cause is not recognised; it is the model if another model loads


class EngineStartFailed(Exception):
    """The engine did not start. ``transient``: another try may succeed, as when memory is still being freed."""

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
    """One loaded model. Made by the ``load`` of its kind (``vbatch.engine.kinds``); used from one event loop."""

    @property
    def max_inflight(self) -> int:
        """How many requests to run at once: enough to keep it busy, without a long queue inside it."""
        ...

    @property
    def died(self) -> str | None:
        """None while it runs; after its death the cause, in one line."""
        ...

    @property
    def progress(self) -> int:
        """A number that rises while it works. If it does not rise while requests run, the engine hangs."""
        ...

    async def post(self, url: str, body: bytes) -> Reply:
        """Answer one request. Cancelling the call aborts its sequence. Raises EngineDied."""
        ...

    async def close(self) -> None:
        """End all of its processes and free its memory."""
        ...
