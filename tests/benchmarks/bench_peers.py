"""vbatch against other offline runners on four workloads, and what is left when each gets a SIGKILL at half time.

    python -m tests.benchmarks.bench_peers [--rounds 3] [--size 1.5] [--workloads short,long,prefixes,embeddings]
                                           [--rounds-next 2] [--no-kill] [--as-shipped] [--same-cores]
                                           [--others FOLDER] [--rounds-others 2]

The others are ``vllm run-batch`` of 0.32, that of 0.33 against vbatch on 0.33, and with ``--others`` Ray Data LLM and
datatrove's InferenceRunner, which has no embeddings. These two are installed into an environment in that folder, use
vLLM 0.32 and take part in the first ``--rounds-others`` rounds.
All get the same file and the same flags, and take turns in one run. Counted is the time from the moment the engine is
loaded to the last write of the output file, which must have a 200 for every request. vbatch saves every result durably
on the way. ``--same-cores`` keeps vbatch from giving the model both of two cores, which no flag of vLLM does; what is
left is what vbatch itself costs. ``--as-shipped`` adds rounds of short and long answers without a flag for sizes or the
type of numbers. Printed is a table in Markdown: the time of the other divided by vbatch's in the same round, so that
above 1 vbatch is faster.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import sqlite3
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.benchmarks import bench_prefix_order
from tests.rigs import vllm_next
from tests.rigs.model import ENGINE_ARGS, model_folder
from vbatch.engine import defaults, smollm
from vbatch.system import descendants

SIZES = ("--max-num-seqs", "128", "--max-num-batched-tokens", "2048")
POOLING = ("--runner", "pooling", "--convert", "embed")
SMALL = (
    "--max-model-len",
    "2048",
    "--gpu-memory-utilization",
    "0.3",
    "--enforce-eager",
)  # no sizes, no numbers

KILLED = "short"  # the workload in which each gets a SIGKILL: it must have far more requests than run at once
LIMIT = 600.0  # seconds, after which a runner is taken to hang
OTHERS = (
    "ray[data]==2.60.0",
    "datatrove==0.10.1",
    "orjson",
    "aiosqlite",
    "aiofiles",
    "xxhash",
)  # of datatrove's extra

Body = dict[str, Any]


class NotAnswered(Exception):
    """A runner failed; the end of its log."""


@dataclass(frozen=True)
class Workload:
    """Requests of one kind, and the flags with which every runner answers them."""

    title: str
    url: str
    flags: tuple[str, ...]
    bodies: Sequence[Body]

    def write(self, path: Path) -> None:
        """Write the input file."""
        with path.open("w") as file:
            for number, body in enumerate(self.bodies):
                line = {"custom_id": str(number), "method": "POST", "url": self.url}
                file.write(json.dumps(line | {"body": {"model": smollm.NAME, **body}}) + "\n")


@dataclass(frozen=True)
class Runner:
    """One program that answers a file. ``began`` is what it writes when its engine is loaded."""

    title: str
    began: bytes
    environment: Mapping[str, str] = field(default_factory=dict)
    against: str = "vbatch"  # the runner that it is compared with

    def command(self, folder: Path, model: Path, flags: Sequence[str]) -> list[str]:
        """Return the command that answers ``input.jsonl``."""
        return [sys.executable, "-m", "vllm.entrypoints.launchers.run_batch", "-i", str(folder / "input.jsonl"),
                "-o", str(self.output(folder)), "--model", str(model), "--served-model-name", smollm.NAME,
                *flags]  # fmt: skip

    def prepare(self, folder: Path, model: Path) -> None:
        """Do what comes before the engine is started."""

    def output(self, folder: Path) -> Path:
        """Return the output file."""
        return folder / "run-batch.jsonl"

    def saved(self, folder: Path) -> int:
        """Return how many answers are on the disk."""
        return len(_lines(self.output(folder)))


class Vbatch(Runner):
    """This project."""

    def command(self, folder: Path, model: Path, flags: Sequence[str]) -> list[str]:  # noqa: ARG002
        return [sys.executable, "-m", "vbatch", "run-worker", "--drain", "--", *flags]

    def prepare(self, folder: Path, model: Path) -> None:
        (folder / "config.toml").write_text(f'[models."{smollm.NAME}"]\npath = "{model}"\n')
        subprocess.run(
            [sys.executable, "-m", "vbatch", "submit", folder / "input.jsonl"],
            env=os.environ | _variables(folder),
            check=True,
            capture_output=True,
        )

    def output(self, folder: Path) -> Path:
        return folder / "input.output.jsonl"

    def saved(self, folder: Path) -> int:
        with closing(sqlite3.connect(folder / "vbatch.db")) as database:
            return int(database.execute("SELECT count(*) FROM result").fetchone()[0])


@dataclass(frozen=True)
class Other(Runner):
    """A library that a small program of ``tests.rigs`` uses, in an environment of its own."""

    python: Path = Path()
    program: str = ""
    embeds: bool = True

    def command(self, folder: Path, model: Path, flags: Sequence[str]) -> list[str]:
        script = Path(__file__).parents[1] / "rigs" / self.program
        return [str(self.python), str(script), str(folder / "input.jsonl"), str(self.output(folder)), str(model),
                "--", *flags]  # fmt: skip

    def output(self, folder: Path) -> Path:
        return folder / "output"


def _others(folder: Path) -> list[Other]:
    """Install the libraries beside the vLLM that is here, and return their runners."""
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        packages = next(folder.glob("lib/python*/site-packages"))
        (packages / "base.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
        subprocess.run([python, "-m", "pip", "install", "-q", *OTHERS], check=True)
    # datatrove and the command vllm ask for the distribution, which has another name for a CPU.
    named = folder / "named" / "vllm-0.32.0.dist-info"
    named.mkdir(parents=True, exist_ok=True)
    (named / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0+cpu\n")
    path = {
        "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"])),
        "PYTHONPATH": str(named.parent),
    }  # the command vllm
    return [
        Other("Ray Data LLM", b"init engine", path, python=python, program="peer_ray.py"),
        Other(
            "datatrove", b"server is ready.", path, python=python, program="peer_datatrove.py", embeds=False
        ),
    ]


def _files(place: Path) -> list[Path]:
    """Return the output files: one, or those of a folder."""
    return sorted(place.glob("*.json*")) if place.is_dir() else [place] if place.exists() else []


def _lines(place: Path) -> list[bytes]:
    return [line for path in _files(place) for line in path.read_bytes().splitlines()]


def _variables(folder: Path) -> dict[str, str]:
    return {
        "VBATCH_CONFIG": str(folder / "config.toml"),
        "VBATCH_DATABASE_URL": f"sqlite:///{folder / 'vbatch.db'}",
        "VBATCH_STATE_DIR": str(folder / "state"),
    }


def run(
    runner: Runner,
    workload: Workload,
    model: Path,
    *,
    as_shipped: bool = False,
    kill_after: float | None = None,
) -> tuple[float, int]:
    """Return the seconds from the loaded engine to the last write, and how many answers are on the disk then.

    With ``kill_after`` the runner gets a SIGKILL so many seconds after its engine was loaded.
    """
    flags = SMALL if as_shipped else workload.flags
    with tempfile.TemporaryDirectory(prefix="vbatch-peers-") as name:
        folder = Path(name)
        workload.write(folder / "input.jsonl")
        runner.prepare(folder, model)
        log = folder / "log"
        with log.open("wb") as file:
            process = subprocess.Popen(
                runner.command(folder, model, flags),
                env=os.environ | _variables(folder) | dict(runner.environment),
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        began, started = 0.0, time.monotonic()
        while process.poll() is None and not (began and kill_after):
            time.sleep(0.05)
            if time.monotonic() - started > LIMIT:
                process.terminate()
            if not began and runner.began in log.read_bytes():
                began = time.time()
        if kill_after is not None:
            time.sleep(kill_after)
            family = descendants.family([process.pid])
            process.kill()
            process.wait()
            descendants.end(family, limit=10)  # the engine of run-batch would live for ever
            return kill_after, runner.saved(folder)
        output = runner.output(folder)
        good = sum(_is_good(json.loads(line)) for line in _lines(output))
        if process.returncode or not began or good != len(workload.bodies):
            first = b"\n".join(_lines(output)[:1]).decode(errors="replace")
            said = log.read_text(errors="replace")[-4000:]
            raise NotAnswered(f"{runner.title}: {good} answers, the first {first[:500]}\n{said}")
        return max(path.stat().st_mtime for path in _files(output)) - began, good


def _is_good(line: Body) -> bool:
    """Return whether a line of an output has an answer: OpenAI's, that of ``peer_ray`` or that of datatrove."""
    if "response" in line:
        return bool(line["response"]["status_code"] == 200)
    return bool(line.get("answer") or line.get("metadata", {}).get("rollout_results"))


