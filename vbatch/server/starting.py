"""Answer from the first moment, also while the store is not there yet: 503 then, and not a connection that hangs.

Where the store is replaced while the server runs, the one that is there now is opened.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager

from starlette.types import ASGIApp, Receive, Scope, Send

from vbatch.errors import Interrupted, StoreReplaced, StoreUnreachable
from vbatch.server import errors
from vbatch.server.errors import ApiError
from vbatch.server.health import unreachable

log = logging.getLogger(__name__)

_AGAIN = 5  # seconds
_PAUSE = 2.0  # seconds
_GOODBYE = 2.0  # seconds


class Starting:
    """Opens the store in a thread, however long that takes, and holds it until the end, or until it is to be reopened.

    ``opening`` is given whether it is the first time.
    """

    def __init__(self, opening: Callable[[bool], AbstractContextManager[None]]) -> None:
        self._opening = opening
        self._ready = threading.Event()
        self._leave = threading.Event()
        self._ended = False
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    @property
    def ready(self) -> bool:
        """Whether the store is open."""
        return self._ready.is_set()

    def reopen(self, reason: StoreReplaced) -> None:
        """Close the store, and open what is there now. Any thread may call it."""
        log.warning("server.store_replaced reason=%s", reason)
        self._ready.clear()
        self._leave.set()

    def begin(self, *, failed: Callable[[], None]) -> None:
        """Begin to open it. ``failed`` is called, in the thread, where that is no use."""
        self._thread = threading.Thread(target=self._run, args=(failed,), name="starting", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Close it, and raise what kept it from being opened."""
        ready = self.ready
        self._ended = True
        self._leave.set()
        if self._thread is not None:
            # A database that accepts connections and says nothing is not waited for.
            self._thread.join(None if ready else _GOODBYE)
        if self._error is not None:
            raise self._error

    def _run(self, failed: Callable[[], None]) -> None:
        first = True
        while not self._ended:
            try:
                with self._opening(first):
                    first = False
                    self._ready.set()
                    self._leave.wait()
            except Interrupted:
                return
            except (
                StoreUnreachable
            ) as error:  # it is being replaced; while it is only unreachable, it is waited for
                log.warning("store.waiting reason=%s seconds=%.0f", error, 0)
                self._leave.wait(_PAUSE)
            except BaseException as error:
                self._error = error
                failed()
                return
            finally:
                self._ready.clear()
            if not self._ended:
                self._leave.clear()


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
