"""The advice that follows from an engine's figures: only what has held for a minute, and only where it helps."""

from __future__ import annotations

from dataclasses import replace

import pytest
from prometheus_client import CollectorRegistry, Gauge

from vbatch.engine.figures import EngineFigures
from vbatch.worker import engine_figures
from vbatch.worker.engine_figures import PREEMPTED, WINDOW, Adviser
from vbatch.worker.progress import Snapshot, View

CALM = EngineFigures(running=64, waiting=16, cache=0.9, preemptions=0, prompt_tokens=1000, cached_tokens=600)


def advice(*looks: EngineFigures, on_gpu: bool = True) -> str | None:
    adviser, found = Adviser(), None
    for look in looks:
        found = adviser.advise(look, on_gpu=on_gpu)
    return found


def test_none_where_all_is_well() -> None:
    assert advice(*[CALM] * WINDOW) is None


def test_preemptions() -> None:
    """Mutants: those of before the window count; a few suffice; they are compared with 0."""
    rising = [replace(CALM, preemptions=each) for each in range(WINDOW)]
    said = advice(*rising)
    assert said is not None
    assert f"computes {WINDOW - 1} requests a minute again" in said
    assert "--kv-cache-dtype fp8" in said
    assert advice(*[replace(CALM, preemptions=1000)] * WINDOW) is None
    assert advice(*[CALM] * (WINDOW - 1), replace(CALM, preemptions=PREEMPTED - 1)) is None
    assert advice(*rising[: WINDOW - 1]) is None


def test_an_unused_cache() -> None:
    """On a GPU alone. Mutants: without the question for it; one look decides; a cache that was full is forgotten."""
    unused = replace(CALM, cache=0.2)
    said = advice(*[unused] * WINDOW)
    assert said is not None
    assert "80% of the KV cache" in said.replace(" %", "%")
    assert "--max-num-seqs above 64" in said
    assert advice(*[unused] * WINDOW, on_gpu=False) is None
    assert advice(*[unused] * (WINDOW - 1), CALM) is None
    assert advice(*[unused] * (WINDOW - 1), replace(unused, waiting=0)) is None
    assert advice(CALM, *[unused] * WINDOW) is not None


def test_another_engine_begins_anew() -> None:
    """Mutant: the looks at the engine before it count."""
    unused = replace(CALM, cache=0.2)
    assert advice(*[unused] * WINDOW, replace(unused, prompt_tokens=0)) is None


@pytest.fixture
def running(own_registry: CollectorRegistry) -> Gauge:
    return Gauge("vllm:num_requests_running", "As vLLM's.", ("model_name", "engine"), registry=own_registry)


def test_the_view_has_the_figures_while_the_engine_works(running: Gauge) -> None:
    """The advice is the note that ``status`` shows; a trouble goes before it. Mutant: it stays when the work ends."""
    view, adviser = View(), Adviser()
    running.labels("m", "0").set(5)
    engine_figures.look(view, adviser)
    assert _figures(view) is None
    view.update(state="working", model="m")
    engine_figures.look(view, adviser)
    seen = _figures(view)
    assert seen is not None
    assert seen.running == 5
    view.update(advice="do it")
    assert view.snapshot.note == "do it"
    assert replace(view.snapshot, trouble="broken").note == "broken"
    view.update(state="idle")
    engine_figures.look(view, adviser)
    assert view.snapshot.advice is None
    assert view.snapshot.engine is not None


def _figures(view: View) -> EngineFigures | None:
    return view.snapshot.engine


def test_the_figures_at_the_end_of_a_batch(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="vbatch"):
        engine_figures.report(Snapshot(model="m", engine=replace(CALM, preemptions=3)))
        engine_figures.report(Snapshot(model="m"))
    assert [record.getMessage() for record in caplog.records] == [
        "engine.figures model=m prefix_hits=60 preemptions=3"
    ]
