"""The models that could not be loaded: whose fault that is taken to be, and for how long each is left alone."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

from vbatch.engine import Blame, EngineStartFailed
from vbatch.store.records import Waiting

LEFT_ALONE = 600.0  # seconds until a model that others serve, or that could be loaded before, is tried again


@dataclass(frozen=True, slots=True, kw_only=True)
class _Refusal:
    """Why a model is not to be loaded. ``suspected``: it is the model's fault if another one can be loaded."""

    error: EngineStartFailed | None = None
    suspected: bool = False
    until: float = math.inf


class Unloadable:
    """What one worker knows of models that could not be loaded, and of those that could."""

    def __init__(self) -> None:
        self._loaded: set[str] = set()
        self._refusals: dict[str, _Refusal] = {}

    def without(self, waiting: Sequence[Waiting]) -> list[Waiting]:
        """Return what waits for models that may be tried."""
        now = time.monotonic()
        return [
            entry
            for entry in waiting
            if (refusal := self._refusals.get(entry.model)) is None or now >= refusal.until
        ]

    def reason(self, waiting: Sequence[Waiting]) -> tuple[str, EngineStartFailed] | None:
        """Return one of the models that were set aside, and why; None where all are left to other workers."""
        for entry in waiting:
            refusal = self._refusals.get(entry.model)
            if refusal is not None and refusal.error is not None:
                return entry.model, refusal.error
        return None

    def loaded(self, model: str) -> dict[str, EngineStartFailed]:
        """Note that a model was loaded; return those whose fault it is, for engines do start here."""
        self._loaded.add(model)
        self._refusals.pop(model, None)
        guilty = {
            other: refusal.error
            for other, refusal in self._refusals.items()
            if refusal.suspected and refusal.error is not None
        }
        for other in guilty:
            del self._refusals[other]
        return guilty

    def failed(self, model: str, error: EngineStartFailed) -> bool:
        """Note that a model could not be loaded; say whether it is the model's fault.

        It is not where the same worker could load it before: then the machine has changed (memory that
        somebody took, a driver after a suspend). Nor where trying again may help and nobody knows the reason
        (a model hub that is away). Both are set aside for a while. What else nobody knows the reason of is the
        model's fault if another one can be loaded.
        """
        unknown = error.blame is Blame.UNKNOWN
        if model in self._loaded or (unknown and error.transient):
            self._refusals[model] = _Refusal(error=error, until=time.monotonic() + LEFT_ALONE)
            return False
        if unknown and not self._loaded:
            self._refusals[model] = _Refusal(error=error, suspected=True)
            return False
        return True

    def leave_to_others(self, model: str) -> None:
        """Do not try it for a while: another worker has it loaded."""
        self._refusals[model] = _Refusal(until=time.monotonic() + LEFT_ALONE)
