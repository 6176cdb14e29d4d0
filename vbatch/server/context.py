"""What every route needs: the store, the settings, and threads for what blocks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import ParamSpec, TypeVar

from starlette.requests import Request
from starlette.responses import Response

from vbatch.batches import Store, files
from vbatch.config import Settings
from vbatch.protocol import encode
from vbatch.server.intake import Intake
from vbatch.server.samples import Samples

P = ParamSpec("P")
T = TypeVar("T")

_STORE_THREADS = 8  # each may hold a connection to the database
_FILE_THREADS = 16


@dataclass(frozen=True, kw_only=True)
class Context:
    """What the routes share. ``files`` is the folder of the files; ``poke`` reports that there is work behind.

    ``samples`` are of the pace of the batches.
    """

    store: Store
    settings: Settings
    poke: Callable[[], None] = lambda: None
    samples: Samples = field(default_factory=Samples)
    _store_threads: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(_STORE_THREADS, thread_name_prefix="store")
    )
    _file_threads: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(_FILE_THREADS, thread_name_prefix="files")
    )

    @cached_property
    def files(self) -> Path:
        """The folder of the files."""
        return files.folder_of(self.settings.data_dir)

    @cached_property
    def intake(self) -> Intake:
        """The uploads that are running."""
        return Intake(self.store, self.files, self.settings.serve)

    async def in_store(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run an operation on the store beside the loop."""
        return await asyncio.get_running_loop().run_in_executor(
            self._store_threads, partial(work, *args, **kwargs)
        )

    async def in_files(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run work on files beside the loop: an upload never waits for a slow query."""
        return await asyncio.get_running_loop().run_in_executor(
            self._file_threads, partial(work, *args, **kwargs)
        )

    def close(self) -> None:
        """Wait for what runs, and end the threads."""
        self._file_threads.shutdown(cancel_futures=True)
        self._store_threads.shutdown(cancel_futures=True)


def context_of(request: Request) -> Context:
    """Return the context of the app that got this request."""
    context: Context = request.app.state.context
    return context


def answer(document: object, status: int = 200) -> Response:
    """Return a document as JSON."""
    return Response(encode(document), status, media_type="application/json")
