"""The store against a plain Python model of it: random work, crashes, thefts and lost COMMITs must agree.

The model knows nothing of chunks, epochs or SQL: a batch is a list of requests, a lease is a set of them that
is good until it is taken away.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import Connection

from tests.rigs.filling import answer, rows, take_in, worker
from vbatch.protocol import BatchStatus
from vbatch.store import Store, catalog, crashes, finalization, ingest, queue, registry, results
from vbatch.store.records import Lease
from vbatch.store.table_objects import METADATA

T = TypeVar("T")
MODELS = ("a", "b")
EPOCH = datetime(2030, 1, 1, tzinfo=UTC)


class Forgetful(Store):
    """A store that loses the answer to a COMMIT when told to, and then replays the transaction."""

    forget = False

    def write(self, work: Callable[[Connection], T]) -> T:
        """Commit once or twice."""
        result = super().write(work)
        return super().write(work) if self.forget else result


@dataclass
class Expected:
    """What a batch should look like. ``ended`` maps a line to the status of its answer, or to an error code."""

    pk: int
    models: list[str]
    priority: int
    expires_at: datetime | None
    status: BatchStatus = BatchStatus.IN_PROGRESS
    stopped: str | None = None  # why what is unfinished never will be
    ended: dict[int, int | str] = field(default_factory=dict)

    def open(self, line: int) -> bool:
        return self.stopped is None and line not in self.ended

    @property
    def open_lines(self) -> set[int]:
        return {line for line in range(1, len(self.models) + 1) if self.open(line)}


@dataclass
class Held:
    """A lease as its worker remembers it. ``good`` until it is taken away, whether the worker knows or not."""

    lease: Lease
    worker: str
    good: bool = True

    @property
    def lines(self) -> set[int]:
        return {request.line for request in self.lease.requests}


class Machine(RuleBasedStateMachine):
    """Every rule does one thing to the store and the same to the model."""

    store: Forgetful

    def __init__(self) -> None:
        super().__init__()
        self.store.forget = False
        self.store.write(_empty)
        self.numbers = count(1)
        self.batches: dict[int, Expected] = {}
        self.leases: list[Held] = []
        self.workers = [worker(self.store, pid=next(self.numbers))]
        self.now = EPOCH

    # What workers and people do.

    @rule(
        models=st.lists(st.sampled_from(MODELS), min_size=1, max_size=12),
        priority=st.integers(0, 1),
        hours=st.sampled_from([None, 1, 5]),
    )
    def submit(self, models: list[str], priority: int, hours: int | None) -> None:
        expires_at = None if hours is None else self.now + timedelta(hours=hours)
        batch = take_in(self.store, models, priority=priority, expires_at=expires_at)
        self.batches[batch.pk] = Expected(batch.pk, models, priority, expires_at)

    @precondition(lambda self: len(self.workers) < 4)
    @rule()
    def start_worker(self) -> None:
        self.workers.append(worker(self.store, pid=next(self.numbers)))

    @rule(data=st.data(), model=st.sampled_from(MODELS), chunks=st.integers(1, 3), lost=st.booleans())
    def claim(self, data: st.DataObject, model: str, chunks: int, lost: bool) -> None:
        who = data.draw(st.sampled_from(self.workers))
        # A worker may believe to hold what was taken from it.
        held = {entry.lease.key for entry in self.leases if entry.worker == who}
        mine = [entry for entry in self.leases if entry.worker == who and entry.good]
        best = max(
            (batch.priority for batch in self.batches.values() if self.ready(batch, model)), default=None
        )
        self.store.forget = lost
        leases = queue.claim(self.store, worker=who, models=[model], chunks=chunks, held=held)
        self.store.forget = False
        assert len(leases) <= chunks
        alone = [lease for lease in leases if lease.alone]
        assert not alone or (len(leases) == 1 and not mine)
        if not leases and best is not None:
            assert mine
            assert mine[0].lease.alone or self.has_one_to_run_alone_first(model)
            return
        assert (leases == []) == (best is None)
        might_be_a_control = bool(alone) and len(alone[0].requests) == 1
        assert best is None or might_be_a_control or self.batches[leases[0].key.batch].priority == best
        for lease in leases:
            entry = Held(lease, who)
            batch = self.batches[lease.key.batch]
            assert lease.key not in {other.lease.key for other in mine}
            assert entry.lines
            assert {batch.models[line - 1] for line in entry.lines} == {model}
            assert entry.lines <= batch.open_lines
            assert not any(entry.lines & other.lines for other in self.good(batch.pk)), "leased twice"
            self.leases.append(entry)

    def has_one_to_run_alone_first(self, model: str) -> bool:
        query = "SELECT alone FROM chunk WHERE state = 'ready' AND model = :model ORDER BY priority DESC, batch, number"
        return bool(rows(self.store, query, model=model)[0][0])

    def ready(self, batch: Expected, model: str) -> set[int]:
        """The lines of a model that nobody works on."""
        busy = set().union(*(self.unfinished(entry) for entry in self.good(batch.pk)))
        return {line for line in batch.open_lines - busy if batch.models[line - 1] == model}

    def good(self, pk: int) -> list[Held]:
        return [entry for entry in self.leases if entry.good and entry.lease.key.batch == pk]

    def unfinished(self, entry: Held) -> set[int]:
        return entry.lines & self.batches[entry.lease.key.batch].open_lines

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), status=st.sampled_from([200, 200, 400]), lost=st.booleans())
    def flush(self, data: st.DataObject, status: int, lost: bool) -> None:
        """Any lease, good or bad: a frozen worker does not know."""
        entry = data.draw(st.sampled_from(self.leases))
        chosen = data.draw(st.sets(st.sampled_from(entry.lease.requests), min_size=1))
        sent = [answer(entry.lease, request, status=status) for request in chosen]
        batch = self.batches.get(entry.lease.key.batch)
        news = {request.line for request in chosen} & batch.open_lines if batch and entry.good else set()
        self.store.forget = lost
        flushed = queue.flush(self.store, worker=entry.worker, results=sent)
        self.store.forget = False
        if not lost:
            assert flushed.recorded == len(news)
        if batch is None or not entry.good:
            assert flushed.rejected | flushed.finished == {entry.lease.key}
            return
        assert flushed.rejected == frozenset()
        batch.ended |= dict.fromkeys(news, status)
        done = not self.unfinished(entry)
        assert (entry.lease.key in flushed.finished) == done
        entry.good = not done

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), lost=st.booleans())
    def release(self, data: st.DataObject, lost: bool) -> None:
        entry = data.draw(st.sampled_from(self.leases))
        self.store.forget = lost
        released = queue.release(self.store, worker=entry.worker, keys=[entry.lease.key])
        self.store.forget = False
        assert lost or released == entry.good
        entry.good = False

    @rule(data=st.data(), lost=st.booleans(), vanished=st.booleans(), beat_since=st.booleans())
    def reclaim(self, data: st.DataObject, lost: bool, vanished: bool, beat_since: bool) -> None:
        """A worker is thought dead. It may go on all the same: its leases are just not good any more."""
        who = data.draw(st.sampled_from(self.workers))
        seen = next((found.heartbeat for found in registry.live(self.store) if found.id == who), None)
        registry.heartbeat(self.store, worker=who, models=[], note=None) if beat_since else None
        before = self.codes()
        self.store.forget = lost
        crashes.reclaim(self.store, worker=who, heartbeat=seen if beat_since else None, vanished=vanished)
        self.store.forget = False
        if beat_since and seen is not None:
            return
        if seen is not None:
            for entry in self.leases:
                entry.good &= entry.worker != who
        self.accept_convictions(before, allowed=1 if vanished else 0)

    @precondition(lambda self: any(entry.good for entry in self.leases))
    @rule(data=st.data(), lost=st.booleans())
    def engine_dies(self, data: st.DataObject, lost: bool) -> None:
        """Over some requests of one lease."""
        entry = data.draw(st.sampled_from([entry for entry in self.leases if entry.good]))
        running = sorted(
            request.seq for request in entry.lease.requests if request.line in self.unfinished(entry)
        )
        accused = sorted(data.draw(st.sets(st.sampled_from(running), min_size=1)))
        before = self.codes()
        self.store.forget = lost
        crashes.record_engine_crash(
            self.store, worker=entry.worker, suspects_of={entry.lease.key: accused}, cause="SIGSEGV"
        )
        self.store.forget = False
        entry.good = False
        self.accept_convictions(before, allowed=1 if len(accused) == 1 else 0)

    def codes(self) -> set[tuple[int, int]]:
        """The convicted so far."""
        found = rows(self.store, "SELECT batch, seq FROM result WHERE error_code = 'engine_crash'")
        return {(batch, seq) for batch, seq in found}

    def accept_convictions(self, before: set[tuple[int, int]], *, allowed: int) -> None:
        """Who is convicted is the store's business (``test_suspects``), but never more than one at once."""
        new = self.codes() - before
        assert len(new) <= allowed
        for pk, seq in new:
            ((line,),) = rows(
                self.store, "SELECT line FROM request WHERE batch = :pk AND seq = :seq", pk=pk, seq=seq
            )
            assert self.batches[pk].open(line)
            self.batches[pk].ended[line] = "engine_crash"

    @precondition(lambda self: self.batches)
    @rule(data=st.data(), lost=st.booleans())
    def cancel(self, data: st.DataObject, lost: bool) -> None:
        batch = data.draw(st.sampled_from(list(self.batches.values())))
        if batch.status.final:
            return
        self.store.forget = lost
        finalization.request_cancel(self.store, pk=batch.pk)
        self.store.forget = False
        if batch.status is BatchStatus.IN_PROGRESS:
            batch.status = BatchStatus.CANCELLING
            self.stop(batch, "batch_cancelled")

    def stop(self, batch: Expected, code: str) -> None:
        batch.stopped = batch.stopped or code
        for entry in self.good(batch.pk):
            entry.good = False

    @rule(hours=st.integers(1, 4))
    def time_passes(self, hours: int) -> None:
        self.now += timedelta(hours=hours)
        due = {
            batch.pk
            for batch in self.batches.values()
            if batch.status is BatchStatus.IN_PROGRESS
            and batch.expires_at is not None
            and batch.expires_at <= self.now
            and batch.open_lines
        }
        assert len(finalization.expire(self.store, now=self.now)) == len(due)
        for pk in due:
            self.stop(self.batches[pk], "batch_expired")

    @rule(data=st.data(), lost=st.booleans())
    def finalize(self, data: st.DataObject, lost: bool) -> None:
        who = data.draw(st.sampled_from(self.workers))
        self.store.forget = lost
        for batch in finalization.to_finalize(self.store, by=who):
            expected = self.batches[batch.pk]
            assert not expected.open_lines
            assert finalization.start_finalizing(self.store, pk=batch.pk, by=who) is not None
            ended = finalization.finish(self.store, pk=batch.pk, by=who, output_path="/o", error_path="/e")
            assert ended.status.final
            if expected.stopped == "batch_expired":
                expected.status = BatchStatus.EXPIRED
            elif expected.status is BatchStatus.CANCELLING:
                expected.status = BatchStatus.CANCELLED
            else:
                expected.status = BatchStatus.COMPLETED
        self.store.forget = False
        for expected in self.batches.values():
            assert expected.status.final or expected.open_lines

    @precondition(lambda self: any(batch.status.final for batch in self.batches.values()))
    @rule(data=st.data(), lost=st.booleans())
    def delete(self, data: st.DataObject, lost: bool) -> None:
        batch = data.draw(st.sampled_from([batch for batch in self.batches.values() if batch.status.final]))
        self.store.forget = lost
        catalog.delete_batch(self.store, pk=batch.pk)
        self.store.forget = False
        del self.batches[batch.pk]

    # What must hold at any time.

    @invariant()
    def every_batch_is_as_expected(self) -> None:
        found = {batch.pk: batch for batch in catalog.recent(self.store, limit=1000)}
        assert found.keys() == self.batches.keys()
        for pk, batch in self.batches.items():
            good = sum(status == 200 for status in batch.ended.values())
            bad = len(batch.ended) - good
            counts = found[pk].counts
            assert (counts.total, counts.completed, counts.failed) == (len(batch.models), good, bad)
            assert found[pk].status == batch.status
            assert list(_lines(self.store, batch)) == list(_expected_lines(batch))

    @invariant()
    def what_waits_is_offered(self) -> None:
        offered = {entry.model for entry in queue.waiting(self.store)}
        assert offered == {
            model for model in MODELS for batch in self.batches.values() if self.ready(batch, model)
        }

    @invariant()
    def everybody_knows_what_is_still_theirs(self) -> None:
        for who in self.workers:
            mine = [entry for entry in self.leases if entry.worker == who]
            held = queue.held_by(self.store, worker=who)
            assert held == {entry.lease.key for entry in mine if entry.good}


