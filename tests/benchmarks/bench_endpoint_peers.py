"""What a request costs the client: vbatch in-process and through ``endpoint``, Ray Data's HTTP stage, datatrove.

python -m tests.benchmarks.bench_endpoint_peers [--requests 10000] [--rounds 3]

All read the same file, ask the same quick server, which is a process of its own, and write one line for each request;
they take turns in one run. Counted is the CPU time of the process and of all below it: for Ray its daemons and actors,
for vbatch `submit` and the worker. Start and imports do not count: each way is warmed up, does a tenth of the file and
then all of it, and the figure is the difference over the requests between. The peers lie in an environment of their own
(tests/rigs/with_ray.py); where that cannot be made, they are left out and the script says so.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import psutil

from tests.benchmarks.bench_endpoint import serving
from tests.rigs import with_ray
from tests.rigs.commands import chats
from tests.rigs.docs import ROOT


def vbatch(source: Path, folder: Path, url: str | None) -> None:
    """Submit the file and have a worker answer it, through ``endpoint`` or, without a URL, in its own process."""
    from tests.rigs.workers import settings_in
    from vbatch import batches
    from vbatch.config.endpoints import EndpointSettings
    from vbatch.store import WORKER_PATIENCE, Store
    from vbatch.worker import Stop, View, run

    store_url = f"sqlite:///{folder}/vbatch.db"
    store = Store(store_url)
    store.prepare()
    options = batches.SubmitOptions(output=folder / "answers.jsonl")
    batches.submit(store, batches.InputFile.at(source), options)
    store.close()
    endpoints = {} if url is None else {"server": EndpointSettings.model_validate({"url": url})}
    settings = settings_in(folder, engine="endpoint" if endpoints else "echo", endpoints=endpoints)
    stop = Stop()
    run(
        Store(store_url, patience=WORKER_PATIENCE, stop=stop.store),
        settings,
        view=View(),
        stop=stop,
        drain=True,
    )


def in_process(source: Path, folder: Path, url: str) -> None:
    """Answer with the echo engine in the worker's own process."""
    vbatch(source, folder, None)


def ray_data(source: Path, folder: Path, url: str) -> None:
    """Read, ask and write as Ray's documentation shows it, with its own defaults."""
    import ray
    from ray.data.llm import HttpRequestProcessorConfig, build_processor

    ask = build_processor(
        HttpRequestProcessorConfig(url=f"{url}/v1/chat/completions", concurrency=1),
        preprocess=lambda row: {"custom_id": row["custom_id"], "payload": row["body"]},
        postprocess=lambda row: {"custom_id": row["custom_id"], "response": row["http_response"]},
    )
    ask(ray.data.read_json(str(source), lines=True)).write_json(str(folder))


def datatrove(source: Path, folder: Path, url: str) -> None:
    """Read, ask and write with datatrove's runner, with its own defaults."""
    from datatrove.data import Document
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.inference.run_inference import InferenceConfig, InferenceRunner
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.writers import JsonlWriter

    async def ask(document: Document, generate: Callable[..., object]) -> object:
        return await generate({"messages": document.metadata["messages"]})  # type: ignore[misc]

    def adapted(_: object, line: dict[str, object], path: str, number: int) -> dict[str, object]:
        body: dict[str, object] = line["body"]  # type: ignore[assignment]
        return {"id": line["custom_id"], "text": "-", "metadata": {"messages": body["messages"]}}

    runner = InferenceRunner(
        rollout_fn=ask,
        config=InferenceConfig(server_type="endpoint", model_name_or_path="echo", endpoint_url=url),
        output_writer=JsonlWriter(str(folder), output_filename="${rank}.jsonl", compression=None),
    )
    reader = JsonlReader(str(source.parent), glob_pattern=source.name, adapter=adapted)
    LocalPipelineExecutor([reader, runner], logging_dir=f"{folder}-logs").run()


WAYS: dict[str, Callable[[Path, Path, str], None]] = {
    "in-process": in_process,
    "endpoint": vbatch,
    "Ray Data": ray_data,
    "datatrove": datatrove,
}
OURS = ("in-process", "endpoint")


def measure(way: str, sources: list[Path], url: str) -> None:
    """Go one way with each file, in this process; print the CPU and wall seconds of each."""
    if way == "Ray Data":
        import ray

        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    for source in sources:
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place) / "out"
            folder.mkdir()
            before, started = cpu(), time.perf_counter()
            WAYS[way](source, folder, url)
            used, took = cpu() - before, time.perf_counter() - started
            answered = [json.loads(line) for path in folder.glob("*.json*") for line in path.open()]
            names = {line["id"] if way == "datatrove" else line["custom_id"] for line in answered}
            assert len(answered) == len(names) == len(source.read_text().splitlines()), len(answered)
            print(json.dumps([used, took]), flush=True)


def cpu() -> float:
    """Return the CPU seconds of this process, of all below it, and of those of them that have ended."""
    here = psutil.Process()
    return sum(sum(process.cpu_times()[:4]) for process in (here, *here.children(recursive=True)))


def measured(
    way: str, sources: list[Path], counts: list[int], url: str, python: str | Path
) -> tuple[float, float]:
    """Go one way in a process of its own; return milliseconds of CPU for a request more, and requests a second."""
    command = [python, "-m", "tests.benchmarks.bench_endpoint_peers", "--way", way, "--url", url]
    done = subprocess.run(
        [*command, *map(str, sources)],
        env=with_ray.environment() | {"RAY_DATA_DISABLE_PROGRESS_BARS": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise SystemExit(f"{way}: {done.stderr[-3000:]}")
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    (_, (little, _), (much, took)) = found
    return (much - little) * 1000 / (counts[2] - counts[1]), counts[2] / took


def peers() -> Path | None:
    """Return the interpreter of the peers' environment; None, and a sentence, where it cannot be made."""
    try:
        return with_ray.python()
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"Ray Data and datatrove are left out, because they cannot be installed here: {error}")
        return None


def main() -> None:
    """Measure, and print one line for each way and round, then the medians and the ratios."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--url", help=argparse.SUPPRESS)
    parser.add_argument("sources", nargs="*", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.way:
        return measure(given.way, given.sources, given.url)
    python = peers()
    ways = {way: sys.executable if way in OURS else python for way in WAYS}
    figures: dict[str, list[float]] = {way: [] for way, its in ways.items() if its is not None}
    counts = [100, given.requests // 10, given.requests]
    with tempfile.TemporaryDirectory() as place, serving() as url:
        sources = [Path(place) / f"requests-{number}.jsonl" for number in counts]
        for source, number in zip(sources, counts, strict=True):
            source.write_text("".join(json.dumps(line) + "\n" for line in chats(number)))
        for _ in range(given.rounds):
            for way, costs in figures.items():
                cost, pace = measured(way, sources, counts, url, ways[way] or "")
                costs.append(cost)
                print(f"{way}: {cost:.3f} ms of CPU a request, {pace:,.0f}/s", flush=True)
    for way, found in figures.items():
        ratios = sorted(one / base for one, base in zip(found, figures["endpoint"], strict=True))
        print(
            f"{way}: median {median(found):.3f} ms of CPU a request ({min(found):.3f} to {max(found):.3f}); "
            f"against endpoint {median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        )
    return None


if __name__ == "__main__":
    main()
