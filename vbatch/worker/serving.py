"""Work with one loaded engine: claim, answer, save, until there is a reason to stop."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Sequence
from datetime import timedelta
from enum import Enum, auto

from vbatch.answers import CUT_OFF, EMPTY
from vbatch.engine import Engine, courtesy
from vbatch.errors import Interrupted
from vbatch.store import bodies, crashes, queue
from vbatch.store.ready import Closed
from vbatch.store.records import CHUNK_REQUESTS, Lease, LeaseKey, Result, Waiting
from vbatch.system import suspend
from vbatch.worker.chat import Chat
from vbatch.worker.choosing import choose
from vbatch.worker.context import Background, Context
from vbatch.worker.inflight import Inflight
from vbatch.worker.pause import Draining
from vbatch.worker.stop import AT_REST

log = logging.getLogger(__name__)

LOOK = 1.0  # seconds between two looks at the store: new work, cancelled batches, better priorities
FLUSH_RESULTS = 256  # saved at once, without waiting for the flush interval


class Ended(Enum):
    """Why serving stopped."""

    NO_WORK = auto()  # nothing is left for this model, or another model goes first
    STOPPED = auto()  # a stop or a pause; what ran is saved, the rest is released
    CRASHED = auto()  # the engine crashed


class Serving:
    """One engine at work.

    Things happen at once and never wait for each other: the loop starts requests, one background call claims, one reads
    large bodies, one saves. So a store outage stops claiming and saving, not the requests already leased; the answers
    held meanwhile are bounded by what was leased. ``slept_before``: the machine's sleep until the load.
    ``guarded``: the engine crashed, so no ``chat`` may run beside the batch until that has a good answer.
    """

    def __init__(
        self,
        context: Context,
        engine: Engine,
        model: str,
        *,
        servable: Callable[[Sequence[Waiting]], Sequence[Waiting]],
        saved: Callable[[], None],
        slept_before: timedelta,
        raise_failures: Callable[[], None],
        closed: Closed,
        chat: Chat,
        guarded: bool = False,
    ) -> None:
        settings = context.settings
        self._context = context
        self._engine = engine
        self._model = model
        self._servable = servable
        self._saved = saved
        self._closed = closed
        self._slept_before = slept_before
        self._raise_failures_beside = raise_failures
        self._chat, self._guarded = chat, guarded
        self._limit = courtesy.inflight_limit(engine, settings)
        self._inflight = Inflight(engine, limit=self._limit, request_timeout=settings.request_timeout)
        self._claim = Background(context, self._claim_chunks)
        self._read = Background(context, self._read_bodies)
        self._save = Background(context, self._save_answers)
        self._check = Background(context, self._check_leases)
        self._exhausted = False
        self._draining = Draining(context)
        self.crash_cause, self.progressed = "", False

    async def run(self) -> Ended:
        """Serve until there is no work for this model, a stop or pause is requested, or the engine crashes.

        Raises StoreMisconfigured when the store refuses this worker for good.
        """
        inflight = self._inflight
        while True:
            self._context.watchdog.reset()
            self._raise_failures()
            if (cause := self._engine.died or self._stalled()) is not None:
                return await self._crashed(cause)
            if self._draining.wanted:
                self._inflight.drop_pending()  # again and again: a claim that was under way brings more
                if self._draining.over(at_rest=self._at_rest, running=self._inflight.running):
                    return await self._stopped()
            elif self._claim.ready(LOOK if self._exhausted else 0) and self._wants_work():
                self._claim.start()
            if self._read.ready(0) and inflight.page() is not None:
                self._read.start()
            self._chat.refuse(self._reason_against_chat())
            inflight.start(chats=self._chat.running)
            if self._save_due():
                self._save.start()
            if self._check.ready(LOOK) and inflight.leases:
                self._check.start()
            if self._at_rest and self._exhausted and not self._draining.wanted:
                return Ended.NO_WORK
            self._show()
            await self._next_event()

    @property
    def _at_rest(self) -> bool:
        return self._inflight.idle and not any(call.running for call in (self._claim, self._read, self._save))

    def _raise_failures(self) -> None:
        self._raise_failures_beside()
        calls = (self._claim, self._read, self._save, self._check)
        for failure in (self._inflight.failure, *(call.failure for call in calls)):
            if failure is not None:
                raise failure

    async def _next_event(self) -> None:
        try:
            async with asyncio.timeout(LOOK / 4):
                await self._inflight.changed.wait()
        except TimeoutError:
            return
        self._inflight.changed.clear()

    def _wants_work(self) -> bool:
        wanting = self._inflight.wanting
        return wanting > 0 and (wanting >= CHUNK_REQUESTS or wanting * 2 >= self._limit)

    async def _claim_chunks(self) -> None:
        chunks = math.ceil(self._inflight.wanting / CHUNK_REQUESTS)
        held, room = self._inflight.leases, self._inflight.room
        leases = await self._context.in_store(self._claim_in_store, chunks, held, room)
        self._exhausted = not leases
        self._inflight.add(leases)
        self._inflight.changed.set()

    def _claim_in_store(self, chunks: int, held: frozenset[LeaseKey], room: int) -> list[Lease]:
        store, registration = self._context.store, self._context.registration
        waiting = self._servable(queue.waiting(store, closed=self._closed))
        if choose(waiting, loaded=self._model) != self._model:
            return []
        return queue.claim(
            store,
            worker=self._context.worker,
            models=self._engine.names,
            chunks=chunks,
            held=held,
            closed=self._closed,
            room=room,
            heartbeat=registration.heartbeat,
            on_heartbeat=registration.reached,
        )

    async def _read_bodies(self) -> None:
        page = self._inflight.page()
        if page is not None:
            requests = await self._context.in_store(bodies.read, self._context.store, page.lease, page.unread)
            self._inflight.fill(page, requests)

    def _save_due(self) -> bool:
        answered = len(self._inflight.answered)
        interval = self._context.settings.flush_interval.total_seconds()
        enough = answered >= FLUSH_RESULTS or self._inflight.to_be_saved
        return answered > 0 and self._save.ready(0 if enough else interval)

    async def _save_answers(self) -> None:
        results = self._inflight.take_answered()
        if not results:
            return
        try:
            flushed = await self._context.in_store(
                queue.flush, self._context.store, worker=self._context.worker, results=results
            )
        except Interrupted:
            self._inflight.give_back(results)
            raise
        self._inflight.saved()
        self.progressed |= any(result.outcome.succeeded for result in results)
        self._inflight.forget(flushed.rejected | flushed.finished)
        self._count(results, recorded=flushed.recorded)
        if flushed.rejected:
            log.info("chunks.rejected count=%d", len(flushed.rejected))
        if flushed.finished:
            self._saved()

    def _count(self, results: Sequence[Result], *, recorded: int) -> None:
        prompt_tokens = sum(result.outcome.prompt_tokens for result in results)
        completion_tokens = sum(result.outcome.completion_tokens for result in results)
        self._context.meter.add(
            requests=recorded, prompt_tokens=prompt_tokens, completion_tokens=completion_tokens
        )
        self._context.view.count(
            saved=recorded,
            failed=min(recorded, sum(not result.outcome.succeeded for result in results)),
            cut_off=sum(result.outcome.finish == CUT_OFF for result in results),
            empty=sum(result.outcome.finish == EMPTY for result in results),
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
        )

    async def _check_leases(self) -> None:
        leases = self._inflight.leases
        still_held = await self._context.in_store(
            queue.held_by, self._context.store, worker=self._context.worker
        )
        lost = (leases - still_held) & self._inflight.leases
        if lost:
            if not self._save.running:  # else they may just be done
                log.info("chunks.revoked count=%d", len(lost))
            self._inflight.forget(lost)
            self._saved()

    def _stalled(self) -> str | None:
        """Return a cause when requests or chats run but the engine has not produced a token for too long.

        An engine that has nothing to do is not idle but suspected where the last request was given up on.
        """
        return self._chat.stalled(busy=self._inflight.running > 0 or self._inflight.stalled)

    def _reason_against_chat(self) -> str | None:
        if self._context.pausing.active is not None:
            return "the worker is paused"
        if self._inflight.alone:
            return "the worker finds out which request crashes its engine"
        if self._guarded and not self.progressed:
            return "the engine crashed, and its batch goes first"
        return None

    async def _stopped(self) -> Ended:
        """Save what is answered, release what is not, as far as the store can be reached."""
        await self._inflight.abandon()
        if not self._context.stop.requested:
            pass  # a pause: the store may take its time
        elif self._at_rest:
            self._context.stop.abandon_store_after(AT_REST)
        else:  # the limit has passed
            self._context.stop.store.set()
        await self._settle(crashed={})
        return Ended.STOPPED

    async def _crashed(self, cause: str) -> Ended:
        self.crash_cause = cause
        suspects = await self._inflight.abandon()
        if suspend.since_boot() - self._slept_before > suspend.NAP:
            log.warning("machine.slept accused=0")
            suspects = {}  # the driver did not survive the suspend: no request is the cause
        await self._settle(crashed=suspects)
        return Ended.CRASHED

    async def _settle(self, *, crashed: dict[LeaseKey, tuple[int, ...]]) -> None:
        """Bring the store up to date with an engine that runs nothing any more."""
        store, worker = self._context.store, self._context.worker
        for call in (self._claim, self._read, self._save):
            await call.finish()
        try:
            while self._inflight.answered:
                await self._save_answers()
            held = self._inflight.leases
            if accused := {key: seqs for key, seqs in crashed.items() if key in held}:
                await self._context.in_store(
                    crashes.record_engine_crash,
                    store,
                    worker=worker,
                    suspects_of=accused,
                    cause=self.crash_cause,
                    killed=self._engine.killed,
                )
            if innocent := held - accused.keys():
                await self._context.in_store(queue.release, store, worker=worker, keys=innocent)
            self._inflight.forget(self._inflight.leases)
        except Interrupted:
            log.warning("worker.unsaved results=%d reason=store_unreachable", len(self._inflight.answered))

    def _show(self) -> None:
        requests, prompt, completion = self._context.meter.rates()
        self._context.view.update(
            state="working",
            model=self._model,
            batch=self._inflight.newest_batch,
            running=self._inflight.running,
            requests_per_second=requests,
            prompt_tokens_per_second=prompt,
            completion_tokens_per_second=completion,
        )