def workloads(size: float) -> dict[str, Workload]:
    """Return the four workloads; ``size`` 1 takes some seconds of computing each."""

    def chats(count: int, tokens: int) -> list[Body]:
        return [
            {
                "messages": [{"role": "user", "content": f"Say something about the number {number}."}],
                "max_tokens": tokens,
                "ignore_eos": True,
                "temperature": 0,
            }
            for number in range(round(count * size))
        ]

    pairs = [(prefix, question) for prefix in range(12) for question in range(max(4, round(4 * size)))]
    random.Random(1).shuffle(pairs)
    shared = [
        {"messages": bench_prefix_order.messages("system prompts", *pair, "peers"), "max_tokens": 2}
        for pair in pairs
    ]
    text = "What comes to mind when you read the number {}, and why is it not {}? "
    inputs = [{"input": text.format(number, number + 1) * 2} for number in range(round(300 * size))]
    chat = "/v1/chat/completions"
    small_cache = (
        *ENGINE_ARGS,
        "--max-num-seqs",
        "4",
        "--num-gpu-blocks-override",
        "66",
        "--block-size",
        "32",
    )
    return {
        "short": Workload("short answers, 8 tokens", chat, (*ENGINE_ARGS, *SIZES), chats(240, 8)),
        "long": Workload("long answers, 128 tokens", chat, (*ENGINE_ARGS, *SIZES), chats(96, 128)),
        "prefixes": Workload("shared prefixes, shuffled", chat, small_cache, shared),
        "embeddings": Workload("embeddings", "/v1/embeddings", (*ENGINE_ARGS, *SIZES, *POOLING), inputs),
    }


