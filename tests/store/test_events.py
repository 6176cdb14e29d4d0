"""Notifications in the store: written with what they report, taken by one, repeated until they are given up."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from sqlalchemy import Connection, select, update

from tests.rigs.filling import take_in, worker
from vbatch.protocol import BatchStatus
from vbatch.store import COMMAND_PATIENCE, Store, blocked, catalog, events, finalization
from vbatch.store.records import Batch, BlockedModel
from vbatch.store.tables import EVENT

T = TypeVar("T")
NAMES = ("note",)


def ended(store: Store, target: str = "note") -> Batch:
    """A batch that was cancelled, with whom to notify of it."""
    batch = take_in(store, 2, notify=target)
    finalization.request_cancel(store, pk=batch.pk)
    who = worker(store)
    finalization.start_finalizing(store, pk=batch.pk, by=who)
    return finalization.finish(store, pk=batch.pk, by=who, output_path="/o", error_path="/e")


def rows(store: Store) -> list[Any]:
    return list(store.read(lambda connection: connection.execute(select(EVENT)).all()))


def set_back(store: Store, **values: Any) -> None:
    store.write(lambda connection: connection.execute(update(EVENT).values(**values)))


def block(host: str = "here", *, configuration: str = "c") -> BlockedModel:
    return BlockedModel(
        configuration=configuration,
        model="m",
        url="",
        host=host,
        reason="not there",
        hint=None,
        since=datetime.now(UTC),
    )


def test_an_ending_is_one_event_also_where_it_is_replayed(replaying: Store) -> None:
    """Mutant: an event without a look whether this transaction is the one that ended the batch."""
    batch = ended(replaying)
    assert batch.status is BatchStatus.CANCELLED
    assert [(row.batch, row.type, row.target) for row in rows(replaying)] == [
        (batch.pk, "batch.cancelled", "note")
    ]


def test_nobody_to_notify_is_no_event(store: Store) -> None:
    batch = take_in(store, 1)
    finalization.request_cancel(store, pk=batch.pk)
    who = worker(store)
    finalization.start_finalizing(store, pk=batch.pk, by=who)
    finalization.finish(store, pk=batch.pk, by=who, output_path="/o", error_path="/e")
    assert rows(store) == []


class Together(Store):
    """A store whose two users have both read before one of them writes."""

    def __init__(self, url: str) -> None:
        super().__init__(url, patience=COMMAND_PATIENCE)
        self._both = threading.Barrier(2)
        self._mine = threading.local()

    def read(self, work: Callable[[Connection], T]) -> T:
        """Read, and wait for the other after the first time."""
        found = super().read(work)
        if not getattr(self._mine, "met", False):
            self._mine.met = True
            self._both.wait(60)
        return found


def test_one_of_two_that_saw_an_event_takes_it(store: Store, database_url: str) -> None:
    """Mutant: taking without a look at what was seen before."""
    ended(store)
    both = Together(database_url)
    with ThreadPoolExecutor(2) as pool:
        taken = list(pool.map(lambda _: events.take_due(both, names=NAMES), range(2)))
    both.close()
    assert len([event for event in taken if event is not None]) == 1


def test_an_event_whose_commit_was_ambiguous_is_still_taken(replaying: Store) -> None:
    """Mutant: only the row count decides; the event is then delivered two minutes late."""
    ended(replaying)
    event = events.take_due(replaying, names=NAMES)
    assert event is not None
    assert [row.attempts for row in rows(replaying)] == [1]


def test_what_a_dead_process_took_is_due_again_under_its_id(store: Store) -> None:
    ended(store)
    first = events.take_due(store, names=NAMES)
    assert events.take_due(store, names=NAMES) is None
    set_back(store, next_at=datetime.now(UTC))
    second = events.take_due(store, names=NAMES)
    assert first is not None
    assert second is not None
    assert (first.id, first.attempts, second.id, second.attempts) == (second.id, 0, first.id, 1)


def test_a_name_is_left_to_a_process_that_knows_it(store: Store) -> None:
    """Mutant: it is taken and fails; who knows the name then waits, for hours in the end."""
    ended(store)
    assert events.take_due(store, names=()) is None
    assert [event.target for event in events.leave_unknown(store, names=(), problem="unknown")] == ["note"]
    assert events.leave_unknown(store, names=(), problem="unknown") == []
    assert [event.problem for event in events.in_trouble(store)] == ["unknown"]
    event = events.take_due(store, names=NAMES)
    assert event is not None
    events.delivered(store, event)
    assert events.in_trouble(store) == []


def test_a_url_needs_no_name(store: Store) -> None:
    ended(store, "https://hook.example/x")
    assert events.leave_unknown(store, names=(), problem="unknown") == []
    assert events.take_due(store, names=()) is not None


def test_an_event_of_another_batch_is_not_taken(store: Store) -> None:
    """Mutant: a command that ended one batch delivers what others have left."""
    first, second = ended(store), ended(store)
    event = events.take_due(store, names=NAMES, batch=second.pk)
    assert event is not None
    assert event.batch == second.pk != first.pk
    assert events.take_due(store, names=NAMES, batch=second.pk) is None


def test_pauses_grow_and_end(store: Store) -> None:
    """Mutants: the same pause each time; tries without an end."""
    ended(store)
    pauses = []
    for _ in range(7):
        set_back(store, next_at=datetime.now(UTC))
        event = events.take_due(store, names=NAMES)
        assert event is not None
        assert events.failed(store, event, "HTTP 500")
        (row,) = rows(store)
        pauses.append(round((row.next_at - datetime.now(UTC)) / timedelta(minutes=1)))
    assert pauses == [1, 5, 15, 60, 180, 360, 360]
    set_back(store, next_at=datetime.now(UTC), created_at=datetime.now(UTC) - timedelta(days=2, hours=20))
    event = events.take_due(store, names=NAMES)
    assert event is not None
    assert not events.failed(store, event, "HTTP 500")
    assert events.take_due(store, names=NAMES) is None
    assert [trouble.problem for trouble in events.in_trouble(store)] == ["HTTP 500"]
    set_back(store, created_at=datetime.now(UTC) - timedelta(days=8))
    assert events.in_trouble(store) == []


def test_an_event_that_no_worker_could_try_in_time_is_still_tried(store: Store) -> None:
    """A machine that was off for a week. Mutant: old events are given up without a try."""
    ended(store)
    set_back(store, created_at=datetime.now(UTC) - timedelta(days=9))
    assert events.take_due(store, names=NAMES) is not None


def test_a_late_failure_changes_nothing_of_a_newer_try(store: Store) -> None:
    """Mutant: the failure of a process that was slow puts off, or undoes, what another did since."""
    ended(store)
    slow = events.take_due(store, names=NAMES)
    set_back(store, next_at=datetime.now(UTC))
    quick = events.take_due(store, names=NAMES)
    assert slow is not None
    assert quick is not None
    events.failed(store, slow, "late")
    assert rows(store)[0].problem is None
    events.delivered(store, quick)
    events.failed(store, slow, "late")
    assert (rows(store)[0].problem, events.in_trouble(store)) == (None, [])


def test_a_block_is_reported_once_to_each_batch(store: Store) -> None:
    """Mutants: an event at each try of the worker, or at each host; none for a batch that came after the block."""
    first = take_in(store, 1, notify="note")
    take_in(store, 1)
    for host in ("here", "here", "there"):
        blocked.record(store, block(host, configuration=host))
    assert [(row.batch, row.type) for row in rows(store)] == [(first.pk, "vbatch.batch.blocked")]
    second = take_in(store, 1, notify="note")
    blocked.record(store, block(configuration="here"))
    assert [row.batch for row in rows(store)] == [first.pk, second.pk]


def test_a_block_that_comes_again_is_reported_again(store: Store) -> None:
    take_in(store, 1, notify="note")
    blocked.record(store, block())
    blocked.clear(store, host="here", model="m", answers_at=None)
    blocked.record(store, block())
    assert len(rows(store)) == 2


def test_a_replayed_block_is_reported_once(replaying: Store) -> None:
    take_in(replaying, 1, notify="note")
    blocked.record(replaying, block())
    assert len(rows(replaying)) == 1


def test_a_deleted_batch_takes_its_events_along(store: Store) -> None:
    batch = ended(store)
    catalog.delete_batch(store, pk=batch.pk)
    assert rows(store) == []
