"""Screens hold what they promise at any width, whatever the batch or the worker is like."""

from __future__ import annotations

import io
from datetime import UTC, datetime, timedelta

import pytest
from rich.console import Console, RenderableType

from vbatch.batches import AtWork, Batch, FailureGroup, RequestCounts, Status, Worker
from vbatch.cli import screens
from vbatch.cli.listing import BatchTable
from vbatch.cli.live import Screen
from vbatch.engine.figures import EngineFigures
from vbatch.protocol import BatchStatus
from vbatch.system.processes import ProcessIdentity
from vbatch.worker import Snapshot

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
WORKER = Worker(
    id="worker_1",
    identity=ProcessIdentity(host="workstation", boot_id="b", pid_namespace=1, pid=17, start_ticks=1),
    engine="echo",
    gpus=(),
    models=(),
    note="loading",
    requests_per_second=None,
    heartbeat=0,
    started_at=NOW,
    heartbeat_at=NOW,
    stopped_at=None,
    silent=timedelta(0),
)


def drawn(renderable: RenderableType, *, width: int = 80, terminal: bool = True) -> str:
    """What a terminal without colours shows."""
    console = Console(
        file=io.StringIO(), width=width, force_terminal=terminal, no_color=True, markup=False, highlight=False,
        color_system=None,
    )  # fmt: skip
    with console.capture() as captured:
        console.print(renderable)
    return captured.get()


def batch(number: int = 0, **changes: object) -> Batch:
    values: dict[str, object] = {
        "pk": number,
        "id": f"batch_{number:08x}{'f' * 16}",
        "status": BatchStatus.IN_PROGRESS,
        "endpoint": "/v1/chat/completions",
        "model": "org/model-8b",
        "name": None,
        "priority": 0,
        "metadata": {},
        "input_path": "/home/me/prompts.jsonl",
        "input_sha256": "",
        "output_path": "/home/me/prompts.output.jsonl",
        "error_path": "/home/me/prompts.errors.jsonl",
        "counts": RequestCounts(total=1_000_000, completed=620_000, failed=1_000),
        "reused": 0,
        "prompt_tokens": 0,
        "completion_tokens": 0,
        "created_at": NOW,
        **dict.fromkeys(
            (
                "in_progress_at",
                "finalizing_at",
                "completed_at",
                "failed_at",
                "expired_at",
                "cancelling_at",
                "cancelled_at",
                "expires_at",
            )
        ),
    }
    return Batch(**(values | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize("width", [60, 80, 100, 120, 200])
@pytest.mark.parametrize("name", [None, "short", "a long name with\x1b[2J many words in it " * 4])
def test_the_list_fits_every_terminal(width: int, name: str | None) -> None:
    batches = [
        batch(n, name=name, model="organisation/a-model-with-a-long-name-70B-Instruct") for n in range(3)
    ]
    text = drawn(BatchTable(batches), width=width)
    assert len(text.splitlines()) == 4
    assert all(len(line) <= width for line in text.splitlines())
    assert "621,000 / 1,000,000" in text
    assert "\x1b" not in text


def test_a_short_id_tells_a_batch_from_the_others() -> None:
    alike = [batch(0, id="batch_aaaaaaaaaa01"), batch(1, id="batch_aaaaaaaaaa02")]
    text = drawn(BatchTable(alike), width=80)
    assert "aaaaaaaaaa01" in text
    assert "aaaaaaaaaa02" in text


def test_a_list_in_a_pipe_is_complete() -> None:
    text = drawn(BatchTable([batch(name="n" * 150, model="m" * 150)]), width=4000, terminal=False)
    assert "n" * 150 in text
    assert "m" * 150 in text


def test_status_names_each_kind_of_failure() -> None:
    groups = (
        FailureGroup(code="http_400", status_code=400, count=900, attempts=1, custom_id="r-1",
                     message="too long"),
        FailureGroup(code="engine_crash", status_code=None, count=100, attempts=3, custom_id="r-2",
                     message="the engine died each time"),
    )  # fmt: skip
    value = Status(
        batch=batch(priority=3, metadata={"run": "17"}),
        failures=groups,
        at_work=AtWork(workers=(WORKER,), unserved=("m",), command="vbatch run-worker"),
        requests_per_second=12.34,
        remaining=timedelta(hours=8, minutes=32),
    )
    text = drawn(screens.status(value), width=100)
    for expected in (
        "62 %", "621,000 of 1,000,000 requests", "620,000 answered · 1,000 failed", "12.3 requests/s",
        "about 8 h 32 min left, until ", "900  http_400", "too long (first: r-1)", "100  engine_crash",
        "the engine died each time (first: r-2) after up to 3 attempts",
        "process 17 on workstation: loading; none serves m", "priority", "run", "prompts.output.jsonl",
    ):  # fmt: skip
        assert expected in text


@pytest.mark.parametrize(
    ("snapshot", "expected"),
    [
        (Snapshot(state="loading m", model="m"), ["loading m"]),
        (Snapshot(state="idle"), ["idle"]),
        (
            Snapshot(waiting_for="the store: the server is starting up"),
            ["waiting for the store: the server is starting up"],
        ),
        (
            Snapshot(state="working", model="org/m", batch="batch_1", total=5000, completed=3000, failed=14,
                     running=256, requests_per_second=12.34, prompt_tokens_per_second=900,
                     completion_tokens_per_second=505),
            ["working · org/m · batch_1", "60 %", "3,014 of 5,000 requests", "14 failed", "12.3 requests/s",
             "900 tokens/s in, 505 out", "256 running", "about 2 min 41 s left"],
        ),
        (
            Snapshot(
                state="working", running=70, advice="fewer --max-num-seqs",
                engine=EngineFigures(
                    running=64, waiting=6, cache=0.431, preemptions=2, prompt_tokens=10, cached_tokens=6
                ),
            ),
            [
                "engine: 64 running, 6 waiting, KV cache 43 %, 60 % of prompt tokens cached, 2 preemptions",
                "fewer --max-num-seqs",
            ],
        ),
        (Snapshot(state="working", trouble="the engine died: \x1b[2J"), [r"! the engine died: \x1b[2J"]),
    ],
)  # fmt: skip
def test_the_live_view(snapshot: Snapshot, expected: list[str]) -> None:
    text = drawn(Screen(lambda: snapshot, stopping=lambda: False), width=100)
    for words_ in expected:
        assert words_ in text
    assert "Ctrl-C" not in text
    assert "Ctrl-C again" in drawn(Screen(lambda: snapshot, stopping=lambda: True), width=100)
