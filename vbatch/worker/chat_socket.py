"""Listen for chat at the worker's own Unix socket, with uvicorn, which comes with vLLM."""

from __future__ import annotations

import asyncio
import importlib
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext, suppress
from typing import Any

from vbatch.errors import ConfigError
from vbatch.store import registry
from vbatch.system import sockets
from vbatch.worker.chat import Chat
from vbatch.worker.context import Context

log = logging.getLogger(__name__)

LAST_WORDS = 2  # seconds for the answers of chats that were aborted


def require() -> None:
    """Raise ConfigError where there is no uvicorn."""
    try:
        importlib.import_module("uvicorn")
    except ImportError:
        raise ConfigError(
            "chat = true needs the package uvicorn", hint="pip install 'vbatch[serve]'"
        ) from None


@asynccontextmanager
async def serving(context: Context, chat: Chat) -> AsyncIterator[None]:
    """Listen for as long as the context lasts, where the settings say so.

    A socket that cannot be made costs the chat, not the batch.
    """
    if not context.settings.chat:
        yield
        return
    state_dir = context.settings.state_dir
    try:
        await context.in_files(_sweep, context)
        listener = sockets.listen(state_dir, context.worker)
    except OSError as error:
        log.error("chat.unavailable folder=%s error=%s", state_dir, error.strerror or error)
        yield
        return
    path = sockets.path_of(state_dir, context.worker)
    log.info("chat.listening socket=%s", path)
    server = _server(chat)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        yield
    finally:
        with suppress(OSError):
            path.unlink()
        server.should_exit = True
        await asyncio.wait((serving,), timeout=2 * LAST_WORDS)
        serving.cancel()
        await asyncio.wait((serving,))
        listener.close()


def _sweep(context: Context) -> None:
    """Remove the sockets of workers that have ended; a live one on another host shares the folder, perhaps."""
    known = {worker.id for worker in registry.live(context.store)} - {context.worker}
    for path in sockets.found(context.settings.state_dir):
        if sockets.worker_of(path) not in known and not sockets.answers(path):
            with suppress(OSError):
                path.unlink()


def _server(chat: Chat) -> Any:
    uvicorn: Any = importlib.import_module("uvicorn")

    class Server(uvicorn.Server):  # type: ignore[misc]
        def capture_signals(self) -> Any:
            """Leave the signals to the worker."""
            return nullcontext()

    return Server(
        uvicorn.Config(
            chat,
            access_log=False,
            log_config=None,
            log_level="critical",  # it would log each chat that was broken off as an error
            lifespan="off",
            ws="none",
            timeout_graceful_shutdown=LAST_WORDS,
        )
    )
