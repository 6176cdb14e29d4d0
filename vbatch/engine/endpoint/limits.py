"""How many requests one server gets at once: as many as it takes, and no more than make it faster.

It grows from ``START``, first by doubling, while what the server writes per second grows with it. 429, 503, a timeout
and a broken connection halve it, once per pause. What the server took before that is remembered: the limit returns
there quickly, and tries more only now and then. The speed is the second signal, for servers that queue without end and
never refuse: at a full limit, latency and tokens per second are one figure (Little's law), so either of them will do.
Less is tried as well as more, for the speed is noisy, and what only seemed to be faster would add up.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

START = 8
CEILING = 256  # without a max_inflight
GAIN = 1.02  # what a larger limit must bring, in tokens (or answers) per second
KEPT = 0.99  # what a smaller one may not fall below: else the larger one was only luck
WINDOW = 32  # answers, at least, between two looks at the speed
TRY_AFTER = 10.0  # seconds until more than the server has taken is tried; doubled each time that it refuses
TRY_AFTER_MOST = 160.0
LONGEST_HOLD = 16  # windows


@dataclass(frozen=True, slots=True)
class Sent:
    """One request that was sent: as the how-manieth at once, and when."""

    place: int
    at: float


@dataclass(frozen=True, slots=True)
class _Rung:
    """A limit, and what the server wrote per second at it."""

    limit: int
    speed: float


class Limit:
    """The limit of one server, by its answers. Times are of ``clock``, monotonic seconds."""

    def __init__(self, *, ceiling: int | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._ceiling = ceiling or CEILING
        self.value = min(START, self._ceiling)
        self.running = 0
        self.taken: int | None = None  # as many at once as the server was seen to take, where it refused more
        self._doubling = True
        self._refuses = False
        self._most = 0  # the highest place that was answered since the limit was halved
        self._trying = False  # more than the server has taken
        self._base: _Rung | None = None  # what the present limit is compared with
        self._up = True
        self._hold = 1
        self._settling = self._answers = self._answers_before = self._tokens = self._windows = 0
        self._try_after = TRY_AFTER
        self._tried_at = self._halved_at = float("-inf")
        self._begin()

    @property
    def free(self) -> int:
        """How many more may be sent now."""
        return self.value - self.running

    def send(self) -> Sent:
        """Count one more, that is sent now."""
        self.running += 1
        if self.running >= self.value:
            self._was_full = True
        return Sent(self.running, self._clock())

    def end(self) -> None:
        """Count one less: it has ended, however it did."""
        self.running -= 1

    def answered(self, sent: Sent, tokens: int = 0) -> None:
        """Take an answer as a sign that the server can do this much."""
        if sent.at > self._halved_at:
            self._most = max(self._most, sent.place)
        if self._settling > 0 and not (self.taken is not None and self.value < self.taken):
            self._settling -= 1  # sent under the limit before: its speed is not of this one
            if not self._settling:
                self._began = self._clock()
            return
        self._answers += 1
        self._tokens += tokens
        if self.taken is not None and self.value < self.taken:
            self._set(self.value + 1)
        elif self._answers >= max(WINDOW, self.value):
            self._end_window()

    def refused(self, sent: Sent, *, full: bool) -> bool:
        """Halve, but not for what was sent before the last time; say whether it was halved.

        ``full``: the server said that it takes no more. What it answered since the last time, and the request that was
        the first too many, show how many it does take.
        """
        now = self._clock()
        if sent.at <= self._halved_at:
            return False
        half = max(1, self.value // 2)
        if self._most:  # else it answers nothing at all now: that says nothing of how many it takes
            self.taken = min(self.value, max(half, self._most, sent.place - 1 if full else 0))
        if full:
            self._doubling, self._refuses = False, True
            if self._trying:
                self._try_after = min(self._try_after * 2, TRY_AFTER_MOST)
            self._tried_at = now
        self._halved_at = now
        self._most, self._trying, self._base = 0, False, None
        self._set(half)
        return True

    def _end_window(self) -> None:
        """Look at the speed, once the limit was used for long enough: try another, or return to the one before."""
        if not self._was_full:  # there was not enough to do: that says nothing of the limit
            self._begin()
            return
        self._windows += 1
        if self._windows < self._hold:
            self._answers_before += self._answers
            self._answers = 0
            return
        answers = self._answers_before + self._answers
        now = self._clock()
        speed = (self._tokens or answers) / max(now - self._began, 1e-6)
        base, self._base, self._trying = self._base, None, False
        if base is not None:
            up = self.value > base.limit
            if speed < base.speed * (GAIN if up else KEPT):
                self._doubling = False
                self._up = not up
                self._hold = min(max(4, self._hold * 2), LONGEST_HOLD)
                self._set(base.limit)
                return
            self._hold = 1
            if up:
                self._try_after = TRY_AFTER
        self._step(speed)

    def _step(self, speed: float) -> None:
        """Try the next limit, up or down, against the speed at this one."""
        waits = self.taken is not None and self._clock() - self._tried_at < self._try_after
        # A server that refuses says when it is too much: larger steps are seen better in a noisy speed.
        step = self.value if self._doubling else max(1, self.value // (3 if self._refuses else 8))
        if self.value >= self._ceiling:
            self._up = False
        if self._up and not waits:
            if self.taken is not None:
                self._tried_at, self.taken, self._trying = self._clock(), None, True
            self._base = _Rung(self.value, speed)
            self._set(self.value + step)
        elif not self._up and self.taken is None and self.value > 1 and not self._doubling:
            self._base = _Rung(self.value, speed)
            self._set(self.value - step)
        else:
            self._up = True
            self._begin()

    def _set(self, value: int) -> None:
        self.value = min(max(1, value), self._ceiling)
        self._begin()
        self._settling = self.running

    def _begin(self) -> None:
        """Begin a window."""
        self._began = self._clock()
        self._was_full = False
        self._settling = 0
        self._answers = self._answers_before = self._tokens = self._windows = 0
