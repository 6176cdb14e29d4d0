"""The locks that keep other workers off a worker's GPUs. The kernel frees a dead worker's locks."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from vbatch.engine import installed
from vbatch.errors import EngineUnavailable
from vbatch.gpu_memory.cards import Card
from vbatch.system import files


def last_worker_pid(state_dir: Path, card: Card) -> int | None:
    """Return the pid of the last worker that locked this GPU; it may have ended. None if no worker ever did."""
    try:
        return int(_lock_of(state_dir, card).read_text())
    except (OSError, ValueError):
        return None


def _lock_of(state_dir: Path, card: Card) -> Path:
    part = "" if card.instance is None else f"-{card.instance.replace('/', '-')}"
    return state_dir / f"gpu-{card.number}{part}.lock"


@contextmanager
def hold(state_dir: Path, cards: Sequence[Card]) -> Iterator[None]:
    """Lock these GPUs inside the block, all or none, so that no second vbatch worker uses one of them.

    Raises EngineUnavailable if another worker has one. Does nothing if vLLM does not compute on a GPU. They are locked
    in one order for all workers: of two that want the same ones, one gets them all.
    """
    if not installed.computes_on_gpu():
        yield
        return
    state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    with ExitStack() as stack:
        handles = [
            stack.enter_context(_locked(state_dir, card))
            for card in sorted(set(cards), key=lambda card: (card.number, card.instance or ""))
        ]
        for handle in handles:  # only now: a worker that gets no GPU is no worker of any
            os.truncate(handle, 0)
            os.pwrite(handle, str(os.getpid()).encode(), 0)
        yield


@contextmanager
def _locked(state_dir: Path, card: Card) -> Iterator[int]:
    with ExitStack() as stack:
        try:
            handle = stack.enter_context(files.locked(_lock_of(state_dir, card), wait=False))
        except BlockingIOError:
            raise EngineUnavailable(
                f"GPU {card.number} already has a worker "
                f"(process {last_worker_pid(state_dir, card) or 'unknown'})",
                hint="one worker is enough for a GPU; to use another GPU: vbatch run-worker --gpu N",
            ) from None
        yield handle
