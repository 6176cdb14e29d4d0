"""The worker's figures, as the official Prometheus parsers read them, and the alerts that are made of them."""

from __future__ import annotations

import json
import re
import signal
import socket
import struct
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import pytest
from prometheus_client import REGISTRY, Counter
from prometheus_client.parser import text_string_to_metric_families

from tests.rigs import promtool
from tests.rigs.commands import Home, chats
from tests.rigs.waiting import SILENCE, exit_code, until
from vbatch.worker.metrics import Exposition, Figures

FIGURES = Figures(
    healthy=True,
    state="working",
    model='a "model"\n',
    queue_unfinished=70,
    queue_finished=30,
    running=16,
    completed=28,
    failed=2,
    prompt_tokens=1000,
    completion_tokens=500,
    engine_loads=1,
    engine_crashes=0,
    outages=1,
    outage_seconds=0.0,
    progress_age_seconds=0.5,
    gpu_memory={("0", "used"): 3 << 30, ("0", "total"): 16 << 30, ("2", "used"): 1 << 30},
    disk_free={"store": 5 << 30},
)


@contextmanager
def serving(*figures: Figures) -> Iterator[str]:
    """Serve these figures, one a scrape, the last one for ever."""
    left = list(figures)
    with Exposition(0, lambda: left.pop(0) if len(left) > 1 else left[0]) as exposition:
        yield f"http://127.0.0.1:{exposition.port}"


