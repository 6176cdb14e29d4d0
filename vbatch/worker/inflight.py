"""The leased requests of one engine: waiting to start, running, and answered but not yet saved."""

from __future__ import annotations

import asyncio
import sys
from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from datetime import timedelta
from itertools import accumulate

from vbatch.engine import Engine, EngineDied, NotSent, Reply
from vbatch.store.records import Lease, LeaseKey, Outcome, Request, Result
from vbatch.worker import outcomes
from vbatch.worker.pending import Page, Pending
from vbatch.worker.sizes import Kind, Sizes, kind_of

LOOK = 1.0  # seconds between two looks at an engine that gives nothing while requests are overdue
ATTEMPTS = 3  # of a request that the engine answers with 429 or 5xx, or whose audio cannot be had for now
INFLIGHT_BYTES = 256 << 20  # of bodies in the engine and of answers; what is larger runs alone
SAVED_BYTES = 32 << 20  # of answers in one transaction; one larger answer is saved alone


class Inflight:
    """Keeps the engine busy with up to ``limit`` requests and collects their results.

    Fewer run where they are large: what they and their answers are expected to take (``vbatch.worker.sizes``) is
    bounded by ``INFLIGHT_BYTES``, so that memory is flat, in an outage of the store too. One that is larger runs alone.
    There is no barrier between chunks: the next request starts when any one ends. The exception is a lease that
    the store wants to run alone (``vbatch.store.suspects``), so that a further crash is evidence against it.
    """

    def __init__(self, engine: Engine, *, limit: int, request_timeout: timedelta | None) -> None:
        self._engine = engine
        self.limit = limit
        self._timeout = request_timeout.total_seconds() if request_timeout else None
        self._leases: dict[LeaseKey, Lease] = {}
        self._pending = Pending()
        self._waiting_alone: deque[Lease] = deque()
        self._running: dict[asyncio.Task[None], tuple[Lease, Request, Kind]] = {}
        self._lost: set[tuple[LeaseKey, int]] = set()
        self._active = 0
        self._running_bytes = 0
        self._answered_bytes = 0
        self._saving_bytes = 0
        self._sizes = Sizes(INFLIGHT_BYTES)
        self._alone: LeaseKey | None = None
        self.answered: list[Result] = []
        self.failure: BaseException | None = None  # a defect of vbatch's: the loop raises it
        self.stalled = False  # the last request that ended was given up on, and the engine had done nothing
        self.changed = asyncio.Event()

    @property
    def leases(self) -> frozenset[LeaseKey]:
        """The leases that are held."""
        return frozenset(self._leases)

    @property
    def newest_batch(self) -> str | None:
        """The id of the batch that was leased last."""
        return next(reversed(self._leases.values())).batch_id if self._leases else None

    @property
    def running(self) -> int:
        """How many requests the engine has now."""
        return self._active

    @property
    def wanting(self) -> int:
        """How many more requests should be leased so that the engine never waits for the store."""
        if self._waiting_alone or self._alone is not None or self._pending.enough:
            return 0
        return max(0, self.limit - len(self._pending))

    @property
    def room(self) -> int:
        """How many bytes of bodies a claim may bring along."""
        return self._pending.room

    @property
    def idle(self) -> bool:
        """Whether nothing is pending, running or waiting to be saved."""
        return self.quiet and not (self._waiting_alone or self.answered)

    @property
    def alone(self) -> bool:
        """Whether a lease runs alone, or is the next to."""
        return self._alone is not None or (bool(self._waiting_alone) and self.quiet)

    @property
    def quiet(self) -> bool:
        """Whether nothing runs that could add to the answers before they are saved."""
        return not (self._pending or self._running)

    @property
    def to_be_saved(self) -> bool:
        """Whether there is enough for a transaction, or nothing can run before it."""
        return self._answered_bytes >= SAVED_BYTES // 2 or not self._running

    @property
    def _free(self) -> int:
        """How many bytes more may be in flight: without a limit for the only request."""
        if not (self._running or self._answered_bytes or self._saving_bytes):
            return sys.maxsize
        answers = self._answered_bytes + self._saving_bytes + int(self._sizes.running())
        return INFLIGHT_BYTES - self._running_bytes - answers

    def add(self, leases: Iterable[Lease]) -> None:
        """Take leased chunks. One without open requests is dropped: its last flush was recorded.

        Of a chunk whose lease was lost and that is leased again, what still runs under the old lease is aborted.
        """
        for lease in leases:
            self.forget({key for key in self._leases if key[:2] == lease.key[:2]})
            if not (lease.requests or lease.unread):
                continue
            self._leases[lease.key] = lease
            if lease.alone:
                self._waiting_alone.append(lease)
            else:
                self._pending.add(lease)

    def page(self) -> Page | None:
        """Return whose bodies are to be read now."""
        return self._pending.page(free=self._free)

    def fill(self, page: Page, requests: Sequence[Request]) -> None:
        """Take the bodies of a page."""
        self._pending.fill(page, requests)
        self.changed.set()

    def start(self, *, chats: int = 0) -> None:
        """Start what there is room for. What runs alone waits until all before it is saved, and until chats end."""
        if self._alone not in self.leases:
            self._alone = None
        if self._waiting_alone and self._alone is None and self.quiet and not chats:
            lease = self._waiting_alone.popleft()
            self._alone = lease.key
            self._pending.add(lease)
        while self._active < self.limit and (following := self._pending.next) is not None:
            lease, request = following
            kind = kind_of(lease, request)
            if len(request.body) + self._sizes.expected(kind) > self._free:
                return
            self._pending.pop()
            self._active += 1
            self._running_bytes += len(request.body)
            self._sizes.start(kind)
            task = asyncio.create_task(self._answer(lease, request, kind))
            self._running[task] = (lease, request, kind)
            task.add_done_callback(self._ended)

    def forget(self, leases: AbstractSet[LeaseKey]) -> None:
        """Drop leases that are finished or no longer held; what still runs of them is aborted."""
        if not leases:
            return
        for gone in leases & self.leases:
            del self._leases[gone]
        self._pending.forget(leases)
        self._waiting_alone = deque(lease for lease in self._waiting_alone if lease.key not in leases)
        for task, (lease, *_) in list(self._running.items()):
            if lease.key in leases:
                task.cancel()
        self.changed.set()

    def drop_pending(self) -> None:
        """Start nothing more; what runs continues."""
        self._pending.clear()
        self._waiting_alone.clear()

    def take_answered(self) -> list[Result]:
        """Take what is to be saved at once. Results of leases that are no longer held were dropped with them."""
        held = self.leases
        mine = [result for result in self.answered if result.key in held]
        sizes = [0, *accumulate(map(_size, mine))]
        count = max(1, bisect_right(sizes, SAVED_BYTES) - 1)
        taken, self.answered = mine[:count], mine[count:]
        self._saving_bytes = sizes[len(taken)]
        self._answered_bytes = sizes[-1] - self._saving_bytes
        return taken

    def saved(self) -> None:
        """Say that what was taken is in the store."""
        self._saving_bytes = 0

    def give_back(self, results: list[Result]) -> None:
        """Return results whose saving was interrupted."""
        self.answered = results + self.answered
        self._answered_bytes += self._saving_bytes
        self._saving_bytes = 0

    async def abandon(self) -> dict[LeaseKey, tuple[int, ...]]:
        """Stop everything that runs and return it: the ``seq`` numbers in the engine, by lease."""
        suspects: dict[LeaseKey, list[int]] = {}
        held = self.leases
        for lease, seq in self._lost | {
            (lease.key, request.seq) for lease, request, _ in self._running.values()
        }:
            if lease in held:
                suspects.setdefault(lease, []).append(seq)
        tasks = list(self._running)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self.drop_pending()
        return {key: tuple(sorted(seqs)) for key, seqs in suspects.items()}

    async def _answer(self, lease: Lease, request: Request, kind: Kind) -> None:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                reply = await self._post(lease, request)
            except TimeoutError:
                self._record(lease, request, kind, outcomes.timed_out(attempt, self._timeout))
                return
            except EngineDied:
                self._lost.add((lease.key, request.seq))
                return
            except NotSent as error:
                again, pause = error.transient, error.retry_after
                outcome = Outcome(error_code=error.code, error_message=error.message, attempts=attempt)
            else:
                again, pause = outcomes.worth_retrying(reply.status), reply.retry_after
                outcome = outcomes.answered(attempt, reply)
            self.stalled = False
            if not again or attempt == ATTEMPTS:
                self._record(lease, request, kind, outcome)
                return
            self._active -= 1
            self.changed.set()
            try:
                await asyncio.sleep(outcomes.backoff(attempt, pause))
            finally:
                self._active += 1

    def _record(self, lease: Lease, request: Request, kind: Kind, outcome: Outcome) -> None:
        result = Result(key=lease.key, seq=request.seq, outcome=outcome)
        self.answered.append(result)
        self._answered_bytes += _size(result)
        self._sizes.learn(kind, _size(result))

    async def _post(self, lease: Lease, request: Request) -> Reply:
        """Have one request answered. Raises TimeoutError after its time limit, with its sequence aborted.

        The limit is for slow requests. While an engine produces nothing for any request it is the engine that hangs:
        then the limit ends no request, until the engine continues or is restarted (``engine_stall``).
        """
        if self._timeout is None:
            return await self._engine.post(lease.url, request.body)
        progress = self._engine.progress
        posting = asyncio.ensure_future(self._engine.post(lease.url, request.body))
        patience = self._timeout
        try:
            while not (await asyncio.wait((posting,), timeout=patience))[0]:
                self.stalled = self._engine.progress == progress
                if self._active == 1 or not self.stalled:
                    raise TimeoutError
                patience = LOOK
            return posting.result()
        finally:
            posting.cancel()
            await asyncio.wait((posting,))

    def _ended(self, task: asyncio.Task[None]) -> None:
        _, request, kind = self._running.pop(task)
        self._active -= 1
        self._sizes.end(kind)
        self._running_bytes -= len(request.body)
        self.changed.set()
        if not task.cancelled() and (error := task.exception()) is not None:
            self.failure = error


def _size(result: Result) -> int:
    return len(result.outcome.body or b"")
