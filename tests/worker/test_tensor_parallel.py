"""The real vLLM, one model over two processes: guarded, in the ledger, and recovered when they or the worker die.

The model is tiny and has random weights. vLLM's CPU build gives each part a NUMA node, or the cores that
VLLM_CPU_OMP_THREADS_BIND lists, parts separated by ``|`` (vllm/utils/ompmultiprocessing.py).
"""

from __future__ import annotations

import json
import os
import re
import signal

import pytest

from tests.rigs import llama
from tests.rigs.commands import Home, Lines
from tests.rigs.waiting import cpu_seconds, exit_code, until
from vbatch.engine import smollm
from vbatch.store import Store, registry
from vbatch.system import processes

pytest.importorskip("vllm", reason="the engine's own tests need vLLM: pip install 'vbatch[cpu]'")

# Some 40 s of two idle cores for each of three loads.
pytestmark = [pytest.mark.vllm, pytest.mark.long, pytest.mark.timeout(1200)]

PARTS = 2
SILENCE = 300.0  # seconds


@pytest.fixture
def split(home: Home) -> Home:
    """A home whose model is split by its ``gpus``."""
    cores = sorted(os.sched_getaffinity(0))
    bound = "|".join(str(cores[part % len(cores)]) for part in range(PARTS))
    home.extra |= smollm.ENVIRONMENT | {"VLLM_CPU_OMP_THREADS_BIND": bound}
    folder = llama.llama(home.path / "model")
    (home.path / "config" / "vbatch").mkdir(parents=True)
    (home.path / "config" / "vbatch" / "config.toml").write_text(
        f'[models."{llama.NAME}"]\npath = "{folder}"\ngpus = {PARTS}\nargs = {json.dumps(list(llama.FLAGS))}\n'
    )
    return home


def questions(count: int, max_tokens: int) -> list[dict[str, object]]:
    return [
        {
            "custom_id": f"q-{number}",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {
                "model": llama.NAME,
                "messages": [{"role": "user", "content": f"Tell me about the number {number}."}],
                "max_tokens": max_tokens,
                "ignore_eos": True,
                "temperature": 0,
            },
        }
        for number in range(count)
    ]


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_part_dies_then_the_worker(split: Home, store: Store) -> None:
    """Mutants: ``gpus`` that sets no size; a survivor's words as the cause; no guard."""
    batch = split.submit(lines := questions(40, max_tokens=400))
    with split.worker("--max-inflight", "4") as worker:
        busy = lambda: cpu_seconds(worker.pid)  # noqa: E731
        until(lambda: split.finished(batch) >= 1, progress=busy, silence=SILENCE)
        ledger = registry.ledger(store)
        parts = [row for row in ledger if "Worker" in row.title]
        assert len(parts) == PARTS, [row.title for row in ledger]
        assert all(os.getpgid(row.identity.pid) == row.identity.pid for row in ledger)

        os.kill(parts[-1].identity.pid, signal.SIGKILL)
        until(lambda: "engine.died" in split.worker_log, progress=busy, silence=SILENCE)
        cause = next(line for line in split.worker_log.splitlines() if "engine.died" in line)
        assert re.search(r'cause="the engine process VllmWorker-1 (was ended by SIGKILL|crashed)', cause), (
            cause
        )
        until(lambda: all(processes.is_gone(row.identity) for row in ledger))

        until(lambda: split.worker_log.count("engine.loaded") == 2, progress=busy, silence=SILENCE)
        second = registry.ledger(store)
        assert len(second) == len(ledger)
        assert {row.identity for row in second}.isdisjoint(row.identity for row in ledger)
        worker.kill()
        worker.wait()
        until(lambda: all(processes.is_gone(row.identity) for row in second))
    with split.worker("--drain") as last:
        assert exit_code(last) == 0
    assert registry.ledger(store) == []
    answered = Lines.of(split.batch(batch))
    assert not answered.lost(lines)
    assert not answered.doubled
    assert not answered.errors