def get(url: str, **headers: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=SILENCE) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def samples(text: str) -> dict[tuple[str, str], float]:
    return {
        (sample.name, ",".join(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_the_official_parser_reads_every_figure() -> None:
    with serving(FIGURES) as url:
        status, text = get(f"{url}/metrics")
    found = samples(text)
    assert status == 200
    assert found["vbatch_queue_requests", "unfinished"] == 70
    assert found["vbatch_requests_total", "completed"] == 28
    assert found["vbatch_requests_total", "failed"] == 2
    assert found["vbatch_tokens_total", "completion"] == 500
    assert found["vbatch_engine_loads_total", ""] == 1
    assert found["vbatch_store_outages_total", ""] == 1
    assert found["vbatch_progress_age_seconds", ""] == 0.5
    assert found["vbatch_gpu_memory_bytes", "0,used"] == 3 << 30
    assert found["vbatch_gpu_memory_bytes", "2,used"] == 1 << 30
    assert found["vbatch_disk_free_bytes", "store"] == 5 << 30
    assert found["process_resident_memory_bytes", ""] > 0


@contextmanager
def vllm_counter() -> Iterator[None]:
    """Register a counter of 7 as vLLM does, in the process's registry: a real engine takes a minute."""
    counter = Counter("vllm:prompt_tokens_stand_in", "Registered as vLLM does.")
    counter.inc(7)
    try:
        yield
    finally:
        REGISTRY.unregister(counter)


@pytest.mark.parametrize(
    "accept",
    [
        "",
        "application/openmetrics-text; version=1.0.0",
        "application/openmetrics-text; version=abc",
        "nonsense",
    ],
)
def test_names_are_those_of_vllm_whatever_the_client_accepts(accept: str) -> None:
    """They are in the same page. Mutant: ``choose_encoder``, which gives OpenMetrics samples named ``vllm_…``."""
    with vllm_counter(), serving(FIGURES) as url:
        status, text = get(f"{url}/metrics", Accept=accept)
    assert status == 200
    assert samples(text)["vllm:prompt_tokens_stand_in_total", ""] == 7
    assert samples(text)["vbatch_up", ""] == 1


def test_a_client_that_hangs_up_or_is_silent_is_no_news(capfd: pytest.CaptureFixture[str]) -> None:
    """Mutant: the base class's ``handle_error``, which prints a traceback over the worker's screen."""
    with serving(FIGURES) as url:
        port = int(url.rpartition(":")[2])
        for words in (b"", b"GET /metrics HTTP/1.0\r\n\r\n"):
            with socket.create_connection(("127.0.0.1", port)) as client:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset
                client.sendall(words)
        assert get(f"{url}/metrics")[0] == 200
    assert capfd.readouterr().err == ""


def test_an_unknown_gpu_is_left_out() -> None:
    with serving(replace(FIGURES, gpu_memory={})) as url:
        assert "vbatch_gpu_memory" not in get(f"{url}/metrics")[1]


def test_health_says_when_the_worker_hangs() -> None:
    with serving(FIGURES, replace(FIGURES, healthy=False, progress_age_seconds=300)) as url:
        status, text = get(f"{url}/health")
        assert (status, json.loads(text)["status"]) == (200, "ok")
        status, text = get(f"{url}/health")
        assert (status, json.loads(text)["status"]) == (503, "hung")
        assert get(f"{url}/")[0] == 404


def test_it_leaves_nothing_behind() -> None:
    """A worker's metrics end with it: the next one in the same process registers its own."""
    for _ in range(2):
        with serving(FIGURES) as url:
            assert get(f"{url}/metrics")[0] == 200
    assert REGISTRY.get_sample_value("vbatch_up") is None


def checked(*arguments: str, cwd: Path) -> str:
    try:
        tool = promtool.find()
    except promtool.Unavailable as reason:
        pytest.skip(str(reason))
    done = subprocess.run(
        [tool, *arguments], cwd=cwd, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_promtool_accepts_the_alert_rules() -> None:
    rules = Path(str(files("vbatch.service") / "alerts.yml"))
    assert "12 rules found" in checked("check", "rules", str(rules), cwd=rules.parent)


def test_the_alerts_fire_on_recorded_situations_and_only_then() -> None:
    checked("test", "rules", "alerts_test.yml", cwd=Path(__file__).parent)


def test_the_alerts_ask_for_metrics_that_exist() -> None:
    rules = (files("vbatch.service") / "alerts.yml").read_text()
    with serving(FIGURES) as url:
        served = {name for name, _ in samples(get(f"{url}/metrics")[1])}
    asked = set(re.findall(r"(?:vbatch|process)_[a-z_]+", rules))
    assert {name for name in asked if not name.startswith("vbatch_server_")} <= served


def test_the_start_time_is_there_where_vllms_processes_share_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mutant: a registry of vLLM's metrics alone; a worker that restarts again and again raises no alert."""
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    with serving(FIGURES) as url:
        assert samples(get(f"{url}/metrics")[1])["process_start_time_seconds", ""] > 0


@pytest.mark.parametrize(
    ("state", "label"), [("loading a/b", "loading"), ("working", "working"), ("dancing", "other")]
)
def test_the_label_of_the_state_is_one_of_a_few_words(state: str, label: str) -> None:
    """Mutant: the state as it is shown, with the model's name in it: one series for each."""
    with serving(replace(FIGURES, state=state)) as url:
        text = get(f"{url}/metrics")[1]
    assert re.findall(r'^vbatch_worker_info\{.*state="(.*?)"', text, re.MULTILINE) == [label]


def test_a_real_worker_is_scraped_while_it_works(tmp_path: Path) -> None:
    home = Home(tmp_path, f"sqlite:///{tmp_path}/vbatch.db", {"VBATCH_ECHO_LATENCY_MS": "300"})
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    home.submit(chats(40))
    with home.worker("--engine", "echo", "--max-inflight", "4", VBATCH_METRICS_PORT=str(port)) as worker:
        until(lambda: (recorded(port) or 0) > 0)
        found = samples(get(f"http://127.0.0.1:{port}/metrics")[1])
        status, health = get(f"http://127.0.0.1:{port}/health")
        assert (status, json.loads(health)["status"]) == (200, "ok")
        worker.send_signal(signal.SIGTERM)
        assert exit_code(worker) == 0
    assert found["vbatch_queue_requests", "unfinished"] + found["vbatch_queue_requests", "finished"] == 40
    assert found["vbatch_engine_loads_total", ""] == 1
    assert found["vbatch_progress_age_seconds", ""] < 30
    assert found["vbatch_disk_free_bytes", "store"] > 0


def test_a_port_that_is_taken_costs_the_metrics_and_not_the_work(tmp_path: Path) -> None:
    home = Home(tmp_path, f"sqlite:///{tmp_path}/vbatch.db")
    batch_id = home.submit(chats(3))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        with home.worker("--engine", "echo", "--drain", VBATCH_METRICS_PORT=port) as worker:
            assert exit_code(worker) == 0
    assert "metrics.unavailable" in home.worker_log
    assert home.batch(batch_id)["status"] == "completed"


def recorded(port: int) -> float | None:
    try:
        return samples(get(f"http://127.0.0.1:{port}/metrics")[1]).get(("vbatch_requests_total", "completed"))
    except OSError:
        return None