def main() -> None:
    """Run everything and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rounds-next", type=int, default=2, help="rounds that vLLM 0.33 takes part in")
    parser.add_argument("--size", type=float, default=1.5)
    parser.add_argument("--workloads", default="short,long,prefixes,embeddings")
    parser.add_argument("--no-kill", action="store_true")
    parser.add_argument("--as-shipped", action="store_true")
    parser.add_argument("--same-cores", action="store_true")
    parser.add_argument("--others", type=Path, help="a folder for the environment of the other libraries")
    parser.add_argument("--rounds-others", type=int, default=2, help="rounds that these take part in")
    given = parser.parse_args()
    if given.same_cores:
        os.environ[defaults.RESERVED] = "1"  # what vLLM does by itself
    model = model_folder()
    ours = Vbatch("vbatch", b" engine.loaded ")
    peer = Runner("run-batch 0.32", b"Running batch")
    following: list[Runner] = []
    if given.rounds_next:
        path = _next_vllm()
        ours_on_next = Vbatch("vbatch on 0.33", ours.began, path, against="")
        following = [ours_on_next, Runner("run-batch 0.33", peer.began, path, against=ours_on_next.title)]
    others = _others(given.others.resolve()) if given.others else []
    made = workloads(given.size)
    rows, kills = [], []
    for name in filter(None, given.workloads.split(",")):
        workload = made[name]
        found: dict[str, list[float]] = {}
        for number in range(given.rounds):
            able = [other for other in others if other.embeds or name != "embeddings"]
            runners = [
                *(ours, peer),
                *(following if number < given.rounds_next else []),
                *(able if number < given.rounds_others else []),
            ]
            for runner in runners if number % 2 == 0 else reversed(runners):
                took = _measured(runner, workload, model)
                found.setdefault(runner.title, []).append(took)
                print(f"{name} round {number + 1}: {runner.title} {took:.2f} s", flush=True)
        rows += _rows(workload.title, len(workload.bodies), found, [peer, *following, *others])
        if name == KILLED and not given.no_kill:
            for runner in (ours, peer, *following, *others):
                after = found[runner.title][-1] / 2
                if math.isnan(after):
                    continue
                saved = run(runner, workload, model, kill_after=after)[1]
                kills.append(f"| {runner.title} | {after:.1f} s | {saved} of {len(workload.bodies)} |")
                print(kills[-1], flush=True)
    for name in ("short", "long") if given.as_shipped else ():
        workload, found = made[name], {}
        for number in range(given.rounds):
            for runner in (ours, peer) if number % 2 == 0 else (peer, ours):
                took = run(runner, workload, model, as_shipped=True)[0]
                found.setdefault(runner.title, []).append(took)
                print(f"as shipped, {name} round {number + 1}: {runner.title} {took:.2f} s", flush=True)
        rows += _rows(f"as shipped: {workload.title}", len(workload.bodies), found, [peer])
    print(
        "\n| workload | requests | vbatch | against | as fast |",
        "| --- | --- | --- | --- | --- |",
        *rows,
        sep="\n",
    )
    print("\n| killed | after | answers on the disk |", "| --- | --- | --- |", *kills, sep="\n")


def _measured(runner: Runner, workload: Workload, model: Path) -> float:
    """Return the seconds; not a number where another runner does not work here, whose log is printed."""
    try:
        return run(runner, workload, model)[0]
    except NotAnswered as error:
        if isinstance(runner, Vbatch):
            raise SystemExit(str(error)) from None
        print(error, flush=True)
        return math.nan


def _rows(title: str, requests: int, found: Mapping[str, list[float]], others: Sequence[Runner]) -> list[str]:
    rows = []
    for other in others:
        if not other.against or other.title not in found:
            continue
        mine, theirs = found[other.against], found[other.title]
        ratios = [each / own for own, each in zip(mine, theirs, strict=False)]
        spread = f" ({min(ratios):.2f} to {max(ratios):.2f})" if len(ratios) > 1 else ""
        as_fast = f"{statistics.median(ratios):.2f}{spread}"
        rows.append(f"| {title} | {requests} | {statistics.median(mine):.1f} s | {other.title} | {as_fast} |")
    return rows


def _next_vllm() -> dict[str, str]:
    paths = (str(vllm_next.package()), os.environ.get("PYTHONPATH"))
    return {"PYTHONPATH": os.pathsep.join(filter(None, paths))}


if __name__ == "__main__":
    main()
