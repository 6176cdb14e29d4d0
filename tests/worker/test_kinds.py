"""Which engine answers for which model: the echo engine for ``echo`` alone, vLLM for all others."""

from __future__ import annotations

import json

import pytest

from tests.rigs.commands import Home, Lines, chat, chats
from tests.rigs.stores import mostly_sqlite as database_url  # noqa: F401  (a fixture)
from tests.rigs.waiting import until
from vbatch.errors import ExitCode
from vbatch.store import COMMAND_PATIENCE, Store, queue


def waiting(home: Home) -> list[str]:
    """The models that requests wait for, by the store itself: neither answered, failed nor leased."""
    store = Store(home.database_url, patience=COMMAND_PATIENCE)
    try:
        return [entry.model for entry in queue.waiting(store)]
    finally:
        store.close()


def test_an_echo_worker_answers_for_echo_alone(home: Home) -> None:
    """Real models come first and in the same file; the worker ends all the same, and names what it left.

    Mutants: KINDS with ``serves`` of the echo engine always true: a night's batch is answered with its own prompts.
    ``_servable`` that leaves ``serves`` out: the load is refused and ends the worker. A drain that ends when no
    batch is unfinished: it waits for ever. ``choose`` before the filter in ``Serving._claim_in_store``: the real
    models of a better priority keep ``echo`` waiting.
    """
    real = home.submit(chats(300, model="qwen-8b"), "--priority", "9", name="real")
    drill = home.submit(asked := chats(300), name="drill")
    lines = [chat(f"x-{n}", f"x-{n}", model="echo" if n % 2 else "llama-70b") for n in range(20)]
    mixed = home.submit(lines, "--priority", "5", name="mixed")
    done = home.run("run-worker", "--engine", "echo", "--drain")
    answered = Lines.of(home.batch(drill))
    assert home.batch(drill)["status"] == "completed"
    assert not answered.lost(asked)
    for batch_id, total, completed in ((real, 300, 0), (mixed, 20, 10)):
        batch = home.batch(batch_id)
        assert batch["status"] == "in_progress"
        assert batch["request_counts"] == {"total": total, "completed": completed, "failed": 0}
    assert waiting(home) == ["qwen-8b", "llama-70b"]
    left = [line.partition(" warning ")[2] for line in done.stderr.splitlines() if "left_alone" in line]
    command = 'engine=vllm command="vbatch run-worker --engine vllm"'
    assert left == [
        f"model.left_alone model=llama-70b requests=10 {command}",
        f"model.left_alone model=qwen-8b requests=300 {command}",
    ]


def test_a_vllm_worker_leaves_echo_alone(home: Home) -> None:
    """Without loading anything. Mutant: KINDS with ``serves`` of vLLM always true: it looks for ``echo`` on the hub."""
    batch_id = home.submit(chats(3))
    done = home.run("run-worker", "--engine", "vllm", "--drain")
    assert home.batch(batch_id)["status"] == "in_progress"
    assert waiting(home) == ["echo"]
    assert "engine.loading" not in done.stderr
    assert 'requests=3 engine=echo command="vbatch run-worker --engine echo"' in done.stderr


@pytest.mark.parametrize(
    ("engine", "other", "model"), [("echo", "vllm", "qwen-8b"), ("vllm", "echo", "echo")]
)
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_model_of_another_engine_is_not_preloaded(home: Home, engine: str, other: str, model: str) -> None:
    """By a flag or by the configuration, here and in a service.

    Mutants: no ``require`` in ``worker.run``: EngineStartFailed, or minutes on the hub; none in install-service: a
    unit whose worker is refused at every boot.
    """
    hint = f"hint: vbatch run-worker --engine {other} --preload {model}"
    flags = ("--engine", engine, "--preload", model)
    for command in (("run-worker", *flags), ("install-service", "--user", "--dry-run", "--", *flags)):
        done = home.run(*command, check=False)
        assert done.returncode == ExitCode.MISCONFIGURED
        assert done.stderr.splitlines()[-1] == hint
    home.extra |= {"VBATCH_ENGINE": engine, "VBATCH_PRELOAD": model}
    done = home.run("run-worker", check=False)
    assert (done.returncode, done.stderr.splitlines()[-1]) == (ExitCode.MISCONFIGURED, hint)


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_commands_name_the_worker_that_is_missing(home: Home) -> None:
    """While an echo worker lives. Mutant: ``at_work`` that takes any worker for one that serves the batch."""
    plain = home.run("submit", home.write("drill", chats(1)))
    assert "no worker is running; start one with: vbatch run-worker --engine echo\n" in plain.stderr
    with home.worker("--engine", "echo"):
        until(lambda: home.finished(plain.stdout.strip()) == 1)
        real = home.run("submit", home.write("real", chats(2, model="qwen-8b")))
        hint = "no running worker serves qwen-8b; start one with: vbatch run-worker"
        assert hint in real.stderr.splitlines()
        status = home.run("status", real.stdout.strip()).stdout
        assert "none serves qwen-8b; start one with: vbatch run-worker" in " ".join(status.split())
        served = home.run("submit", home.write("more", chats(2)))
        assert "start one with" not in served.stderr
        document = json.loads(home.run("doctor", "queue", "--json").stdout)
        (finding,) = [found for found in document["findings"] if found["id"] == "queue.no_worker"]
        assert (finding["level"], finding["what"]) == ("warn", "no worker can serve qwen-8b")
        assert finding["commands"] == ["vbatch run-worker"]