def _lines(store: Store, batch: Expected) -> Iterator[tuple[int, int | str | None, bytes | None]]:
    for found in results.finished(store, pk=batch.pk):
        outcome = found.outcome
        assert outcome is not None
        yield found.line, outcome.status_code or outcome.error_code, outcome.body


def _expected_lines(batch: Expected) -> Iterator[tuple[int, int | str | None, bytes | None]]:
    for line in range(1, len(batch.models) + 1):
        ended = batch.ended.get(line) or batch.stopped
        if ended is not None:
            yield line, ended, b'"%d"' % line if isinstance(ended, int) else None


def _empty(connection: Connection) -> None:
    for table in METADATA.tables.values():
        connection.execute(table.delete())


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_the_store_is_what_its_model_says(
    kind: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mutants: a flush that does not ask for the epoch; finalization.expire takes a batch of which nothing is open."""
    monkeypatch.setattr(ingest, "CHUNK_REQUESTS", 3)
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        url = (
            f"sqlite:///{folder}/vbatch.db" if kind == "sqlite" else request.getfixturevalue("postgresql_url")
        )
        store = Forgetful(url)
        store.prepare()
        machine: Any = type("Run", (Machine,), {"store": store})
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=25 if kind == "sqlite" else 10,
                stateful_step_count=40,
                deadline=None,
                suppress_health_check=list(HealthCheck),
                print_blob=True,
                phases=[Phase.reuse, Phase.generate],  # shrinking would outlast the test's time limit
            ),
        )
        store.close()
