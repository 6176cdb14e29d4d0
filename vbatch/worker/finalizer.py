"""Write the files of batches whose requests are all answered, beside the work, one batch at a time."""

from __future__ import annotations

import asyncio
import logging

from vbatch.batches.finalize import finalize
from vbatch.errors import Interrupted, NoSuchBatch
from vbatch.store import finalization
from vbatch.system import limits
from vbatch.worker import engine_figures
from vbatch.worker.context import Context

log = logging.getLogger(__name__)

LOOK = 5.0  # seconds between two looks without being poked: a batch cancelled or left by a dead worker
LONGEST_PAUSE = 60.0  # seconds between two tries while the output folder refuses


class Finalizer:
    """Looks for batches to finalize when poked, and now and then by itself.

    A folder that refuses (disk full, read-only, unmounted) delays only the batches that write there; it is
    tried again for ever, because the answers are safe in the store.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self._poked = asyncio.Event()
        self._pauses: dict[int, tuple[float, float]] = {}
        self._closing = False
        self.busy = False

    def poke(self) -> None:
        """Look soon: a chunk was finished or a batch was cancelled."""
        self._poked.set()

    def close(self) -> None:
        """Look once more, then end."""
        self._closing = True
        self._poked.set()

    async def run(self) -> None:
        """Finalize until closed."""
        while True:
            try:
                async with asyncio.timeout(LOOK):
                    await self._poked.wait()
            except TimeoutError:
                pass
            self._poked.clear()
            closing = self._closing
            self.busy = True
            try:
                await self._finalize_all()
            except Interrupted:
                return
            finally:
                self.busy = False
            if closing:
                return

    async def _finalize_all(self) -> None:
        context = self._context
        now = asyncio.get_running_loop().time()
        for batch in await context.in_files(finalization.leave_to_others, context.store):
            log.info("batch.left batch=%s host=%s", batch.id, (batch.host or "").partition("/")[0])
        waiting = await context.in_files(finalization.to_finalize, context.store, by=context.worker)
        if self._pauses.keys() - {batch.pk for batch in waiting}:  # deleted, or written by another process
            self._pauses.clear()
            context.view.update(trouble=None)
        for batch in waiting:
            pause, until = self._pauses.get(batch.pk, (1.0, 0.0))
            if now < until:
                continue
            try:
                finished = await context.in_files(finalize, context.store, batch, by=context.worker)
            except (NoSuchBatch, BlockingIOError):
                continue  # deleted meanwhile; or a command, or a worker that was frozen, is writing the files
            except OSError as error:
                self._pauses[batch.pk] = (min(pause * 2, LONGEST_PAUSE), now + pause)
                why = limits.words(error)
                log.error("batch.output_refused batch=%s error=%s retry_seconds=%.0f", batch.id, why, pause)
                context.view.update(
                    trouble=f"cannot write the output of {batch.id}: {why}; vbatch keeps trying "
                    f"(vbatch results {batch.id} -o FILE writes it elsewhere)"
                )
                continue
            if self._pauses.pop(batch.pk, None):
                context.view.update(trouble=None)
            if finished is not None:
                log.info(
                    "batch.%s batch=%s completed=%d failed=%d output=%s",
                    finished.status,
                    finished.id,
                    finished.counts.completed,
                    finished.counts.failed,
                    finished.output_path,
                )
                engine_figures.report(context.view.snapshot)
