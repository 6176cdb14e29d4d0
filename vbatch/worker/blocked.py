"""The models that could not be loaded: why each is blocked, and for how long."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

from vbatch.engine import Blame, EngineStartFailed
from vbatch.store.records import Waiting

PAUSE = 600.0  # seconds until a model that others serve, or that could be loaded before, is tried again


@dataclass(frozen=True, slots=True, kw_only=True)
class _Block:
    """Why a model is not to be loaded. ``suspected``: the model is the cause if another one can be loaded."""

    error: EngineStartFailed | None = None
    suspected: bool = False
    until: float = math.inf


class Blocked:
    """What one worker knows of models that could not be loaded, and of those that could."""

    def __init__(self) -> None:
        self._loaded: set[str] = set()
        self._blocks: dict[str, _Block] = {}

    def without(self, waiting: Sequence[Waiting]) -> list[Waiting]:
        """Return what waits for models that may be tried."""
        now = time.monotonic()
        return [
            entry
            for entry in waiting
            if (block := self._blocks.get(entry.model)) is None or now >= block.until
        ]

    def reason(self, waiting: Sequence[Waiting]) -> tuple[str, EngineStartFailed] | None:
        """Return one of the blocked models, and its failure; None where all are left to other workers."""
        for entry in waiting:
            block = self._blocks.get(entry.model)
            if block is not None and block.error is not None:
                return entry.model, block.error
        return None

    def loaded(self, model: str) -> dict[str, EngineStartFailed]:
        """Note that a model was loaded; return the suspected ones with their failures: engines do start here."""
        self._loaded.add(model)
        self._blocks.pop(model, None)
        guilty = {
            other: block.error
            for other, block in self._blocks.items()
            if block.suspected and block.error is not None
        }
        for other in guilty:
            del self._blocks[other]
        return guilty

    def failed(self, model: str, error: EngineStartFailed) -> bool:
        """Note that a model could not be loaded; return whether the model is the cause.

        It is not where the same worker could load it before: then the machine has changed (memory that another
        process took, a driver after a suspend). Nor where the reason is unknown and trying again may help (a model hub
        that is unreachable). Both are blocked for a while. With any other unknown reason the model is the cause if
        another one can be loaded.
        """
        unknown = error.blame is Blame.UNKNOWN
        if model in self._loaded or (unknown and error.transient):
            self._blocks[model] = _Block(error=error, until=time.monotonic() + PAUSE)
            return False
        if unknown and not self._loaded:
            self._blocks[model] = _Block(error=error, suspected=True)
            return False
        return True

    def leave_to_others(self, model: str) -> None:
        """Do not try it for a while: another worker has it loaded."""
        self._blocks[model] = _Block(until=time.monotonic() + PAUSE)
