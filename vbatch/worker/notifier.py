"""Deliver notifications beside the work, in a thread of its own: a target that hangs holds up nothing else."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from vbatch.batches import notify
from vbatch.config import Settings
from vbatch.errors import VbatchError
from vbatch.store import Store

log = logging.getLogger(__name__)

LOOK = 5.0  # seconds between two looks for events that are due
AT_WORK = 60.0  # seconds that one look may take, so that unknown names are looked at too
AT_THE_END = 10.0  # seconds that a worker which ends takes for them at most


@contextmanager
def notifying(store: Store, settings: Settings) -> Iterator[None]:
    """Deliver what is due until the block is left, and then once more; what is not delivered stays in the store."""
    ending = threading.Event()

    def look(seconds: float) -> None:
        try:
            notify.leave_to_others(store, settings)
            notify.deliver_due(store, settings, seconds=seconds)
        except VbatchError as error:
            log.debug("notify.stopped reason=%s", error)
        except Exception:
            log.exception("notify.crashed")  # the work continues without it

    def run() -> None:
        while not ending.wait(LOOK):
            look(AT_WORK)
        look(AT_THE_END)

    thread = threading.Thread(target=run, name="notify", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ending.set()
        # A delivery that still runs then is repeated by the next worker, under the same id.
        thread.join(AT_THE_END)
