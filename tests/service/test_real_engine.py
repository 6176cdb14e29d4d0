"""The real vLLM as a confined service: it loads, answers, survives a power cut, and leaves no process behind."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.rigs.guest import HOME, UNIT, Guest
from tests.rigs.model import ENGINE_ARGS
from vbatch.engine import smollm

pytestmark = [pytest.mark.root, pytest.mark.vllm]

MODEL = "/srv/model"
COUNT = 150


@pytest.mark.long  # each part of it is in the normal run: power cuts with the echo engine, kills of the real one
def test_a_power_cut_and_a_kill_under_the_real_vllm(guest: Guest, small_model: Path, tmp_path: Path) -> None:
    """One cut in mid-batch, then kill -9 of the worker. Mutant of the latter: KillMode=process."""
    machine = guest.machine
    machine.copy_in(small_model, MODEL)
    arguments = ["--max-inflight", "4", "--", *ENGINE_ARGS]
    guest.sudo("install-service", "--", *arguments, env=smollm.ENVIRONMENT)
    machine.sync()
    batch_id = submit(guest)
    saved = guest.recorded(5)
    machine.cut_power()
    machine.boot()
    kept = guest.recorded()
    assert kept >= saved
    again = guest.recorded(kept)
    print(f"real vLLM: {machine.uptime:.0f} s from boot to the first new result")
    before = guest.unit("MainPID")
    machine.run(["systemctl", "kill", "--signal=KILL", "--kill-who=main", UNIT])
    machine.wait_for("no engine of the killed worker is left", no_orphans(guest))
    machine.wait_for("it is restarted", guest.has_restarted(before))
    assert again < COUNT, "the batch was over before the kill"
    guest.recorded(COUNT - 1)
    machine.wait_for("the batch is done", guest.finished(batch_id))
    lines = guest.lines(tmp_path, guest.batch(batch_id))
    assert set(lines.times_seen.values()) == {1}
    assert len(lines.answers) == COUNT
    machine.run(["systemctl", "stop", UNIT])
    assert guest.unit("Result") == "success"
    assert engines(guest) == []


def submit(guest: Guest) -> str:
    guest.write_prompts([request(number) for number in range(COUNT)])
    return guest.vbatch("submit", f"{HOME}/prompts.jsonl", "--quiet").stdout.strip()


def request(number: int) -> dict[str, object]:
    messages = [{"role": "user", "content": f"Count from {number} to {number + 9}."}]
    body = {"model": MODEL, "messages": messages, "max_tokens": 20}
    return {"custom_id": f"r-{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}


def engines(guest: Guest) -> list[str]:
    """Return the processes that are called like an engine."""
    listed = guest.machine.run(["ps", "-eo", "pid=,ppid=,args="]).stdout.splitlines()
    return [process for process in listed if "EngineCore" in process]


def no_orphans(guest: Guest) -> Iterator[bool]:
    """Poll whether every engine process has a parent."""
    while True:
        yield not [process for process in engines(guest) if process.split()[1] == "1"]
