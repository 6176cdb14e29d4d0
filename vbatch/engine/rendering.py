"""Render short prompts in the event loop, instead of in the thread that vLLM's renderer has for it.

vLLM hands each request to that thread twice, for the chat template and for the tokenizer. With a hundred and more
requests in flight the loop and the thread take turns with the interpreter's lock, which costs more than a short prompt
itself: half of what the front end needs for it. A long prompt would keep the loop from all others, and goes to the
thread as ever (``tests/benchmarks/bench_frontend.py``, with ``--prompt``).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from vbatch.engine.server import Started

SHORT = 4096  # bytes of a body: up to here the loop is also done sooner, not only with less CPU

_in_loop: ContextVar[bool] = ContextVar("in_loop", default=False)


class Rendering:
    """Where the prompts of one engine are rendered. Its methods belong to the event loop."""

    def __init__(self, started: Started) -> None:
        executor = getattr(started.llm.renderer, "_executor", None)
        self.limit = 0  # bytes of a body
        self._in_thread: deque[Future[Any]] = deque()
        if isinstance(executor, Executor) and _is_brief(started):
            self.limit = SHORT
            self._submit = executor.submit
            # ``make_async`` has kept the executor, so that it cannot be exchanged.
            executor.submit = self._run  # type: ignore[method-assign]

    @contextmanager
    def of(self, body: bytes) -> Iterator[None]:
        """Render what is handed to the thread within this context in the loop, if the body is a short one."""
        token = _in_loop.set(len(body) <= self.limit)
        try:
            yield
        finally:
            _in_loop.reset(token)

    def _run(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Take the place of ``Executor.submit``.

        vLLM's renderer has one thread, so no tokenizer has to bear two calls at a time: the loop keeps to that.
        """
        while self._in_thread and self._in_thread[0].done():
            self._in_thread.popleft()
        future: Future[Any]
        if self._in_thread or not _in_loop.get():
            self._in_thread.append(future := self._submit(function, *args, **kwargs))
            return future
        future = Future()
        try:
            future.set_result(function(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


def _is_brief(started: Started) -> bool:
    """Return whether a short body is rendered in a short time.

    Not where a request may bring a template of its own, which could run for ever. Nor with a model for pooling that
    takes images: vLLM fetches those in the thread, from any address that a short body names, and elsewhere for
    generation.
    """
    config = started.llm.model_config
    fetches = config.runner_type == "pooling" and config.supports_multimodal_inputs
    return not fetches and not started.arguments.trust_request_chat_template
