"""What answers requests: ``POST url body -> (status, body)``, one protocol for every kind of engine."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from vbatch.engine.asgi import Message, Receive, Send


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


class NotSent(Exception):
    """A request was not given to the engine, for what it names cannot be had. ``code`` and ``message`` say why.

    ``transient``: another try may succeed, after ``retry_after`` seconds where the other side said so.
    """

    def __init__(
        self, code: str, message: str, *, transient: bool = False, retry_after: float | None = None
    ) -> None:
        self.code = code
        self.message = message
        self.transient = transient
        self.retry_after = retry_after
        super().__init__(message)


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
    def sequences(self) -> int:
        """How many sequences it runs at once; further requests wait inside it."""
        ...

    @property
    def died(self) -> str | None:
        """None while it runs; after its death the cause, in one line."""
        ...

    @property
    def killed(self) -> bool:
        """Whether SIGKILL ended it, as the kernel's out-of-memory killer does: that convicts no request by itself."""
        ...

    @property
    def progress(self) -> int:
        """A number that rises while it works. If it does not rise while requests run, the engine hangs."""
        ...

    @property
    def names(self) -> frozenset[str]:
        """The names at which it answers: of the model, its aliases and its adapters."""
        ...

    @property
    def refused(self) -> Mapping[str, str]:
        """The adapters that could not be loaded, each with the reason."""
        ...

    @property
    def endpoints(self) -> Collection[str] | None:
        """The urls that this model answers at; None for all of them."""
        ...

    @property
    def lacking(self) -> Mapping[str, str]:
        """The urls at which this model would answer if a package were installed, and the package."""
        ...

    async def post(self, url: str, body: bytes) -> Reply:
        """Answer one request. Cancelling the call aborts its sequence. Raises EngineDied, NotSent."""
        ...

    async def serve(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one HTTP request of another client, as an ASGI application: a chat, perhaps as a stream.

        Raises EngineDied, perhaps after a part of the answer: nothing is sent that a dead engine has said.
        """
        ...

    async def close(self) -> None:
        """End all of its processes and free its memory."""
        ...


class Loaded(Engine, Protocol):
    """What a kind loads: an engine that takes files too. ``vbatch.engine.audio`` fetches them."""

    @property
    def upload_limit(self) -> tuple[int, str] | None:
        """How many bytes a file may have, and the name of that limit; None where the engine has none."""
        ...

    async def post_form(self, url: str, body: bytes, upload: bytes) -> Reply:
        """Answer one request that comes with a file. ``body`` is JSON: the other fields of the form."""
        ...
