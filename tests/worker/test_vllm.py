"""The real vLLM on a real small model, through real commands: answered, killed, interrupted, swapped."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pexpect
import pytest

from tests.rigs.commands import VBATCH, Home, Lines
from tests.rigs.model import ENGINE_ARGS, small_model  # noqa: F401  (a fixture)
from tests.rigs.waiting import cpu_seconds, exit_code, until
from vbatch.engine import smollm
from vbatch.system import processes, sockets
from vbatch.system.processes import ProcessIdentity

pytestmark = pytest.mark.vllm

MODEL = smollm.NAME
DATA = Path(__file__).parent.parent / "data"


@pytest.fixture
def real(home: Home, small_model: Path) -> Home:  # noqa: F811
    """A home whose configuration knows the real model."""
    home.extra |= smollm.ENVIRONMENT
    configured = home.path / "config" / "vbatch"
    configured.mkdir(parents=True)
    flags = json.dumps(list(ENGINE_ARGS))
    embedding_flags = json.dumps([*ENGINE_ARGS, "--runner", "pooling", "--convert", "embed"])
    (configured / "config.toml").write_text(
        f'[models."{MODEL}"]\npath = "{small_model}"\nargs = {flags}\n'
        f'[models."embedder"]\npath = "{home.path / "copy"}"\nargs = {embedding_flags}\n'
    )
    return home


# Few at a time, so that answers come one after the other and a kill finds some saved and some not.
FEW = ("--max-inflight", "8")


def questions(count: int, *, model: str = MODEL, max_tokens: int = 24) -> list[dict[str, Any]]:
    """Requests whose answers take about half a second each on two cores."""
    return [
        {
            "custom_id": f"q-{number}",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {
                "model": model,
                "messages": [{"role": "user", "content": f"Tell me a story about the number {number}."}],
                "max_tokens": max_tokens,
                "ignore_eos": True,
                "temperature": 0,
            },
        }
        for number in range(count)
    ]


def embeddings(count: int) -> list[dict[str, Any]]:
    """Texts to be embedded, every other one in base64."""
    return [
        {
            "custom_id": f"e-{number}",
            "method": "POST",
            "url": "/v1/embeddings",
            "body": {
                "model": "embedder",
                "input": f"The number {number}.",
                "encoding_format": "base64" if number % 2 else "float",
            },
        }
        for number in range(count)
    ]


def scores(count: int) -> list[dict[str, Any]]:
    """Texts to be compared, each with itself and with another one."""
    return [
        {
            "custom_id": f"s-{number}",
            "method": "POST",
            "url": "/v1/score",
            "body": {
                "model": "embedder",
                "text_1": f"The number {number}.",
                "text_2": [f"The number {number}.", "Stocks fell in the afternoon."],
            },
        }
        for number in range(count)
    ]


def engine_processes(home: Home) -> list[ProcessIdentity]:
    """The engine processes below the workers of this home, by the worker's own log."""
    pids = [int(pid) for pid in home.worker_log.split("engine.processes pids=")[-1].split()[0].split(",")]
    return [identity for pid in pids if (identity := processes.identify(pid)) is not None]


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_other_peoples_batches_complete(real: Home) -> None:
    """Files from other projects, unchanged but for ``-m``: answered in file order, in the Batch API's form."""
    ids = []
    for name in ("demo_batch_10", "vllm_example_batch"):
        shutil.copy(DATA / f"{name}.jsonl", real.path)
        ids.append(real.run("submit", f"{name}.jsonl", "-m", MODEL).stdout.strip())
    real.run("run-worker", "--drain")
    for batch_id, name in zip(ids, ("demo_batch_10", "vllm_example_batch"), strict=True):
        batch = real.batch(batch_id)
        assert batch["status"] == "completed"
        asked = [line["custom_id"] for line in _documents(DATA / f"{name}.jsonl")]
        answered = _documents(real.path / f"{name}.output.jsonl")
        assert [line["custom_id"] for line in answered] == asked
        for line in answered:
            assert line["error"] is None
            assert line["response"]["status_code"] == 200
            assert line["response"]["body"]["model"] == MODEL
            assert line["response"]["body"]["choices"][0]["message"]["content"].strip()


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_killed_worker_leaves_no_engine_and_loses_nothing(real: Home) -> None:
    """Mutant: engine/guard.py does not watch its parent; the engine then lives on for ever."""
    expected = questions(64)
    batch_id = real.submit(expected)
    with real.worker(*FEW) as worker:
        until(lambda: real.finished(batch_id) > 0, progress=lambda: cpu_seconds(worker.pid), pause=0.5)
        engines = engine_processes(real)
        assert engines
        worker.send_signal(signal.SIGKILL)
        worker.wait()
        killed_at = time.monotonic()
        until(lambda: not any(processes.identify(e.pid) == e for e in engines))
        print(f"engine gone {time.monotonic() - killed_at:.1f} s after SIGKILL of the worker")
    saved = real.finished(batch_id)
    assert 0 < saved < len(expected), "the kill came too late to show anything"
    real.run("run-worker", "--drain")
    lines = Lines.of(real.batch(batch_id))
    assert not lines.lost(expected)
    assert not lines.doubled
    assert not lines.errors


