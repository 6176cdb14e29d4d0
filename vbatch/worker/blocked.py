"""The models that could not be loaded, and when each is tried again.

A blocked model is tried again when its folder or its configuration has changed, after 10, 20, … 160 minutes, and then
only when nothing else waits. A new worker knows of no block and tries each once. ``Seen`` says what has changed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial

from vbatch.store.records import Waiting

FIRST_PAUSE = timedelta(minutes=10)
LAST_PAUSE = timedelta(minutes=160)
LOOK = timedelta(seconds=20)  # between two looks at the folder and the configuration of a blocked model


class Seen:
    """What decides whether a model can be loaded, as it was at a load: what its folder holds, how it is configured.

    A folder that is still being filled changes from look to look, and has not changed before it is the same twice.
    """

    def __init__(self, look: Callable[[], object]) -> None:
        self._look = look
        self._state = self._last = look()
        self._looked = time.monotonic()

    def changed(self) -> bool:
        """Return whether that is another now; it is looked at every ``LOOK``, and in between this is false."""
        now = time.monotonic()
        if now - self._looked < LOOK.total_seconds():
            return False
        self._looked = now
        state = self._look()
        settled, self._last = state == self._last, state
        return settled and state != self._state


@dataclass(slots=True, kw_only=True)
class _Block:
    """When a model is tried again. Times are monotonic."""

    seen: Seen
    pause: float
    since: float

    @property
    def rarely(self) -> bool:
        """Whether it is tried only when nothing else waits."""
        return self.pause > LAST_PAUSE.total_seconds()


class Blocked:
    """What one worker knows of models that could not be loaded.

    ``state_of`` returns whatever decides whether a model can be loaded: what its folder holds, how it is configured.
    """

    def __init__(self, state_of: Callable[[str], object]) -> None:
        self._state_of = state_of
        self._blocks: dict[str, _Block] = {}

    def __contains__(self, model: str) -> bool:
        return model in self._blocks

    def block(self, model: str) -> None:
        """Note that a model could not be loaded, or not for another time."""
        earlier = self._blocks.get(model)
        pause = earlier.pause * 2 if earlier else FIRST_PAUSE.total_seconds()
        seen = Seen(partial(self._state_of, model))
        self._blocks[model] = _Block(seen=seen, pause=pause, since=time.monotonic())

    def loaded(self, model: str) -> None:
        """Note that a model was loaded."""
        self._blocks.pop(model, None)

    def without(self, waiting: Sequence[Waiting]) -> list[Waiting]:
        """Return what waits for models that may be tried now."""
        often = [entry for entry in waiting if not self._is_closed(entry.model)]
        if often:
            return often
        now = time.monotonic()
        return [
            entry
            for entry in waiting
            if (block := self._blocks[entry.model]).rarely and now - block.since >= LAST_PAUSE.total_seconds()
        ]

    def _is_closed(self, model: str) -> bool:
        """Whether it is not to be tried now."""
        block = self._blocks.get(model)
        if block is None:
            return False
        now = time.monotonic()
        if not block.rarely and now - block.since >= block.pause:
            return False
        return not block.seen.changed()
