"""The one line that says what happened while nobody looked, told from the store's records alone."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import text

from tests.rigs import engines
from tests.rigs.filling import answers_to, claim, take_in
from vbatch import config
from vbatch.doctor import story
from vbatch.doctor.facts import Facts
from vbatch.store import Store, crashes, queue, registry
from vbatch.system import processes
from vbatch.system.processes import ProcessIdentity


@pytest.fixture
def facts(store: Store, monkeypatch: pytest.MonkeyPatch) -> Facts:
    monkeypatch.setenv("VBATCH_DATABASE_URL", store.url.render_as_string(hide_password=False))
    return Facts(settings=config.load())


def of_boot(boot: str) -> ProcessIdentity:
    return replace(engines.dead_identity(), boot_id=boot)


def register(store: Store, identity: ProcessIdentity) -> str:
    return registry.register(store, identity=identity, engine="echo")


def test_there_is_none_on_a_fresh_machine(facts: Facts) -> None:
    assert story.of(facts) is None


def test_a_worker_that_was_cut_off(facts: Facts, store: Store) -> None:
    take_in(store, 600)
    who = register(store, of_boot("before"))
    (lease,) = claim(store, who)
    queue.flush(store, worker=who, results=answers_to(lease, lease.requests[:4]))
    told = story.of(facts)
    assert told is not None
    assert told.words.startswith("power was lost, or the machine was reset, at about ")
    assert told.words.endswith(
        "; 4 of 600 requests are saved; nothing was lost; the work continues when a worker runs"
    )


def test_one_that_was_recovered_meanwhile_is_told_of_all_the_same(facts: Facts, store: Store) -> None:
    """Mutant: looking at workers that did not stop only; the next worker writes the dead one's end down."""
    take_in(store, 600)
    who = register(store, of_boot("before"))
    claim(store, who)
    crashes.reclaim(store, worker=who, heartbeat=None)
    register(store, processes.current())
    told = story.of(facts)
    assert told is not None
    assert told.words.endswith("nothing was lost; the work continues")


def test_a_shutdown_in_good_order_is_no_story(facts: Facts, store: Store) -> None:
    """Mutant: taking every worker of an earlier boot for one that was cut off."""
    who = register(store, of_boot("before"))
    registry.stop(store, worker=who)
    assert story.of(facts) is None


def test_an_older_cut_is_forgotten(facts: Facts, store: Store) -> None:
    """Only the boot before this one is told of. Mutant: looking at all earlier boots."""
    register(store, of_boot("long ago"))
    clean = register(store, of_boot("before"))
    registry.heartbeat(store, worker=clean, models=[], note=None)
    registry.stop(store, worker=clean)
    assert story.of(facts) is None


def test_another_machines_workers_are_not_ours(facts: Facts, store: Store) -> None:
    register(store, replace(of_boot("before"), host="elsewhere"))
    assert story.of(facts) is None


def test_everything_finished(facts: Facts, store: Store) -> None:
    register(store, of_boot("before"))
    told = story.of(facts)
    assert told is not None
    assert told.words.endswith("nothing was lost: every batch is finished")


def test_one_that_died_alone_was_not_cut_off(facts: Facts, store: Store) -> None:
    """Another one went on for an hour and stopped in good order. Mutant: any worker without an end counts."""
    register(store, of_boot("before"))
    other = register(store, replace(of_boot("before"), pid=2))
    later = datetime.now(UTC) + timedelta(hours=1)
    store.write(
        lambda connection: connection.execute(
            text("UPDATE worker SET stopped_at = :later WHERE id = :id"), {"later": later, "id": other}
        )
    )
    assert story.of(facts) is None


def test_one_that_was_recovered_on_its_own_boot_was_not_cut_off(facts: Facts, store: Store) -> None:
    """It was killed, and the next worker saw that. Mutant: a reclaim that always writes the last beat down."""
    who = register(store, of_boot("before"))
    crashes.reclaim(store, worker=who, heartbeat=None, vanished=True)
    assert story.of(facts) is None


def test_the_year_of_an_old_one() -> None:
    """Mutant: the day alone, of a machine that was off for more than a year."""
    now = datetime.now(UTC)
    assert story.clock(now - timedelta(days=400)).endswith(f" {(now - timedelta(days=400)).year}")
    assert len(story.clock(now)) == 5