@pytest.mark.long  # without a terminal: tests/engine/test_vllm.py
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_ctrl_c_in_a_terminal_lets_running_requests_finish(real: Home) -> None:
    """Mutant: engine/guard.py without setpgid; Ctrl-C then kills the engine under its requests."""
    expected = questions(400)
    batch_id = real.submit(expected)
    terminal = pexpect.spawn(
        sys.executable, [*VBATCH[1:], "run-worker", *FEW], env=real.env, cwd=str(real.path),
        dimensions=(40, 120),
    )  # fmt: skip
    until(
        lambda: _drained(terminal) and real.finished(batch_id) > 0,
        progress=lambda: cpu_seconds(terminal.pid),
        pause=0.5,
    )
    terminal.sendintr()
    until(lambda: _drained(terminal) and not terminal.isalive(), progress=lambda: cpu_seconds(terminal.pid))
    terminal.close()
    assert terminal.exitstatus == 0
    batch = real.batch(batch_id)
    counts = batch["request_counts"]
    assert batch["status"] == "in_progress"
    assert isinstance(counts, dict)
    assert counts["failed"] == 0
    assert 8 <= counts["completed"] < len(expected)


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_dead_engine_is_reloaded_and_two_models_are_swapped(real: Home, small_model: Path) -> None:  # noqa: F811
    """One folder chats, its copy embeds and scores; nothing of the first engine is left when the second is loaded.

    Mutants: EngineDied answers are recorded; requests then end as errors of a dead engine. VllmEngine.close does
    not wait for the engine's processes; some are then alive, with their memory, as the next one is loaded.
    """
    shutil.copytree(small_model, real.path / "copy", copy_function=os.link)
    queued = (questions(64), embeddings(8), scores(4))
    ids = [real.submit(requests, name=str(number)) for number, requests in enumerate(queued)]
    with real.worker("--drain", *FEW) as worker:
        computed = partial(cpu_seconds, worker.pid)
        until(lambda: real.finished(ids[0]) > 0, progress=computed, pause=0.5)
        (engine, *_) = engine_processes(real)
        os.kill(engine.pid, signal.SIGKILL)
        until(lambda: real.worker_log.count("engine.loaded") == 2, progress=computed)
        reloaded = engine_processes(real)
        until(lambda: "engine.loading model=embedder" in real.worker_log, progress=computed, pause=0.02)
        left = [process for process in reloaded if processes.identify(process.pid) == process]
        assert reloaded
        assert not left
        assert exit_code(worker) == 0
    log = real.worker_log
    assert "ended by SIGKILL" in next(line for line in log.splitlines() if "engine.died" in line)
    assert log.count("engine.loaded") == 3, "first model twice, second model once"
    lines = Lines.of(real.batch(ids[0]))
    assert not lines.lost(queued[0])
    assert not lines.doubled
    assert not lines.errors
    embedded, scored = (_documents(Path(str(real.batch(batch_id)["output_path"]))) for batch_id in ids[1:])
    for asked, answered in ((queued[1], embedded), (queued[2], scored)):
        assert [line["custom_id"] for line in answered] == [line["custom_id"] for line in asked]
    for number, line in enumerate(embedded):
        (vector,) = line["response"]["body"]["data"]
        kind = str if number % 2 else list
        assert isinstance(vector["embedding"], kind), "base64 for every other one"
    for line in scored:
        same, other = (entry["score"] for entry in line["response"]["body"]["data"])
        assert same == pytest.approx(1, abs=0.02)
        assert other < same


