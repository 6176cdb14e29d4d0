"""What a worker does about models that it cannot load, and endpoints that a loaded one cannot do: the requests wait.

The reason goes into the store, where it stays when the worker has ended. When a model is tried again says
``vbatch.worker.blocked``. An endpoint is tried again when the folder or the configuration of its model has changed, and
by a new worker: another load of the same has the same endpoints.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from vbatch.engine import Blame, Engine, EngineStartFailed, endpoints
from vbatch.errors import OnlyBlocked
from vbatch.protocol import ENDPOINTS
from vbatch.store import blocked
from vbatch.store.blocked import OpenWork
from vbatch.store.records import Waiting
from vbatch.system import processes
from vbatch.text import harmless
from vbatch.worker import models
from vbatch.worker.blocked import FIRST_PAUSE, Blocked, Seen
from vbatch.worker.context import Context

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Load:
    """Where a model answered when it was loaded, and what it was made of."""

    served: frozenset[str]
    lacking: Mapping[str, str]
    seen: Seen


class Blocking:
    """The blocked models of one worker. ``endpoints`` are the urls at which a model that was loaded does not answer."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._models = Blocked(lambda model: models.state_of(context, model))
        self._loads: dict[str, _Load] = {}
        self._recorded: dict[tuple[str, str], float] = {}  # when, monotonic
        self.endpoints: dict[str, frozenset[str]] = {}

    def without(self, waiting: Sequence[Waiting]) -> list[Waiting]:
        """Return what waits for models that may be tried now."""
        return self._models.without(waiting)

    async def block(self, model: str, error: EngineStartFailed) -> None:
        """Leave what waits for a model that cannot be loaded in the queue, with the reason; the rest continues."""
        context, cause = self._context, models.cause_and_log(error)
        self._models.block(model)
        await context.in_store(blocked.record, context.store, models.blocked(context, model, error))
        context.view.update(trouble=None, blocked={**context.view.snapshot.blocked, model: cause})
        log.error("model.blocked model=%s cause=%s hint=%s", model, cause, error.hint)

    async def loaded(self, model: str, engine: Engine) -> None:
        """Take back that the names of an engine are blocked, but not for the endpoints at which it does not answer.

        Those are closed before the first claim, so that no request of a batch that comes later runs into one either.
        """
        for name in (model, *sorted(engine.names - {model})):
            await self._answers(name, engine)
        for name, reason in engine.refused.items():
            if name not in engine.names:
                await self.block(name, models.refused(name, reason))
        await self.record_endpoints()

    async def _answers(self, model: str, engine: Engine) -> None:
        context, served = self._context, engine.endpoints
        if model in self._models:
            log.info("model.unblocked model=%s", model)
        self._models.loaded(model)
        self._open(model)
        if served is not None:
            seen = Seen(partial(models.state_of, context, model))
            self._loads[model] = _Load(served=frozenset(served), lacking=dict(engine.lacking), seen=seen)
            self.endpoints[model] = frozenset(ENDPOINTS).difference(served)
        await context.in_store(
            blocked.clear, context.store, host=processes.current().host, model=model, answers_at=served
        )

    async def record_endpoints(self) -> None:
        """Record why requests wait for endpoints at which their model did not answer when it was loaded.

        Now and then once more: batches that have come since are then notified.
        """
        context = self._context
        for model, load in list(self._loads.items()):
            urls = await context.in_store(blocked.waiting_urls, context.store, model=model)
            for url in self.endpoints.get(model, frozenset()).intersection(urls):
                now, before = time.monotonic(), self._recorded.get((model, url))
                if before is not None and now - before < FIRST_PAUSE.total_seconds():
                    continue
                self._recorded[model, url] = now
                reason, hint = endpoints.missing(model, url, load.served, load.lacking)
                if before is None:
                    shown = {**context.view.snapshot.blocked, f"{model} {url}": reason}
                    context.view.update(blocked=shown)
                    log.error("endpoint.blocked model=%s url=%s cause=%s hint=%s", model, url, reason, hint)
                error = EngineStartFailed(reason, transient=False, blame=Blame.MODEL, hint=hint)
                row = models.blocked(context, model, error, url=url)
                await context.in_store(blocked.record, context.store, row)

    async def block_endpoint(self, model: str, url: str, error: EngineStartFailed) -> None:
        """Leave what waits for a model at one endpoint in the queue, with the reason; its other requests continue."""
        context, cause = self._context, models.cause_and_log(error)
        self.endpoints[model] = self.endpoints.get(model, frozenset()) | {url}
        await context.in_store(blocked.record, context.store, models.blocked(context, model, error, url=url))
        context.view.update(blocked={**context.view.snapshot.blocked, f"{model} {url}": cause})
        log.error("endpoint.blocked model=%s url=%s cause=%s hint=%s", model, url, cause, error.hint)

    async def opened(self, model: str, url: str = "") -> None:
        """Take back that a model, or one endpoint of it, is blocked: a server answers there."""
        context = self._context
        if url:
            self.endpoints[model] = self.endpoints.get(model, frozenset()) - {url}
        elif model in self._models:
            log.info("model.unblocked model=%s", model)
            self._models.loaded(model)
        gone = f"{model} {url}" if url else model
        still = {name: cause for name, cause in context.view.snapshot.blocked.items() if name != gone}
        context.view.update(blocked=still)
        host, urls = processes.current().host, [url] if url else []
        await context.in_store(blocked.clear, context.store, host=host, model=model, answers_at=urls)

    def __contains__(self, model: str) -> bool:
        return model in self._models

    def reopen(self) -> set[str]:
        """Return the models of which requests wait for an endpoint, and that have changed since they were loaded.

        Only the next load shows where these answer now.
        """
        waited_for = {model for model, _ in self._recorded}
        changed = {model for model in waited_for if (load := self._loads.get(model)) and load.seen.changed()}
        for model in changed:
            log.info("endpoint.reopened model=%s", model)
            self._open(model)
        return changed

    def _open(self, model: str) -> None:
        self.endpoints.pop(model, None)
        self._loads.pop(model, None)
        gone = {model}
        for key in [each for each in self._recorded if each[0] == model]:
            del self._recorded[key]
            gone.add(" ".join(key))
        blocked_now = self._context.view.snapshot.blocked
        still = {name: cause for name, cause in blocked_now.items() if name not in gone}
        self._context.view.update(blocked=still)

    def holds(self, work: OpenWork) -> bool:
        """Return whether these requests wait for a model that is blocked here, or an endpoint that it cannot do."""
        closed = work.model in self._models or work.url in self.endpoints.get(work.model, ())
        return closed and not work.running

    async def raise_if_any(self, left: Sequence[OpenWork]) -> None:
        """Raise OnlyBlocked, which names all that is blocked on this host and has requests waiting."""
        host, context = processes.current().host, self._context
        known = [
            each
            for each in await context.in_store(blocked.known, context.store)
            if each.host == host
            and any(work.model == each.model and each.url in ("", work.url) for work in left)
        ]
        if known:
            raise OnlyBlocked(
                "only requests that no model here can answer are left",
                causes=[(harmless(each.model), each.reason, each.hint) for each in known],
            )
