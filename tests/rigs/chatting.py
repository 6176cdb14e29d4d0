"""A client of a worker's socket for chat, and a worker in this process that serves one."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx

from tests.rigs.waiting import SILENCE
from vbatch.system import sockets
from vbatch.worker.context import Context
from vbatch.worker.loop import WorkLoop

URL = "/v1/chat/completions"


def body(text: str, *, model: str = "m", stream: bool = False, fault: str | None = None) -> dict[str, Any]:
    """Return the body of a chat request."""
    document = {"model": model, "messages": [{"role": "user", "content": text}], "stream": stream}
    return document | ({"metadata": {"vbatch_echo": fault}} if fault else {})


@dataclass
class Client:
    """Asks one worker; every answer is a status and a JSON document."""

    http: httpx.AsyncClient

    async def chat(self, text: str, **fields: Any) -> tuple[int, dict[str, Any]]:
        answer = await self.http.post(URL, json=body(text, **fields))
        return answer.status_code, answer.json()

    async def stream(self, text: str, *, begun: asyncio.Event | None = None, **fields: Any) -> list[Any]:
        """Return the events of a stream; the last one is "[DONE]" where it is whole."""
        events: list[Any] = []
        async with self.http.stream("POST", URL, json=body(text, stream=True, **fields)) as answer:
            try:
                async for line in answer.aiter_lines():
                    if line.startswith("data: "):
                        data = line.removeprefix("data: ")
                        events.append(data if data == "[DONE]" else json.loads(data))
                        if begun is not None:
                            begun.set()
            except httpx.RemoteProtocolError:
                events.append("broken")
        return events

    async def models(self) -> list[str]:
        """Return the names at which it answers; none while its engine is dead."""
        answer = (await self.http.get("/v1/models")).json()
        return [model["id"] for model in answer.get("data", ())]


@asynccontextmanager
async def client_of(context: Context) -> AsyncIterator[Client]:
    """Connect to the socket of a worker, once it listens."""
    path = sockets.path_of(context.settings.state_dir, context.worker)
    await happened(path.exists)
    with sockets.address(path) as short:
        # A connection for each request, as `vbatch serve` has: one that is kept may be closed as it is used again.
        transport = httpx.AsyncHTTPTransport(uds=short, limits=httpx.Limits(max_keepalive_connections=0))
        async with httpx.AsyncClient(transport=transport, base_url="http://worker", timeout=SILENCE) as http:
            yield Client(http)


async def happened(condition: Callable[[], object] | Callable[[], Awaitable[object]]) -> None:
    """Wait until this is so."""
    while True:
        found = condition()
        if await found if isinstance(found, Awaitable) else found:
            return
        await asyncio.sleep(0.01)


def work_with(context: Context, chat: Callable[[Client], Coroutine[None, None, None]]) -> WorkLoop:
    """Run a worker and clients beside it, until the clients are done and it has stopped."""
    loop = WorkLoop(context)

    async def talk() -> None:
        try:
            async with client_of(context) as client:
                await chat(client)
        finally:
            context.stop.request()

    async def both() -> None:
        context.stop.attach(asyncio.get_running_loop())
        context.watchdog.attach()
        async with asyncio.timeout(SILENCE):
            await asyncio.gather(loop.run(), talk())

    asyncio.run(both())
    return loop
