"""The vLLM engine: loads a model with vLLM's own flags and calls vLLM's OpenAI app in this process.

The model is in a child process (vLLM's EngineCore), which the guard plugin binds to this process.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import math
import multiprocessing
import os
import threading
import traceback
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from itertools import count
from pathlib import Path
from typing import Any

from vbatch.engine import (
    EngineDied,
    EngineStartFailed,
    Reply,
    asgi,
    capture,
    causes,
    courtesy,
    direct,
    guard,
    multipart,
    rendering,
    server,
)
from vbatch.engine.capture import EngineLog
from vbatch.errors import ConfigError
from vbatch.system import descendants

SURPLUS = 1.25  # requests given to the engine for each sequence it can run: see ``max_inflight``
SHUTDOWN_LIMIT = 10.0  # seconds for an engine to end by itself; an idle one takes 2 to 4 s
KILL_LIMIT = 10.0  # seconds for a killed process to be gone; the GPU driver may delay that


async def load(
    *,
    model: str,
    path: str | None = None,
    aliases: Sequence[str] = (),
    adapters: Mapping[str, str] | None = None,
    args: Sequence[str] = (),
    shared_args: Sequence[str] = (),
    visible_gpus: str | None = None,
    title_prefix: str,
    log_dir: Path,
) -> VllmEngine:
    """Load a model; requests name it ``model``, its files are at ``path`` (a folder or a hub id).

    ``aliases`` are further names of it. ``adapters`` (LoRA) map the names of requests to folders or hub ids; one that
    cannot be loaded does not keep the others from it.

    ``visible_gpus`` becomes CUDA_VISIBLE_DEVICES; None leaves it as it is. ``args`` are flags of ``vllm serve``,
    ``shared_args`` those of them that every model gets. The titles of all processes of the engine begin with
    ``title_prefix``. What vLLM prints goes to a log file in ``log_dir``. The event loop is not blocked. Cancelling the
    call ends the engine's processes.
    Raises EngineStartFailed with the root cause, UnsupportedVllm before anything is loaded.
    """
    engine_log = capture.open_log(log_dir, model)
    kills = causes.out_of_memory_kills()
    _set_environment(visible_gpus, title_prefix)
    async with AsyncExitStack() as stack:
        try:
            with engine_log.capturing(), guard.guarding_children():
                await asyncio.to_thread(server.imports)
                started = await _start(
                    model=model,
                    path=path or model,
                    aliases=aliases,
                    adapters=adapters or {},
                    args=args,
                    shared_args=shared_args,
                )
                family: list[descendants.Process] = []
                stack.push_async_callback(_shut_down, started, family)
                family += _family(started)
                guard.check(started.all_processes)
                app = await stack.enter_async_context(server.serving(started))
                closing = AsyncExitStack()
                engine = VllmEngine(app, started, engine_log, closing)
        except ConfigError:
            raise
        except Exception as error:
            with contextlib.suppress(OSError):  # the disk is full
                engine_log.write("".join(traceback.format_exception(error)))
            cause = causes.of_failed_start(engine_log.tail(), model=model, path=path or model)
            raise EngineStartFailed(
                cause.line + causes.out_of_memory_since(kills),
                transient=cause.transient,
                blame=cause.blame,
                hint=cause.hint,
                log=str(engine_log.path),
            ) from error
        server.report(started, model)
        await asyncio.to_thread(server.describe_fields, log_dir.parent)
        engine_log.mark()
        closing.push_async_callback(stack.pop_all().aclose)
        return engine


class VllmEngine:
    """A loaded model, see ``vbatch.engine.Engine``. ``app`` is vLLM's own, an ASGI application."""

    def __init__(
        self, app: asgi.App, started: server.Started, log: EngineLog, closing: AsyncExitStack
    ) -> None:
        self.app: Any = app
        self._llm: Any = started.llm
        self._direct = direct.Direct(app)
        self._rendering = rendering.Rendering(started)
        self._request_ids = map(f"vbatch-{uuid.uuid4().hex[:20]}{{:012x}}".format, count())
        self.names = server.names(app)
        self.refused = started.refused
        self._children = started.processes
        self._log = log
        self._closing = closing
        self._headers = server.authorization(started.arguments)
        self._out_of_memory_kills = causes.out_of_memory_kills()
        self._cause: str | None = None
        self.killed = False
        self._steps = _count_outputs(started.llm.engine_core)
        self.sequences = started.max_num_seqs
        self.max_inflight = math.ceil(self.sequences * SURPLUS)
        self._prioritizes = started.prioritizes

    @property
    def endpoints(self) -> frozenset[str]:
        """The paths of vLLM's routes, which depend on the tasks of the model, but not what its packages cannot do."""
        return frozenset(route.path for route in self.app.routes).difference(self.lacking)

    @property
    def lacking(self) -> Mapping[str, str]:
        """The urls for audio, where vLLM has no package that reads it."""
        return server.lacking(route.path for route in self.app.routes)

    @property
    def upload_limit(self) -> tuple[int, str] | None:
        """How much vLLM reads of a file; of a larger one it only says that it is too large."""
        return server.upload_limit(), "VLLM_MAX_AUDIO_CLIP_FILESIZE_MB"

    @property
    def died(self) -> str | None:
        """None while it runs; after its death the cause, in one line."""
        if self._cause is None:
            if self._llm is None or not self._llm.errored:
                return None
            ends = [child.exitcode for child in self._children]
            said = self._log.tail()
            self.killed = causes.was_killed(ends, said)
            cause = causes.of_death(ends, said)
            self._cause = cause + causes.out_of_memory_since(self._out_of_memory_kills)
        return self._cause

    @property
    def progress(self) -> int:
        """How many steps of the engine have produced tokens."""
        return self._steps()

    async def post(self, url: str, body: bytes) -> Reply:
        """Answer one request. Cancelling the call aborts its sequence. Raises EngineDied.

        vLLM's serving layer reports a dead engine as an ordinary error of each request, so no reply is used that came
        from a dead engine.
        """
        sent = courtesy.behind(url, body) if self._prioritizes else body
        self._check()
        with self._rendering.of(sent):
            reply = await self._direct.post(url, sent, self._headers, next(self._request_ids))
        if reply is None:
            return await self._post(url, sent)
        self._check()
        return reply

    async def serve(self, scope: asgi.Message, receive: asgi.Receive, send: asgi.Send) -> None:
        """Have vLLM's own app answer another client's request. Raises EngineDied."""
        await asgi.serve(self.app, scope, receive, send, headers=self._headers, check=self._check)

    async def post_form(self, url: str, body: bytes, upload: bytes) -> Reply:
        """Answer one request that comes with a file. Cancelling the call aborts its sequence. Raises EngineDied."""
        form, content_type = multipart.form(body, upload)
        return await self._post(url, form, content_type=content_type)

    async def _post(self, url: str, body: bytes, *, content_type: str = "application/json") -> Reply:
        self._check()
        reply = await asgi.post(
            self.app,
            url,
            body,
            content_type=content_type,
            headers=self._headers,
            request_id=next(self._request_ids),
        )
        self._check()
        return asgi.with_error_object(reply)

    def _check(self) -> None:
        if (cause := self.died) is not None:
            raise EngineDied(cause)

    async def close(self) -> None:
        """End all of its processes. When this returns they are gone, and this process has freed its memory."""
        self._cause = self.died or "the engine was closed"
        await self._closing.aclose()
        self.app = self._llm = None
        # vLLM froze its objects (gc.freeze); some libraries complain at exit about objects that were never collected.
        gc.unfreeze()
        gc.collect()


