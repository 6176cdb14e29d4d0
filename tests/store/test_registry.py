"""Workers and the ledger of their engine processes."""

from __future__ import annotations

from dataclasses import replace

from tests.rigs.filling import claim, take_in, worker
from vbatch.store import Store, registry
from vbatch.store.records import EngineProcess
from vbatch.system.processes import ProcessIdentity

ME = ProcessIdentity(
    host="here", boot_id="boot", pid_namespace=4026531836, pid=4_194_303, start_ticks=1 << 40
)


def engine_process(who: str, pid: int, *, title: str = "vbatch: engine core") -> EngineProcess:
    return EngineProcess(worker=who, identity=replace(ME, pid=pid), title=title)


def test_a_worker_is_written_down_exactly(store: Store) -> None:
    who = registry.register(store, identity=ME, engine="vllm", gpus=["GPU-1", "GPU-2"])
    (found,) = registry.live(store)
    assert (found.id, found.identity, found.engine, found.gpus) == (
        who,
        ME,
        "vllm",
        ("GPU-1", "GPU-2"),
    )
    assert (found.models, found.model, found.note, found.heartbeat, found.stopped_at) == (
        (),
        None,
        None,
        0,
        None,
    )
    assert found.started_at <= found.heartbeat_at


def test_registering_twice_is_registering_once(replaying: Store) -> None:
    who = registry.register(replaying, identity=ME, engine="echo")
    assert [found.id for found in registry.live(replaying)] == [who]


def test_each_heartbeat_counts(store: Store) -> None:
    who = registry.register(store, identity=ME, engine="echo")
    for _ in range(3):
        registry.heartbeat(
            store, worker=who, models=["m", "styler"], note="the engine died", requests_per_second=12.5
        )
    (found,) = registry.live(store)
    assert (found.heartbeat, found.models, found.model) == (3, ("m", "styler"), "m")
    assert found.note == "the engine died"
    assert found.requests_per_second == 12.5
    assert found.heartbeat_at > found.started_at


def test_who_stopped_is_not_live(store: Store) -> None:
    first, second = worker(store, pid=1), worker(store, pid=2)
    registry.stop(store, worker=first)
    assert [found.id for found in registry.live(store)] == [second]
    assert {found.id for found in registry.recent(store, limit=9)} == {first, second}
    (stopped,) = (found for found in registry.recent(store, limit=9) if found.id == first)
    moment = stopped.stopped_at
    assert moment is not None
    registry.stop(store, worker=first)
    assert next(found for found in registry.recent(store, limit=9) if found.id == first).stopped_at == moment


def test_who_holds_a_chunk_of_a_batch_works_on_it(store: Store) -> None:
    """Mutant: workers of the same model; one that is busy with another batch says nothing of this one."""
    first, second = take_in(store, 300), take_in(store, 3)
    busy, beside, _idle = worker(store, pid=1), worker(store, pid=2), worker(store, pid=3)
    claim(store, busy, chunks=2)
    claim(store, beside)
    assert [found.id for found in registry.working_on(store, pk=first.pk)] == [busy]
    assert [found.id for found in registry.working_on(store, pk=second.pk)] == [beside]
    registry.stop(store, worker=beside)
    assert registry.working_on(store, pk=second.pk) == []


def test_who_stops_gives_back_what_it_could_not_release(store: Store) -> None:
    """Mutant: ``stop`` without its update of chunks; nobody looks after those of a worker that stopped."""
    take_in(store, 3)
    first, second = worker(store, pid=1), worker(store, pid=2)
    (lease,) = claim(store, first)
    registry.stop(store, worker=first)
    (again,) = claim(store, second)
    assert again.requests == lease.requests
    assert again.key.epoch > lease.key.epoch


def test_a_process_of_the_same_pid_on_another_boot_is_another_worker(store: Store) -> None:
    first = registry.register(store, identity=ME, engine="echo")
    second = registry.register(store, identity=replace(ME, boot_id="later"), engine="echo")
    assert first != second


def test_the_ledger_holds_what_was_recorded_last(replaying: Store) -> None:
    first, second = worker(replaying, pid=1), worker(replaying, pid=2)
    registry.record_processes(replaying, worker=first, processes=[engine_process(first, 10)])
    registry.record_processes(
        replaying, worker=first, processes=[engine_process(first, 11), engine_process(first, 12)]
    )
    registry.record_processes(replaying, worker=second, processes=[engine_process(second, 20)])
    ledger = sorted(registry.ledger(replaying), key=lambda process: process.identity.pid)
    assert ledger == [engine_process(first, 11), engine_process(first, 12), engine_process(second, 20)]
    registry.forget_processes(replaying, worker=first)
    assert registry.ledger(replaying) == [engine_process(second, 20)]
    registry.record_processes(replaying, worker=second, processes=[])
    assert registry.ledger(replaying) == []


def test_a_clean_stop_empties_the_ledger(store: Store) -> None:
    who = worker(store)
    registry.record_processes(store, worker=who, processes=[engine_process(who, 10)])
    registry.stop(store, worker=who)
    assert registry.ledger(store) == []


def test_names_that_a_database_would_choke_on_are_made_harmless(store: Store) -> None:
    """A title is whatever a process calls itself; a note may quote an engine's stderr."""
    who = worker(store)
    registry.heartbeat(store, worker=who, models=["m"], note="bad\0byte \udcff")
    registry.record_processes(store, worker=who, processes=[engine_process(who, 10, title="t\0itle \udcff")])
    (found,) = registry.live(store)
    assert found.note == "bad\N{REPLACEMENT CHARACTER}byte \N{REPLACEMENT CHARACTER}"
    (process,) = registry.ledger(store)
    assert process.title == "t\N{REPLACEMENT CHARACTER}itle \N{REPLACEMENT CHARACTER}"
