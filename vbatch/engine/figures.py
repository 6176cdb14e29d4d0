"""What vLLM counts of itself, read from its metrics in this process: requests, KV cache, preemptions, prefix hits.

vLLM (0.32 and 0.33) updates them at each step of the engine; reading them costs a fraction of a millisecond.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

_RUNNING, _WAITING = "vllm:num_requests_running", "vllm:num_requests_waiting"
_CACHE, _PREEMPTIONS = "vllm:kv_cache_usage_perc", "vllm:num_preemptions_total"
_QUERIES, _HITS = "vllm:prefix_cache_queries_total", "vllm:prefix_cache_hits_total"
_ALL = (_RUNNING, _WAITING, _CACHE, _PREEMPTIONS, _QUERIES, _HITS)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineFigures:
    """An engine at one moment. Counts are since its load; ``cache`` is the share of the KV cache that is in use.

    ``prompt_tokens`` were looked up in the prefix cache, ``cached_tokens`` of them were found. ``preemptions`` are
    requests that lost their place for want of KV cache, and are computed again.
    """

    running: int
    waiting: int
    cache: float
    preemptions: int
    prompt_tokens: int
    cached_tokens: int

    @property
    def hit_rate(self) -> float | None:
        """The share of prompt tokens that came from the prefix cache; None before there are any."""
        return self.cached_tokens / self.prompt_tokens if self.prompt_tokens else None


def read() -> EngineFigures | None:
    """Return the figures of the engine that was loaded last; None where there are none.

    The echo engine has none, nor has vLLM with ``--disable-log-stats``.
    """
    client: Any = sys.modules.get("prometheus_client")  # vLLM imports it
    if client is None:
        return None
    found: dict[str, list[float]] = {}
    for metric in client.REGISTRY.restricted_registry(_ALL).collect():
        for sample in metric.samples:
            if sample.name in _ALL:
                found.setdefault(sample.name, []).append(sample.value)
    if _RUNNING not in found:
        return None
    usage = found.get(_CACHE, [0.0])  # one for each data-parallel rank
    count = {name: int(sum(found.get(name, ()))) for name in _ALL}
    return EngineFigures(
        running=count[_RUNNING],
        waiting=count[_WAITING],
        cache=sum(usage) / len(usage),
        preemptions=count[_PREEMPTIONS],
        prompt_tokens=count[_QUERIES],
        cached_tokens=count[_HITS],
    )
