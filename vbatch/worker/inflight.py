"""The leased requests of one engine: waiting to start, running, and answered but not yet saved."""

from __future__ import annotations

import asyncio
import random
from collections import Counter, deque
from collections.abc import Collection, Iterable
from datetime import timedelta

from vbatch.engine import Engine, EngineDied, Reply
from vbatch.protocol import usage_of
from vbatch.store.records import ChunkKey, Lease, Request, Result

ATTEMPTS = 3  # of a request that the engine answers with 429 or 5xx
SHOWN_BYTES = 200  # of an answer that is not JSON
SUSPECT_CRASHES = 2  # a chunk that was running at so many engine deaths runs alone


class Inflight:
    """Keeps the engine busy with up to ``limit`` requests and collects their results.

    There is no barrier between chunks: the next request starts when any one ends. The exception is a suspect
    chunk (it was running at two engine deaths): it runs alone, so that a further death accuses only it.
    """

    def __init__(self, engine: Engine, *, limit: int, request_timeout: timedelta | None) -> None:
        self._engine = engine
        self._limit = limit
        self._timeout = request_timeout.total_seconds() if request_timeout else None
        self._leases: dict[ChunkKey, Lease] = {}
        self._unanswered: Counter[ChunkKey] = Counter()
        self._pending: deque[tuple[Lease, Request]] = deque()
        self._suspects: deque[Lease] = deque()
        self._running: dict[asyncio.Task[None], tuple[Lease, Request]] = {}
        self._lost: list[tuple[Lease, Request]] = []
        self._active = 0
        self._alone: ChunkKey | None = None
        self.answered: list[Result] = []
        self.failure: BaseException | None = None  # a defect of ours: the loop raises it
        self.changed = asyncio.Event()

    @property
    def leases(self) -> list[tuple[ChunkKey, int]]:
        """Key and epoch of every chunk that is held."""
        return [(lease.key, lease.epoch) for lease in self._leases.values()]

    @property
    def held(self) -> frozenset[ChunkKey]:
        """The chunks that are held."""
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
        if self._suspects or self._alone is not None:
            return 0
        return max(0, self._limit - len(self._pending))

    @property
    def idle(self) -> bool:
        """Whether nothing is pending, running or waiting to be saved."""
        return self.quiet and not self.answered

    @property
    def quiet(self) -> bool:
        """Whether there are answers to save and nothing runs that could add to them."""
        return not (self._pending or self._suspects or self._running)

    def add(self, leases: Iterable[Lease]) -> None:
        """Take leased chunks. One without open requests is dropped: its last flush was recorded."""
        for lease in leases:
            if not lease.requests:
                continue
            self._leases[lease.key] = lease
            self._unanswered[lease.key] = len(lease.requests)
            if lease.crashes >= SUSPECT_CRASHES:
                self._suspects.append(lease)
            else:
                self._pending.extend((lease, request) for request in lease.requests)

    def start(self) -> None:
        """Start what there is room for."""
        if self._alone is not None and not self._unanswered[self._alone]:
            self._alone = None
        if self._suspects and not self._running and self._alone is None and not self._pending:
            suspect = self._suspects.popleft()
            self._alone = suspect.key
            self._pending.extend((suspect, request) for request in suspect.requests)
        while self._pending and self._active < self._limit:
            lease, request = self._pending.popleft()
            self._active += 1
            task = asyncio.create_task(self._answer(lease, request))
            self._running[task] = (lease, request)
            task.add_done_callback(self._ended)

    def forget(self, keys: Collection[ChunkKey]) -> None:
        """Drop chunks that are finished or not ours any more; what still runs of them is aborted."""
        if not keys:
            return
        for key in keys:
            self._leases.pop(key, None)
            self._unanswered.pop(key, None)
        self._pending = deque(entry for entry in self._pending if entry[0].key not in keys)
        self._suspects = deque(lease for lease in self._suspects if lease.key not in keys)
        for task, (lease, _) in list(self._running.items()):
            if lease.key in keys:
                task.cancel()
        self.changed.set()

    def drop_pending(self) -> None:
        """Start nothing more; what runs goes on."""
        self._pending.clear()
        self._suspects.clear()

    def take_answered(self) -> list[Result]:
        """Take what is to be saved. Results of chunks that are not held any more were dropped with them."""
        taken = [result for result in self.answered if result.key in self._leases]
        self.answered = []
        return taken

    def give_back(self, results: list[Result]) -> None:
        """Return results whose saving was interrupted."""
        self.answered = results + self.answered

    async def abandon(self) -> dict[ChunkKey, tuple[int, ...]]:
        """Stop everything that runs and return it: the ``seq`` numbers in the engine, by chunk."""
        suspects: dict[ChunkKey, list[int]] = {}
        for lease, request in (*self._running.values(), *self._lost):
            if lease.key in self._leases:
                suspects.setdefault(lease.key, []).append(request.seq)
        tasks = list(self._running)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self.drop_pending()
        return {key: tuple(sorted(seqs)) for key, seqs in suspects.items()}

    async def _answer(self, lease: Lease, request: Request) -> None:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                async with asyncio.timeout(self._timeout):
                    reply = await self._engine.post(lease.url, request.body)
            except TimeoutError:
                self._record(_timed_out(lease, request, attempt, self._timeout))
                return
            except EngineDied:
                self._lost.append((lease, request))
                return
            if not _worth_retrying(reply.status) or attempt == ATTEMPTS:
                self._record(_result(lease, request, attempt, reply))
                return
            self._active -= 1
            self.changed.set()
            try:
                await asyncio.sleep(_backoff(attempt, reply.retry_after))
            finally:
                self._active += 1

    def _record(self, result: Result) -> None:
        self.answered.append(result)
        if result.key in self._unanswered:
            self._unanswered[result.key] -= 1

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


def _result(lease: Lease, request: Request, attempt: int, reply: Reply) -> Result:
    try:
        usage = usage_of(reply.body)
    except ValueError:
        return _not_json(lease, request, attempt, reply)
    return Result(
        key=lease.key,
        epoch=lease.epoch,
        seq=request.seq,
        status_code=reply.status,
        request_id=reply.request_id,
        body=reply.body,
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        attempts=attempt,
    )


def _not_json(lease: Lease, request: Request, attempt: int, reply: Reply) -> Result:
    """Keep out what no line of an output file can hold, such as embeddings as bytes."""
    return Result(
        key=lease.key,
        epoch=lease.epoch,
        seq=request.seq,
        status_code=None,
        request_id=reply.request_id,
        body=None,
        error_code="answer_not_json",
        error_message=f"The engine answered with status {reply.status} and {len(reply.body):,} bytes "
        f"that are not JSON: {reply.body[:SHOWN_BYTES].decode(errors='replace')}",
        attempts=attempt,
    )


def _timed_out(lease: Lease, request: Request, attempt: int, seconds: float | None) -> Result:
    return Result(
        key=lease.key,
        epoch=lease.epoch,
        seq=request.seq,
        status_code=None,
        request_id=None,
        body=None,
        error_code="request_timeout",
        error_message=f"The engine did not answer within {seconds:g} s (request_timeout).",
        attempts=attempt,
    )
