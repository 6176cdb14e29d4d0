"""The leased requests of one engine: waiting to start, running, and answered but not yet saved."""

from __future__ import annotations

import asyncio
import random
from bisect import bisect_right
from collections import deque
from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from datetime import timedelta
from itertools import accumulate

from vbatch.engine import Engine, EngineDied, Reply
from vbatch.protocol import facts_of
from vbatch.store.records import Lease, LeaseKey, Outcome, Request, Result

LOOK = 1.0  # seconds between two looks at an engine that gives nothing while requests are overdue
ATTEMPTS = 3  # of a request that the engine answers with 429 or 5xx
SAVED_BYTES = 32 << 20  # of answers in one transaction: embeddings may be large
SHOWN_BYTES = 200  # of an answer that is not JSON


class Inflight:
    """Keeps the engine busy with up to ``limit`` requests and collects their results.

    There is no barrier between chunks: the next request starts when any one ends. The exception is a lease that
    the store wants to run alone (``vbatch.store.suspects``), so that a further crash is evidence against it.
    """

    def __init__(self, engine: Engine, *, limit: int, request_timeout: timedelta | None) -> None:
        self._engine = engine
        self._limit = limit
        self._timeout = request_timeout.total_seconds() if request_timeout else None
        self._leases: dict[LeaseKey, Lease] = {}
        self._pending: deque[tuple[Lease, Request]] = deque()
        self._waiting_alone: deque[Lease] = deque()
        self._running: dict[asyncio.Task[None], tuple[Lease, Request]] = {}
        self._lost: set[tuple[LeaseKey, int]] = set()
        self._active = 0
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
        if self._waiting_alone or self._alone is not None:
            return 0
        return max(0, self._limit - len(self._pending))

    @property
    def idle(self) -> bool:
        """Whether nothing is pending, running or waiting to be saved."""
        return self.quiet and not (self._waiting_alone or self.answered)

    @property
    def quiet(self) -> bool:
        """Whether nothing runs that could add to the answers before they are saved."""
        return not (self._pending or self._running)

    def add(self, leases: Iterable[Lease]) -> None:
        """Take leased chunks. One without open requests is dropped: its last flush was recorded.

        Of a chunk whose lease was lost and that is leased again, what still runs under the old lease is aborted.
        """
        for lease in leases:
            self.forget({key for key in self._leases if key[:2] == lease.key[:2]})
            if not lease.requests:
                continue
            self._leases[lease.key] = lease
            if lease.alone:
                self._waiting_alone.append(lease)
            else:
                self._pending.extend((lease, request) for request in lease.requests)

    def start(self) -> None:
        """Start what there is room for. What runs alone waits until all before it is saved."""
        if self._alone not in self.leases:
            self._alone = None
        if self._waiting_alone and self._alone is None and self.quiet:
            lease = self._waiting_alone.popleft()
            self._alone = lease.key
            self._pending.extend((lease, request) for request in lease.requests)
        while self._pending and self._active < self._limit:
            lease, request = self._pending.popleft()
            self._active += 1
            task = asyncio.create_task(self._answer(lease, request))
            self._running[task] = (lease, request)
            task.add_done_callback(self._ended)

    def forget(self, leases: AbstractSet[LeaseKey]) -> None:
        """Drop leases that are finished or no longer held; what still runs of them is aborted."""
        if not leases:
            return
        for gone in leases & self.leases:
            del self._leases[gone]
        self._pending = deque(entry for entry in self._pending if entry[0].key not in leases)
        self._waiting_alone = deque(lease for lease in self._waiting_alone if lease.key not in leases)
        for task, (lease, _) in list(self._running.items()):
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
        sizes = accumulate(len(result.outcome.body or b"") for result in mine)
        count = max(1, bisect_right(list(sizes), SAVED_BYTES))
        taken, self.answered = mine[:count], mine[count:]
        return taken

    def give_back(self, results: list[Result]) -> None:
        """Return results whose saving was interrupted."""
        self.answered = results + self.answered

    async def abandon(self) -> dict[LeaseKey, tuple[int, ...]]:
        """Stop everything that runs and return it: the ``seq`` numbers in the engine, by lease."""
        suspects: dict[LeaseKey, list[int]] = {}
        held = self.leases
        for lease, seq in self._lost | {
            (lease.key, request.seq) for lease, request in self._running.values()
        }:
            if lease in held:
                suspects.setdefault(lease, []).append(seq)
        tasks = list(self._running)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self.drop_pending()
        return {key: tuple(sorted(seqs)) for key, seqs in suspects.items()}

    async def _answer(self, lease: Lease, request: Request) -> None:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                reply = await self._post(lease, request)
            except TimeoutError:
                self._record(lease, request, _timed_out(attempt, self._timeout))
                return
            except EngineDied:
                self._lost.add((lease.key, request.seq))
                return
            self.stalled = False
            if not _worth_retrying(reply.status) or attempt == ATTEMPTS:
                self._record(lease, request, _outcome(attempt, reply))
                return
            self._active -= 1
            self.changed.set()
            try:
                await asyncio.sleep(_backoff(attempt, reply.retry_after))
            finally:
                self._active += 1

    def _record(self, lease: Lease, request: Request, outcome: Outcome) -> None:
        self.answered.append(Result(key=lease.key, seq=request.seq, outcome=outcome))

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
        del self._running[task]
        self._active -= 1
        self.changed.set()
        if not task.cancelled() and (error := task.exception()) is not None:
            self.failure = error


def _worth_retrying(status: int) -> bool:
    return status == 429 or status >= 500


def _backoff(attempt: int, retry_after: float | None) -> float:
    """Seconds before the next attempt: what the engine asks for, else 1, 2, … with jitter."""
    return retry_after if retry_after is not None else 2 ** (attempt - 1) * random.uniform(0.5, 1.5)


def _outcome(attempt: int, reply: Reply) -> Outcome:
    try:
        facts = facts_of(reply.body)
    except ValueError:
        return _not_json(attempt, reply)
    return Outcome(
        status_code=reply.status,
        request_id=reply.request_id,
        body=reply.body,
        prompt_tokens=facts.prompt_tokens,
        completion_tokens=facts.completion_tokens,
        cached_tokens=facts.cached_tokens,
        finish=facts.finish,
        attempts=attempt,
    )


def _not_json(attempt: int, reply: Reply) -> Outcome:
    """Keep out what no line of an output file can hold, such as embeddings as bytes."""
    return Outcome(
        request_id=reply.request_id,
        error_code="answer_not_json",
        error_message=f"The engine answered with status {reply.status} and {len(reply.body):,} bytes "
        f"that are not JSON: {reply.body[:SHOWN_BYTES].decode(errors='replace')}",
        attempts=attempt,
    )


def _timed_out(attempt: int, seconds: float | None) -> Outcome:
    return Outcome(
        error_code="request_timeout",
        error_message=f"The engine did not answer within {seconds:g} s (request_timeout).",
        attempts=attempt,
    )
