"""The requests that follow a line, or come before it: in file order, whatever the order of work is."""

from __future__ import annotations

import random

from tests.rigs.filling import ENDPOINT, answer, claim, new_batch, worker
from vbatch.store import Store, browsing, ingest, queue
from vbatch.store.browsing import Start, Which
from vbatch.store.records import Batch
from vbatch.system import processes

LINES = 120


def mixed(store: Store) -> Batch:
    """A batch of two models: lines of one ascend, those of the other do so from window to window alone."""
    chance = random.Random(7)
    with ingest.ingest(store, new=new_batch(), submitter=processes.current()) as storing:
        for first in range(1, LINES + 1, 30):
            window = [line for line in range(first, first + 30) if line % 3]
            chance.shuffle(window)
            storing.begin_window("m", "")
            for line in range(first, first + 30):
                if line % 3 == 0:
                    storing.add(line, f"r-{line}", "other", b"{}")
            for line in window:
                storing.add(line, f"r-{line}", "m", b"{}", grouped=True)
        return storing.accept(endpoint=ENDPOINT, input_sha256="sha")


def test_every_page_of_every_line(store: Store) -> None:
    """Forwards and backwards. Mutants: a search that stops a window too late; a grouped run that is read by seq."""
    pk = mixed(store).pk

    def lines(line: int, *, backwards: bool) -> list[int]:
        start = Start(line=line, backwards=backwards)
        found = browsing.places(store, pk=pk, which=Which.ALL, start=start, limit=7)
        return [place.line for place in found]

    for line in (0, 1, 2, 29, 30, 31, 44, 59, 60, 61, 90, 113, 119, 120, 121, 10**9):
        assert lines(line, backwards=False) == list(range(line + 1, LINES + 1))[:7], line
        assert lines(line, backwards=True) == list(range(1, min(line, LINES + 1)))[::-1][:7], line


def test_only_those_that_failed_or_were_cut_off(store: Store) -> None:
    """Across windows that have none. What waits is neither. Mutant: what has no result counts as failed."""
    pk = mixed(store).pk
    who = worker(store)
    for _ in range(2):  # of four windows
        (lease,) = claim(store, who)
        results = [
            answer(lease, request, status=400 if request.line in (2, 50) else 200)
            for request in lease.requests
        ]
        queue.flush(store, worker=who, results=results)

    def lines(which: Which, line: int, *, backwards: bool = False) -> list[int]:
        start = Start(line=line, backwards=backwards)
        return [place.line for place in browsing.places(store, pk=pk, which=which, start=start, limit=5)]

    assert lines(Which.FAILED, 0) == [2, 50]
    assert lines(Which.FAILED, 2) == [50]
    assert lines(Which.FAILED, LINES, backwards=True) == [50, 2]
    assert lines(Which.CUT_OFF, 0) == []
    (place,) = browsing.places(store, pk=pk, which=Which.ALL, start=Start(line=49), limit=1)
    (found,) = browsing.read(store, pk=pk, places=[place])
    assert (found.line, found.model, found.answer.custom_id) == (50, "m", "r-50")
    assert found.answer.outcome is not None
    assert found.answer.outcome.status_code == 400
    last = browsing.places(store, pk=pk, which=Which.ALL, start=Start(line=LINES - 1), limit=1)
    assert [each.answer.outcome for each in browsing.read(store, pk=pk, places=last)] == [None]
    assert list(browsing.read(store, pk=pk + 1, places=last)) == [], "deleted meanwhile"
