"""The order of work against the order of a shuffled file, on the real engine, where prefixes do not fit into its cache.

    python -m tests.benchmarks.bench_prefix_order [--prefixes 12] [--each 3] [--rounds 2]

The KV cache holds 2,112 tokens and a prefix has some 320, so that about six of them fit. One worker with the model
loaded does every batch, alternating; each has prefixes of its own, so that no batch finds what another one left.
Printed are the share of prompt tokens that the cache served, which no load of the machine changes, and the seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from tests.rigs.model import ENGINE_ARGS, model_folder
from vbatch.engine import smollm

FLAGS = ("--max-num-seqs", "4", "--num-gpu-blocks-override", "66", "--block-size", "32",
         "--enable-prompt-tokens-details")  # fmt: skip


def messages(workload: str, prefix: int, question: int, salt: str) -> list[dict[str, str]]:
    """Return a request that shares about 320 tokens with the others of its prefix."""
    words = random.Random(f"{salt} {prefix}")
    text = " ".join(words.choice(("red", "green", "blue", "tall", "small", "old")) for _ in range(300))
    asked = {"role": "user", "content": f"Question {question}: what is number {question * 7}?"}
    match workload:
        case "system prompts":
            return [{"role": "system", "content": f"Rules of {salt} {prefix}: {text}"}, asked]
        case "document and questions":
            return [{"role": "user", "content": f"Document {salt} {prefix}: {text}\n\n{asked['content']}"}]
        case _:
            examples = [text[place : place + 480] for place in range(0, 1440, 480)]
            shots = [
                message
                for number, example in enumerate(examples)
                for message in (
                    {"role": "user", "content": f"Example {salt} {prefix} {number}: {example}"},
                    {"role": "assistant", "content": "yes"},
                )
            ]
            return [*shots, asked]


def write_input(path: Path, workload: str, *, prefixes: int, each: int, salt: str) -> None:
    """Write the questions about all prefixes in one shuffled order, which is the same for every salt."""
    pairs = [(prefix, question) for prefix in range(prefixes) for question in range(each)]
    random.Random(1).shuffle(pairs)
    with path.open("w") as file:
        for prefix, question in pairs:
            body = {
                "model": smollm.NAME,
                "messages": messages(workload, prefix, question, salt),
                "max_tokens": 2,
            }
            line = {"custom_id": f"{prefix}-{question}", "method": "POST", "url": "/v1/chat/completions"}
            file.write(json.dumps(line | {"body": body}) + "\n")


def run(*arguments: str) -> Any:
    """Run a command of vbatch and return its document."""
    done = subprocess.run(
        [sys.executable, "-m", "vbatch", *arguments, "--json"], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


def measured(
    folder: Path, workload: str, order: str, *, prefixes: int, each: int, salt: str
) -> tuple[float, float]:
    """Return the share of prompt tokens that the cache served, and the seconds from the first request on."""
    source = folder / f"{salt}.jsonl"
    write_input(source, workload, prefixes=prefixes, each=each, salt=salt)
    batch = run("submit", str(source), "--order", order, "--wait")["id"]
    ended = run("status", batch)
    tokens = [
        json.loads(line)["response"]["body"]["usage"]
        for line in source.with_suffix(".output.jsonl").read_text().splitlines()
    ]
    cached = sum((usage["prompt_tokens_details"] or {}).get("cached_tokens", 0) for usage in tokens)
    return cached / sum(usage["prompt_tokens"] for usage in tokens), _moment(ended, "completed_at") - _moment(
        ended, "in_progress_at"
    )


def _moment(document: dict[str, Any], name: str) -> float:
    found = document[name]
    return float(found) if isinstance(found, int | float) else datetime.fromisoformat(found).timestamp()


def workers(folder: Path) -> Iterator[None]:
    """Have one worker with the model loaded."""
    (folder / "config.toml").write_text(f'[models."{smollm.NAME}"]\npath = "{model_folder()}"\n')
    os.environ |= {
        "VBATCH_CONFIG": str(folder / "config.toml"),
        "VBATCH_DATABASE_URL": f"sqlite:///{folder / 'vbatch.db'}",
        "VBATCH_STATE_DIR": str(folder / "state"),
    }
    command = [
        sys.executable,
        "-m",
        "vbatch",
        "run-worker",
        "--preload",
        smollm.NAME,
        "--",
        *ENGINE_ARGS,
        *FLAGS,
    ]
    with (
        (folder / "worker.log").open("w") as log,
        subprocess.Popen(command, stderr=log, stdout=log) as worker,
    ):
        try:
            yield
        finally:
            worker.terminate()


def main() -> None:
    """Print the shares and seconds of both orders, and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prefixes", type=int, default=12)
    parser.add_argument("--each", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=2)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="vbatch-bench-") as name:
        for _ in workers(Path(name)):
            measured(Path(name), "system prompts", "file", prefixes=2, each=2, salt="warm-up")
            for workload in ("system prompts", "document and questions", "few-shot"):
                ratios = []
                for number in range(given.rounds):
                    found = {
                        order: measured(
                            Path(name),
                            workload,
                            order,
                            prefixes=given.prefixes,
                            each=given.each,
                            salt=f"{order}-{number}-{workload[:3]}",
                        )
                        for order in ("file", "prefix")
                    }
                    ratios.append(found["file"][1] / found["prefix"][1])
                    for order, (share, seconds) in found.items():
                        print(
                            f"{workload:24} --order {order:6} {share:5.0%} cached {seconds:7.1f} s",
                            flush=True,
                        )
                print(f"{workload:24} by prefix {statistics.median(ratios):.2f} times as fast", flush=True)


if __name__ == "__main__":
    main()