def kill_children() -> None:
    """Kill at once the processes that loads have started: for a worker that is about to end.

    vLLM starts them all through ``multiprocessing``, and vbatch starts none that way. Other children (helpers of a
    script that became this process by ``exec``, say) are left alone. The guard ends what is below an engine.
    """
    for child in multiprocessing.active_children():
        child.kill()


async def _start(**wanted: Any) -> server.Started:
    """Start the engine in a thread; if the call is cancelled, end what the thread has started by then."""
    abandoned = threading.Event()
    not_started_here = set(multiprocessing.active_children())
    starting = asyncio.ensure_future(asyncio.to_thread(server.start, **wanted, abandoned=abandoned))
    try:
        return await asyncio.shield(starting)
    except asyncio.CancelledError:
        abandoned.set()
        while not starting.done():
            for child in set(multiprocessing.active_children()) - not_started_here:
                child.kill()
            await asyncio.wait((starting,), timeout=0.2)
        if starting.exception() is None:
            started = starting.result()
            await _shut_down(started, _family(started))
        raise


def _family(started: server.Started) -> list[descendants.Process]:
    return descendants.family([child.pid for child in started.all_processes])


async def _shut_down(started: server.Started, family: list[descendants.Process]) -> None:
    """Have the engine shut down, then kill what is left of the processes in ``family``.

    ``family`` is taken after the start: the children of an engine that was killed can no longer be found below it.
    """
    await asyncio.to_thread(started.llm.shutdown, SHUTDOWN_LIMIT)
    await asyncio.to_thread(descendants.end, family, limit=KILL_LIMIT)


def _count_outputs(client: Any) -> Callable[[], int]:
    """Count the engine's steps as their outputs arrive; return the function that reads the count.

    vLLM's own statistics have this number too, but computing them costs more.
    """
    receive = client.get_output_async
    count = 0

    async def counted() -> Any:
        nonlocal count
        outputs = await receive()
        count += 1
        return outputs

    client.get_output_async = counted
    return lambda: count


def _set_environment(visible_gpus: str | None, title_prefix: str) -> None:
    """Set what vLLM reads from the environment, here and in the processes that it spawns."""
    # A forked engine would keep the worker's database session and file locks after the worker's end.
    os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "spawn"
    os.environ["VLLM_PROCESS_NAME_PREFIX"] = title_prefix
    if not any(name in os.environ for name in ("VLLM_NO_USAGE_STATS", "VLLM_DO_NOT_TRACK", "DO_NOT_TRACK")):
        os.environ["VLLM_NO_USAGE_STATS"] = "1"
    # The numbers of nvidia-smi and NVML, which the memory check and the locks use; CUDA's own begin with the fastest.
    os.environ["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
    if visible_gpus is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = visible_gpus
    plugins = os.environ.get("VLLM_PLUGINS")
    if plugins is not None and guard.NAME not in plugins.split(","):
        os.environ["VLLM_PLUGINS"] = ",".join([*filter(None, plugins.split(",")), guard.NAME])
