"""vbatch against ``vllm run-batch`` on the same file with the same flags, alternating in one run.

    python -m tests.benchmarks.bench_throughput [--requests 300] [--rounds 3] [--as-shipped]

Counted is the time from the moment the engine is loaded to the moment the output file is whole. Both compute on the
cores that vLLM takes by itself, so that the ratio is what vbatch costs. ``--as-shipped``
lets run-batch keep its own batch sizes (128 sequences, 2,048 tokens); without it both get the same.
vbatch saves every result durably on the way; run-batch writes once at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.rigs.model import ENGINE_ARGS, model_folder
from vbatch.engine import defaults, smollm

SIZES = ("--max-num-seqs", "256", "--max-num-batched-tokens", "4096")


def write_input(path: Path, requests: int) -> None:
    """Requests of some 30 tokens whose answers are exactly 24 tokens long."""
    with path.open("w") as file:
        for number in range(requests):
            body = {
                "model": smollm.NAME,
                "messages": [{"role": "user", "content": f"Say something about the number {number}."}],
                "max_tokens": 24,
                "ignore_eos": True,
                "temperature": 0,
            }
            line = {"custom_id": str(number), "method": "POST", "url": "/v1/chat/completions", "body": body}
            file.write(json.dumps(line) + "\n")


def run_batch(folder: Path, source: Path, model: Path, sizes: tuple[str, ...]) -> float:
    """Return the seconds that ``vllm run-batch`` takes once its engine is loaded."""
    target = folder / "run_batch.jsonl"
    target.unlink(missing_ok=True)
    command = [sys.executable, "-m", "vllm.entrypoints.launchers.run_batch", "-i", source, "-o", target,
               "--model", model, "--served-model-name", smollm.NAME, *ENGINE_ARGS, *sizes]  # fmt: skip
    began = 0.0
    process = subprocess.Popen(
        list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout is not None
    log = []
    for line in process.stdout:
        log.append(line)
        if not began and "Running batch" in line:
            began = time.perf_counter()
    ended = time.perf_counter()
    if process.wait() != 0 or not began:
        raise SystemExit("".join(log[-30:]))
    return min(ended, began + _written_after(target, began)) - began


def _written_after(target: Path, began: float) -> float:
    """Seconds from ``began`` to the last write of the output file: shutting down does not count."""
    return target.stat().st_mtime - (time.time() - (time.perf_counter() - began))


def vbatch(folder: Path, source: Path, model: Path) -> float:
    """Return the seconds that ``vbatch run-worker`` takes once its engine is loaded, every result saved."""
    for left in folder.glob("input.*.jsonl"):
        left.unlink()
    (folder / "config.toml").write_text(f'[models."{smollm.NAME}"]\npath = "{model}"\n')
    environment = os.environ | {
        "VBATCH_CONFIG": str(folder / "config.toml"),
        "VBATCH_DATABASE_URL": f"sqlite:///{folder / 'vbatch.db'}",
    }
    command = [sys.executable, "-m", "vbatch"]
    subprocess.run([*command, "submit", source], env=environment, check=True, capture_output=True)
    process = subprocess.Popen(
        [*command, "run-worker", "--drain", "--", *ENGINE_ARGS, *SIZES], env=environment,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    began = ended = 0.0
    log = []
    for line in process.stderr:
        log.append(line)
        if " engine.loaded " in line:
            began = time.perf_counter()
        if " batch.completed " in line:
            ended = time.perf_counter()
    if process.wait() != 0 or not ended:
        raise SystemExit("".join(log[-30:]))
    return ended - began


def main() -> None:
    """Print the seconds of each run and the ratio of the throughputs, pair by pair."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--as-shipped", action="store_true")
    arguments = parser.parse_args()
    os.environ[defaults.RESERVED] = "1"
    model = model_folder()
    ratios = []
    with tempfile.TemporaryDirectory(prefix="vbatch-bench-") as name:
        folder = Path(name)
        source = folder / "input.jsonl"
        write_input(source, arguments.requests)
        for number in range(arguments.rounds):
            bare = run_batch(folder, source, model, () if arguments.as_shipped else SIZES)
            ours = vbatch(folder, source, model)
            ratios.append(bare / ours)
            print(f"round {number + 1}: run-batch {bare:6.2f} s ({arguments.requests / bare:5.1f} requests/s)   "
                  f"vbatch {ours:6.2f} s ({arguments.requests / ours:5.1f} requests/s)   ratio {bare / ours:.3f}",
                  flush=True)  # fmt: skip
    print(f"throughput of vbatch / run-batch: median {statistics.median(ratios):.3f}")


if __name__ == "__main__":
    main()
