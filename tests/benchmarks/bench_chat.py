"""How long a chat takes through ``vbatch serve``: alone, and beside a batch that fills the engine.

    python -m tests.benchmarks.bench_chat [--chats 12] [--sequences 4]

Each line is a worker of its own on the small model of the tests: without priority and reserve, as any server would do,
with priority alone, and with both, as ``chat = true`` has it. Answers of the batch have 24 tokens, those of chats 4.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

from tests.benchmarks.bench_throughput import write_input
from tests.rigs.commands import Home
from tests.rigs.model import ENGINE_ARGS, model_folder
from tests.rigs.serving import KEY, Served, served
from tests.rigs.waiting import until
from vbatch.engine import smollm

TOKENS = 24  # of each answer of the batch

WAYS = {
    "neither": ({"VBATCH_CHAT_RESERVE": "0"}, ("--scheduling-policy", "fcfs")),
    "priority alone": ({"VBATCH_CHAT_RESERVE": "0"}, ()),
    "priority and reserve": ({}, ()),
}


def chat(server: Served, number: int) -> float | None:
    """Return the seconds that one chat takes; None where it is refused."""
    document = {
        "model": smollm.NAME,
        "messages": [{"role": "user", "content": f"Say hello to guest {number}."}],
        "max_tokens": 4,
        "ignore_eos": True,
    }
    request = urllib.request.Request(
        f"{server.url}/v1/chat/completions",
        json.dumps(document).encode(),
        {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"},
    )
    began = time.perf_counter()
    try:
        with urllib.request.urlopen(request, timeout=300) as answer:
            answer.read()
    except urllib.error.HTTPError as error:
        if error.code != 503:
            raise
        return None
    return time.perf_counter() - began


def chats(server: Served, count: int) -> list[float]:
    """Return the seconds of some chats, one after the other."""
    found = [chat(server, number) for number in range(count)]
    return [seconds for seconds in found if seconds is not None]


def speed(home: Home, batch: str, *, seconds: float) -> float:
    """Return the tokens that the batch gets each second, over this time."""
    before, began = home.finished(batch), time.perf_counter()
    time.sleep(seconds)
    return (home.finished(batch) - before) * TOKENS / (time.perf_counter() - began)


def measure(folder: Path, way: str, count: int, sequences: int, *, alone: bool) -> None:
    """Print one line, and before it the one of chats alone."""
    environment, flags = WAYS[way]
    home = Home(folder, f"sqlite:///{folder / 'vbatch.db'}")
    home.extra |= smollm.ENVIRONMENT
    (folder / "config" / "vbatch").mkdir(parents=True)
    (folder / "config" / "vbatch" / "config.toml").write_text(
        f'chat = true\npreload = "{smollm.NAME}"\n[models."{smollm.NAME}"]\npath = "{model_folder()}"\n'
    )
    write_input(folder / "input.jsonl", 2000)
    words = ("--", *ENGINE_ARGS, "--max-num-seqs", str(sequences), *flags)
    with served(home) as server, home.worker(*words, **environment):
        until(lambda: chat(server, 0) is not None, pause=1, silence=900)
        chats(server, 3)
        if alone:
            report("alone", chats(server, count))
        batch = home.run("submit", "input.jsonl").stdout.strip()
        until(lambda: home.finished(batch) > 2 * sequences)
        undisturbed = speed(home, batch, seconds=20)
        before, began = home.finished(batch), time.perf_counter()
        taken = chats(server, count)
        beside = (home.finished(batch) - before) * TOKENS / (time.perf_counter() - began)
        report(way, taken, f"   batch {undisturbed:5.1f} tok/s, {beside:5.1f} during the chats")
        assert home.batch(batch)["request_counts"]["failed"] == 0  # type: ignore[index]


def report(way: str, taken: list[float], more: str = "") -> None:
    """Print one line."""
    print(
        f"{way:22} median {statistics.median(taken):6.2f} s   longest {max(taken):6.2f} s{more}", flush=True
    )


def main() -> None:
    """Measure each way in turn."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--chats", type=int, default=12)
    parser.add_argument("--sequences", type=int, default=4)
    arguments = parser.parse_args()
    print(f"load of the machine before: {os.getloadavg()[0]:.1f}", flush=True)
    for number, way in enumerate(WAYS):
        with tempfile.TemporaryDirectory(prefix="vbatch-bench-") as name:
            measure(Path(name), way, arguments.chats, arguments.sequences, alone=number == 0)


if __name__ == "__main__":
    main()
