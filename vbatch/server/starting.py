"""Answer from the first moment, also while the store is not there yet: 503 then, and not a connection that hangs."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager

from starlette.types import ASGIApp, Receive, Scope, Send

from vbatch.errors import Interrupted
from vbatch.server import errors
from vbatch.server.errors import ApiError
from vbatch.server.health import unreachable

_AGAIN = 5  # seconds
_GOODBYE = 2.0  # seconds


class Starting:
    """Opens the store in a thread, however long that takes, and holds it until the end."""

    def __init__(self, opening: Callable[[], AbstractContextManager[None]]) -> None:
        self._opening = opening
        self._ready = threading.Event()
        self._end = threading.Event()
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    @property
    def ready(self) -> bool:
        """Whether the store is open."""
        return self._ready.is_set()

    def begin(self, *, failed: Callable[[], None]) -> None:
        """Begin to open it. ``failed`` is called, in the thread, where that is no use."""
        self._thread = threading.Thread(target=self._run, args=(failed,), name="starting", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Close it, and raise what kept it from being opened."""
        self._end.set()
        if self._thread is not None:
            # A database that accepts connections and says nothing is not waited for.
            self._thread.join(None if self.ready else _GOODBYE)
        if self._error is not None:
            raise self._error

    def _run(self, failed: Callable[[], None]) -> None:
        try:
            with self._opening():
                self._ready.set()
                self._end.wait()
        except Interrupted:
            pass
        except BaseException as error:
            self._error = error
            failed()
        finally:
            self._ready.clear()


class UntilReady:
    """A pure ASGI layer: answers requests itself until the store is open."""

    def __init__(self, app: ASGIApp, ready: Callable[[], bool]) -> None:
        self._app = app
        self._ready = ready

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or answer it."""
        if self._ready() or scope["type"] != "http":
            await self._app(scope, receive, send)
        elif scope["path"] == "/health":
            await unreachable()(scope, receive, send)
        else:
            refusal = ApiError(
                503,
                "The database cannot be reached yet.",
                code="store_unreachable",
                retry_after=_AGAIN,
                close=True,
            )
            await errors.response(refusal)(scope, receive, send)
