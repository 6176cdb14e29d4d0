"""What the server does behind: validate, write files, remove what has expired. A thread for each, as one may take long.

Each continues after any error: a store that is unreachable is waited for, a disk that refuses is tried again.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta

from vbatch import batches
from vbatch.batches import Store, create, files, upkeep, uploads
from vbatch.config import Settings
from vbatch.errors import Interrupted, StoreReplaced, VbatchError
from vbatch.server.samples import EVERY, Samples

log = logging.getLogger(__name__)

_LOOK = timedelta(seconds=2)
_HOUSEKEEPING = timedelta(seconds=30)
_PAUSE = timedelta(seconds=5)  # after an error


class Background:
    """The threads. ``poke`` wakes those that wait for work; ``replaced`` is called where the store is another one."""

    def __init__(
        self, store: Store, settings: Settings, samples: Samples, *, replaced: Callable[[StoreReplaced], None]
    ) -> None:
        self._store = store
        self._samples = samples
        self._replaced = replaced
        self._settings = settings
        self._folder = files.folder_of(settings.data_dir)
        self._stop = threading.Event()
        self._events = (threading.Event(), threading.Event())
        self._rests = (threading.Event(), threading.Event())  # of those that look now and then
        self._threads: list[threading.Thread] = []

    def poke(self) -> None:
        """Look at once: a batch was entered or cancelled."""
        for event in self._events:
            event.set()

    @contextmanager
    def running(self, *, sweep: bool = True) -> Iterator[None]:
        """Tidy up what a server that was killed left; then run until the end of the block.

        Without ``sweep`` no file is touched: a store that took another's place need not know them.
        """
        upkeep.take_over(self._store)
        removed, strange = files.sweep(self._store, self._folder) if sweep else (0, 0)
        removed += uploads.sweep(self._folder) if sweep else 0
        create.sweep(self._store)
        if removed:
            log.info("server.swept files=%d", removed)
        if strange:
            log.warning("server.files_unknown files=%d folder=%s", strange, self._folder / files.UNKNOWN)
        with ExitStack() as stack:
            me = stack.enter_context(batches.registered(self._store, replaced=self._replaced))
            stack.callback(self._end)
            self._start("validator", self._validate, self._events[0], _LOOK)
            self._start("finalizer", lambda: self._finalize(me), self._events[1], _LOOK)
            self._start("housekeeping", self._tidy, self._rests[0], _HOUSEKEEPING)
            self._start("samples", lambda: self._samples.look(self._store), self._rests[1], EVERY)
            yield

    def _end(self) -> None:
        self._stop.set()
        for rest in self._rests:
            rest.set()
        self.poke()
        for thread in self._threads:
            thread.join(timeout=_PAUSE.total_seconds())

    def _start(self, name: str, work: Callable[[], None], event: threading.Event, pause: timedelta) -> None:
        def run() -> None:
            while not self._stop.is_set():
                event.clear()
                if self._stop.is_set():  # it was set meanwhile, and so was the event
                    return
                try:
                    work()
                except Interrupted:
                    return
                except StoreReplaced as error:
                    self._replaced(error)
                    return
                except (VbatchError, OSError) as error:
                    log.warning("server.behind part=%s error=%s", name, error)
                    self._stop.wait(_PAUSE.total_seconds())
                except Exception:
                    log.exception("server.behind_crashed part=%s", name)
                    self._stop.wait(_PAUSE.total_seconds())
                event.wait(pause.total_seconds())

        self._threads.append(threading.Thread(target=run, name=name, daemon=True))
        self._threads[-1].start()

    def _validate(self) -> None:
        for batch in create.waiting(self._store):
            if self._stop.is_set():
                return
            found = create.validate(self._store, self._folder, batch)
            log.info(
                "batch.validated batch=%s status=%s requests=%d", found.id, found.status, found.counts.total
            )
            self._events[1].set()

    def _finalize(self, me: str) -> None:
        if not upkeep.finalize_served(self._store, self._folder, by=me):
            self._stop.wait(_PAUSE.total_seconds())

    def _tidy(self) -> None:
        expired = upkeep.expire_batches(self._store)
        for batch_id in expired:
            log.info("batch.expired batch=%s", batch_id)
        removed = files.expire_files(self._store, self._folder) + uploads.sweep(self._folder)
        if removed:
            log.info("server.expired files=%d", removed)
        if expired:
            self.poke()
        batches.deliver_for_workers(self._store, self._settings)
