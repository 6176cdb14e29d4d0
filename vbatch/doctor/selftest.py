"""Kill workers at random on this very machine and store, and count what was lost or doubled.

The echo engine answers, so that no model is needed; everything else is the real thing: the commands, the
processes, SIGKILL, the store's kind and its disk.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from vbatch import batches
from vbatch.batches import InputFile, SubmitOptions
from vbatch.store import Store, catalog
from vbatch.store.database.store import scratch_store

REQUESTS = 10_000
WORKERS = 2
LATENCY_MS = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """What a self-test found. Everything but ``lost`` and ``doubled`` is how hard it tried."""

    requests: int
    kills: int
    saved_under_fire: int
    lost: int
    doubled: int
    wrong: int
    seconds: float

    @property
    def passed(self) -> bool:
        """Whether every request ended in exactly one line, with its own answer."""
        return not (self.lost or self.doubled or self.wrong)


def run(url: str, *, duration: timedelta, report: Callable[[int, int, int], None]) -> Trial:
    """Work on a batch in a scratch store for ``duration`` under random SIGKILLs, then let it finish in peace.

    ``report(kills, saved, total)`` is called after each kill and at the end. Raises StoreUnreachable and
    StoreMisconfigured.
    """
    started = time.monotonic()
    with scratch_store(url) as scratch, tempfile.TemporaryDirectory(prefix="vbatch-selftest-") as name:
        folder = Path(name)
        store = Store(scratch)
        try:
            store.prepare()
            source = InputFile.at(_write_input(folder / "selftest.jsonl"))
            submitted = batches.submit(store, source, SubmitOptions()).batch

            def saved() -> int:
                return catalog.by_pk(store, pk=submitted.pk).counts.completed

            kills = _fire(lambda: _start_worker(scratch, folder), saved, duration=duration, report=report)
            under_fire = saved()
            _start_worker(scratch, folder, "--drain", latency_ms=0).wait()
            finished = catalog.by_pk(store, pk=submitted.pk)
            report(kills, finished.counts.completed, REQUESTS)
            lost, doubled, wrong = _count(Path(finished.output_path), Path(finished.error_path))
        finally:
            store.close()
    return Trial(
        requests=REQUESTS,
        kills=kills,
        saved_under_fire=under_fire,
        lost=lost,
        doubled=doubled,
        wrong=wrong,
        seconds=time.monotonic() - started,
    )


def _fire(
    start: Callable[[], subprocess.Popen[bytes]],
    saved: Callable[[], int],
    *,
    duration: timedelta,
    report: Callable[[int, int, int], None],
) -> int:
    """Keep two workers alive and kill one of them now and then; return how many were killed.

    Each kill waits until something was saved since the last one, so that it meets a worker at work.
    """
    workers = [start() for _ in range(WORKERS)]
    kills, last = 0, 0
    deadline = time.monotonic() + duration.total_seconds()
    try:
        while time.monotonic() < deadline:
            time.sleep(random.uniform(0.05, 0.5))
            now = saved()
            if now == last:
                continue
            last = now
            victim = workers.pop(random.randrange(len(workers)))
            victim.kill()
            victim.wait()
            kills += 1
            workers.append(start())
            report(kills, now, REQUESTS)
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    return kills


def _start_worker(
    url: str, folder: Path, *options: str, latency_ms: int = LATENCY_MS
) -> subprocess.Popen[bytes]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("VBATCH_")} | {
        "VBATCH_DATABASE_URL": url,
        "VBATCH_STATE_DIR": str(folder),
        "VBATCH_CACHE_DIR": str(folder),
        "VBATCH_CONFIG": os.devnull,
        "VBATCH_ECHO_LATENCY_MS": str(latency_ms),
    }
    command = [
        sys.executable,
        "-m",
        "vbatch",
        "run-worker",
        "--engine",
        "echo",
        "--max-inflight",
        "16",
        *options,
    ]
    return subprocess.Popen(
        command,
        env=environment,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def _write_input(path: Path) -> Path:
    with path.open("w") as file:
        for number in range(REQUESTS):
            body = {"model": "echo", "messages": [{"role": "user", "content": f"answer {number}"}]}
            line = {
                "custom_id": str(number),
                "method": "POST",
                "url": "/v1/chat/completions",
                "body": body,
            }
            file.write(json.dumps(line) + "\n")
    return path


def _count(*files: Path) -> tuple[int, int, int]:
    """Return how many requests are lost, doubled, or have another one's answer."""
    seen: Counter[str] = Counter()
    wrong = 0
    for path in files:
        with suppress(FileNotFoundError), path.open() as lines:
            for line in map(json.loads, lines):
                seen[line["custom_id"]] += 1
                answer = line["response"] and line["response"]["body"]["choices"][0]["message"]["content"]
                wrong += answer != f"answer {line['custom_id']}"
    lost = sum(str(number) not in seen for number in range(REQUESTS))
    return lost, sum(times > 1 for times in seen.values()), wrong