@pytest.mark.long  # without a worker: tests/engine/test_vllm.py
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_engine_that_does_not_fit_is_explained_in_one_line(
    real: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The incident's own failure, made for real: more memory asked for than there is."""
    real.extra.pop("VLLM_CPU_KVCACHE_SPACE")  # with it vLLM asks for so much, and looks at nothing
    monkeypatch.delenv("VLLM_CPU_KVCACHE_SPACE", raising=False)
    real.submit(questions(3))
    done = real.run("run-worker", "--drain", "--", "--gpu-memory-utilization", "0.99", check=False)
    assert done.returncode == 69
    assert "memory" in done.stderr.splitlines()[-2]
    assert "Traceback" not in done.stderr


def _documents(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines() if line]


def _drained(terminal: Any) -> bool:
    """Read what the terminal shows, so that it never fills up."""
    try:
        while terminal.read_nonblocking(65536, timeout=0):
            pass
    except (pexpect.TIMEOUT, pexpect.EOF):
        pass
    return True


@pytest.mark.long  # three loads; without vLLM: tests/worker/test_loop.py
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_model_that_cannot_be_loaded_blocks_its_own_batch_alone(real: Home, small_model: Path) -> None:  # noqa: F811
    """The reason is there after a kill, and once the files are there, no command is needed.

    Mutants: the requests failed; the reason in the worker alone; a worker that does not look at the folder again.
    """
    broken, whole = real.path / "broken", real.path / "whole"
    shutil.copytree(small_model, whole, copy_function=os.link)
    shutil.copytree(small_model, broken, copy_function=os.link)
    (broken / "config.json").unlink()
    (broken / "config.json").write_text(
        '{"model_type": "llama", "hidden_size":'
    )  # a download that was cut off
    with (real.path / "config" / "vbatch" / "config.toml").open("a") as config:
        config.write(f'[models."broken"]\npath = "{broken}"\nargs = {json.dumps(list(ENGINE_ARGS))}\n')
    expected = {name: questions(4, model=name, max_tokens=2) for name in ("broken", MODEL)}
    ids = {
        name: real.submit(requests, name=str(number))
        for number, (name, requests) in enumerate(expected.items())
    }
    progress = partial(cpu_seconds, os.getpid())
    with real.worker() as worker:
        until(lambda: real.batch(ids[MODEL])["status"] == "completed", progress=progress, pause=2)
        worker.kill()
        worker.wait()
    answered = Lines.of(real.batch(ids[MODEL]))
    assert not answered.lost(expected[MODEL])
    assert not answered.errors
    with real.worker():
        batch = real.batch(ids["broken"])
        assert batch["status"] == "in_progress"
        assert "config.json of" in batch["blocked"]["reason"]  # type: ignore[index]  # a document
        until(lambda: real.worker_log.count("model.blocked model=broken") == 2, progress=progress, pause=2)
        (whole / "config.json").replace(broken / "config.json")
        until(
            lambda: real.batch(ids["broken"])["status"] == "completed",
            progress=progress,
            pause=2,
            silence=300,
        )
    refused = Lines.of(real.batch(ids["broken"]))
    assert not refused.lost(expected["broken"])
    assert not refused.errors


@pytest.mark.long  # four loads; without vLLM: tests/worker/test_loop.py
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_model_and_an_endpoint_that_are_not_there_wait_for_them(real: Home, small_model: Path) -> None:  # noqa: F811
    """The rest is answered meanwhile; then a folder appears and flags change, and no command is needed.

    Mutants: an endpoint that is only looked for at the load; the loaded model given up for one that is not there.
    """
    soon, settings = real.path / "soon", real.path / "config" / "vbatch" / "config.toml"
    before = settings.read_text()
    flags = json.dumps(list(ENGINE_ARGS))
    settings.write_text(f'{before}[models."soon"]\npath = "{soon}"\nargs = {flags}\n')
    vectors = embeddings(4)
    for each in vectors:
        each["body"]["model"] = MODEL
    queued = {"chats": questions(4, max_tokens=2), "vectors": vectors}
    queued["soon"] = questions(4, model="soon", max_tokens=2)
    ids = {name: real.submit(lines, name=name) for name, lines in queued.items()}
    progress = partial(cpu_seconds, os.getpid())
    with real.worker() as worker:
        for name, status in (("chats", "completed"), ("vectors", None), ("soon", None)):
            until(
                lambda name=name, status=status: (  # type: ignore[misc]
                    (batch := real.batch(ids[name]))["status"] == status or (batch["blocked"] and not status)
                ),
                progress=progress,
                pause=2,
            )
        worker.kill()
        worker.wait()
    assert not Lines.of(real.batch(ids["chats"])).errors
    folder, endpoint = real.batch(ids["soon"])["blocked"], real.batch(ids["vectors"])["blocked"]
    assert folder["reason"] == f"there is no model folder {soon}"  # type: ignore[index]  # a document
    assert endpoint["endpoint"] == "/v1/embeddings"  # type: ignore[index]
    assert "was loaded for text; /v1/embeddings needs" in endpoint["reason"]  # type: ignore[index]
    with real.worker():
        until(lambda: real.worker_log.count("endpoint.blocked") == 2, progress=progress, pause=2)
        until(lambda: real.worker_log.count("model.blocked model=soon") == 2, progress=progress, pause=2)
        shutil.copytree(small_model, soon, copy_function=os.link)
        pooling = json.dumps([*ENGINE_ARGS, "--runner", "pooling", "--convert", "embed"])
        settings.write_text(settings.read_text().replace(f"args = {flags}", f"args = {pooling}", 1))
        for name in ("vectors", "soon"):
            until(
                lambda name=name: real.batch(ids[name])["status"] == "completed",  # type: ignore[misc]
                progress=progress,
                pause=2,
                silence=300,
            )
    assert real.batch(ids["vectors"])["request_counts"] == {"total": 4, "completed": 4, "failed": 0}
    assert not Lines.of(real.batch(ids["soon"])).errors


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_chat_streams_beside_a_full_batch(real: Home) -> None:
    """One of four sequences is free for it, and it goes first; the batch loses no request, its bodies are unchanged.

    Mutants: no reserve; the batch's bodies name no priority; they name one to an engine without the policy.
    """
    lines = questions(40, max_tokens=16)
    batch_id = real.submit(lines)
    environment = {"VBATCH_CHAT": "true", "VBATCH_PRELOAD": MODEL}
    asked = questions(1, max_tokens=4)[0]["body"] | {"stream": True}
    with real.worker("--", "--max-num-seqs", "4", **environment) as worker:
        until(lambda: real.finished(batch_id) >= 8, progress=lambda: cpu_seconds(worker.pid))
        (path,) = sockets.found(real.state_dir)
        began, taken = time.monotonic(), []
        with sockets.address(path) as short:
            transport = httpx.HTTPTransport(uds=short)
            with httpx.Client(transport=transport, base_url="http://worker", timeout=300) as http:
                assert MODEL in http.get("/v1/models").text
                for _ in range(3):
                    before = real.finished(batch_id)
                    with http.stream("POST", "/v1/chat/completions", json=asked) as answer:
                        events = [line for line in answer.iter_lines() if line.startswith("data: ")]
                    assert answer.status_code == 200
                    assert len(events) >= 6, "the role, four tokens, the end"
                    assert events[-1] == "data: [DONE]"
                    taken.append(real.finished(batch_id) - before)
        assert max(taken) < 12, (
            f"a chat waited for whole rounds of the batch: {taken}, {time.monotonic() - began}"
        )
        until(lambda: real.finished(batch_id) == 40, progress=lambda: cpu_seconds(worker.pid))
        worker.send_signal(signal.SIGTERM)
        assert exit_code(worker) == 0
    assert real.batch(batch_id)["request_counts"] == {"total": 40, "completed": 40, "failed": 0}
    assert "max_inflight=3" in real.worker_log
