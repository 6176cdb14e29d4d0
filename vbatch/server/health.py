"""``/health``: whether the store answers, and whether a worker is alive. It needs no key."""

from __future__ import annotations

import asyncio

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from vbatch import batches
from vbatch.errors import VbatchError
from vbatch.server.context import answer, context_of

open_paths = ("/health",)
_PATIENCE = 4.0  # seconds; who asks for the health of a container waits 5, perhaps


def unreachable() -> Response:
    """Return the answer while the store is not there."""
    return answer({"status": "store_unreachable", "store": False, "workers": 0}, 503)


async def health(request: Request) -> Response:
    """Answer 200 while the store is reachable, 503 otherwise; without a worker it is still this server's health."""
    context = context_of(request)
    try:
        # Not in the threads of the other requests: while these wait for the store, this is to be answered.
        async with asyncio.timeout(_PATIENCE):
            workers = await asyncio.to_thread(batches.live_workers, context.store)
    except (VbatchError, TimeoutError):  # its words may name hosts: this needs no key
        return unreachable()
    return answer({"status": "ok" if workers else "no_worker", "store": True, "workers": len(workers)})


routes = [Route("/health", health)]
