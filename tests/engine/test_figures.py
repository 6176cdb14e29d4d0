"""vLLM's own figures: read from real metrics in a registry, as vLLM registers them."""

from __future__ import annotations

from dataclasses import replace

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge

from vbatch.engine import figures
from vbatch.engine.figures import EngineFigures

LABELS = ("model_name", "engine")


@pytest.fixture
def vllm_metrics(own_registry: CollectorRegistry) -> dict[str, Gauge | Counter]:
    gauges = {name: Gauge(f"vllm:{name}", "As vLLM's.", LABELS, registry=own_registry) for name in
              ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")}  # fmt: skip
    counters = {name: Counter(f"vllm:{name}", "As vLLM's.", LABELS, registry=own_registry) for name in
                ("num_preemptions", "prefix_cache_queries", "prefix_cache_hits")}  # fmt: skip
    return gauges | counters


@pytest.mark.usefixtures("own_registry")
def test_without_vllm_there_are_none() -> None:
    assert figures.read() is None


def test_the_figures_of_all_ranks(vllm_metrics: dict[str, Gauge | Counter]) -> None:
    """Mutants: the share of the cache is added up; hits and queries are exchanged."""
    values = {
        "num_requests_running": (3, 4), "num_requests_waiting": (1, 0), "kv_cache_usage_perc": (0.5, 0.7),
        "num_preemptions": (2, 0), "prefix_cache_queries": (100, 100), "prefix_cache_hits": (60, 20),
    }  # fmt: skip
    for name, ranks in values.items():
        for rank, value in enumerate(ranks):
            vllm_metrics[name].labels("m", str(rank)).inc(value)
    found = figures.read()
    assert found is not None
    assert found.cache == pytest.approx(0.6)
    assert replace(found, cache=0.6) == EngineFigures(
        running=7, waiting=1, cache=0.6, preemptions=2, prompt_tokens=200, cached_tokens=80
    )
    assert found.hit_rate == 0.4
