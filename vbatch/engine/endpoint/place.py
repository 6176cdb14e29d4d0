"""What is known of one server: its models, whether it is reached, paused or blocked, and how much it gets at once."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass

from vbatch.config.endpoints import EndpointSettings
from vbatch.engine.endpoint.client import Client
from vbatch.engine.endpoint.limits import Limit, Sent
from vbatch.engine.endpoint.rules import LONGEST_PAUSE, Closed, Scope
from vbatch.text import harmless

log = logging.getLogger(__name__)

FIRST_PAUSE = 0.25  # seconds without a Retry-After, doubled while nothing is answered
LONGEST_OWN_PAUSE = 30.0
TOLD = 5.0  # seconds: shorter pauses are the usual way to find out what a server takes
FIRST_BLOCK = 600.0  # seconds until what was blocked is tried again, doubled each time
LONGEST_BLOCK = 9600.0
NOT_ASKED = "it was not asked yet"


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Why a server cannot answer requests before a person changes something. ``until``: when it is tried again."""

    reason: str
    hint: str
    until: float
    lasts: float


class Place:
    """One server. Times are of ``clock``, monotonic seconds; ``on_change`` is called when more can be sent to it."""

    def __init__(
        self,
        name: str,
        settings: EndpointSettings,
        client: Client,
        *,
        ceiling: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self.url = settings.url
        self.client = client
        self.limit = Limit(ceiling=settings.max_inflight or ceiling, clock=clock)
        self.down: str | None = NOT_ASKED
        self.successes = 0
        self._settings = settings
        self._named = frozenset(settings.models)
        self._listed: frozenset[str] | None = None
        self._blocks: dict[tuple[str, str], Block] = {}
        self._own_pause = FIRST_PAUSE
        self.on_change: Callable[[], None] = lambda: None
        self._clock = clock
        self.paused_until = float("-inf")

    @property
    def shown(self) -> str:
        """Its name, and its address where the name is another."""
        return harmless(f"{self.name}" if self.name in self.url else f"{self.name} ({self.url})")

    @property
    def models(self) -> frozenset[str] | None:
        """The models that it has for this worker; None while that is not known."""
        return self._named or self._listed

    @property
    def lists_models(self) -> bool:
        """Whether it has to say which models it has: the configuration does not."""
        return not self._settings.models

    def block_of(self, model: str = "", url: str = "") -> Block | None:
        """Return why it does not answer for this model at this url, where a person must change something."""
        now = self._clock()
        for key in (("", ""), (model, ""), ("", url)):
            block = self._blocks.get(key)
            if block is not None and now < block.until:
                return block
        return None

    def takes(self, model: str, url: str) -> bool:
        """Whether it can be sent one more request now."""
        return (
            self.down is None
            and self.limit.free > 0
            and model in (self.models or ())
            and self._clock() >= self.paused_until
            and self.block_of(model, url) is None
        )

    def succeeded(self, sent: Sent, model: str, url: str, tokens: int) -> None:
        """Take an answer: it works, for this model at this url."""
        self.successes += 1
        self._own_pause = FIRST_PAUSE
        if self._blocks:
            now = self._clock()
            for key in (("", ""), (model, ""), ("", url)):
                block = self._blocks.get(key)
                if block is not None and now >= block.until:  # else it was sent before that
                    del self._blocks[key]
        self.limit.answered(sent, tokens)

    def full(self, sent: Sent, pause: float | None) -> float:
        """Take that it refused a request for now: halve and pause, once for all that were sent before; for how long."""
        return self._pause(pause) if self.limit.refused(sent, full=True) else 0.0

    def broke(self, sent: Sent, cause: str, *, reached: bool) -> float:
        """Take that a connection broke: halve and pause once; without any connection it is down."""
        halved = self.limit.refused(sent, full=False)
        if not reached:
            self.lost(cause)
            return 0.0
        return self._pause(None) if halved else 0.0

    def slow(self, sent: Sent) -> None:
        """Take that a request took longer than it may."""
        self.limit.refused(sent, full=False)

    def lost(self, cause: str) -> None:
        """Note that it cannot be reached."""
        if self.down in (None, NOT_ASKED):
            log.warning("remote.down endpoint=%s cause=%s", self.shown, cause)
        self.down = cause

    def found(self, models: frozenset[str] | None) -> None:
        """Note that it can be reached, and which models it lists; None where it lists none."""
        if models is not None and models != self._listed:
            self._listed = models
            log.info("remote.models endpoint=%s models=%s", self.shown, ",".join(sorted(models)[:10]))
        if self.down is not None:
            self.down = None
            log.info("remote.up endpoint=%s", self.shown)
        self.on_change()

    def close(self, closed: Closed, model: str = "", url: str = "") -> None:
        """Block it, wholly or for a model or a route, and fail nothing."""
        keys = {Scope.ALL: ("", ""), Scope.MODEL: (model, ""), Scope.ROUTE: ("", url)}
        key, now = keys[closed.scope], self._clock()
        before = self._blocks.get(key)
        if before is not None and now < before.until:
            return
        lasts = min(before.lasts * 2, LONGEST_BLOCK) if before is not None else FIRST_BLOCK
        what = {Scope.ALL: "", Scope.MODEL: f"{harmless(model)}: ", Scope.ROUTE: f"{url}: "}[closed.scope]
        reason = f"{what}the endpoint {self.shown} {closed.reason}"
        self._blocks[key] = Block(reason=reason, hint=self._hint(closed), until=now + lasts, lasts=lasts)
        log.error(
            "remote.blocked endpoint=%s cause=%s hint=%s", self.shown, closed.reason, self._hint(closed)
        )

    @property
    def blocked_until(self) -> float | None:
        """When it is tried again; None where it is not blocked as a whole."""
        block = self._blocks.get(("", ""))
        return block.until if block is not None and self._clock() < block.until else None

    def _hint(self, closed: Closed) -> str:
        """Name the variable of the key where the key is the matter."""
        if not closed.about_key:
            return closed.hint
        if self._settings.api_key_env is not None:
            return f"export {self._settings.api_key_env}=…, then restart the worker"
        return f'[endpoints."{harmless(self.name)}"] url = "{self.url}", api_key_env = "NAME", in config.toml'

    def _pause(self, asked: float | None) -> float:
        if asked is None:
            asked = self._own_pause * random.uniform(0.75, 1.25)
            self._own_pause = min(self._own_pause * 2, LONGEST_OWN_PAUSE)
        seconds = min(asked, LONGEST_PAUSE)
        self.paused_until = max(self.paused_until, self._clock() + seconds)
        level = logging.INFO if seconds >= TOLD else logging.DEBUG
        log.log(
            level, "remote.paused endpoint=%s seconds=%.1f limit=%d", self.shown, seconds, self.limit.value
        )
        return seconds
