"""A batch of audio through a real worker: fetched when its requests run, each failure with its own cause."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from functools import partial
from hashlib import sha256
from pathlib import Path

import pytest

from tests.rigs.commands import Home, chats
from tests.rigs.receiver import Page, Receiver, receiver
from tests.rigs.stores import mostly_sqlite as database_url  # noqa: F401  (a fixture)
from tests.rigs.waiting import cpu_seconds, until

AUDIO = bytes(range(256)) * 40
URL = "/v1/audio/transcriptions"


@pytest.fixture
def server() -> Iterator[Receiver]:
    with receiver() as running:
        yield running


def audio(custom_id: str, file_url: str, *, url: str = URL) -> dict[str, object]:
    return {
        "custom_id": custom_id,
        "method": "POST",
        "url": url,
        "body": {"model": "echo", "file_url": file_url, "language": "en"},
    }


def lines_of(home: Home, batch_id: str, which: str) -> dict[str, dict[str, object]]:
    path = Path(str(home.batch(batch_id)[which]))
    return {line["custom_id"]: line for line in map(json.loads, path.read_text().splitlines())}


def test_audio_is_fetched_by_the_worker_and_each_failure_has_its_cause(home: Home, server: Receiver) -> None:
    """Mutants: ``submit`` fetches; a 503 ends a request at once; a 404 is tried three times."""
    server.pages |= {
        "/good.wav": [Page(body=AUDIO)],
        "/chunked.wav": [Page(body=AUDIO, sized=False)],
        "/moved.wav": [Page(status=302, headers={"Location": "/good.wav"})],
        "/busy.wav": [Page(status=503, headers={"Retry-After": "0"}), Page(body=AUDIO)],
        "/down.wav": [Page(status=503, headers={"Retry-After": "0"})],
        "/elsewhere.wav": [Page(status=302, headers={"Location": "https://other.example/a.wav"})],
        "/large.wav": [Page(body=bytes((1 << 20) + 1))],
        "/endless.wav": [Page(body=bytes((1 << 20) + 1), sized=False)],
        "/slow.wav": [Page(body=AUDIO, delay=60)],
    }
    good = ("good", "chunked", "moved", "busy")
    bad = {
        "none": ("audio_missing", "127.0.0.1 answered with HTTP 404", 1),
        "down": ("audio_unreachable", "127.0.0.1 answered with HTTP 503", 3),
        "elsewhere": ("audio_refused", "redirects to another host, other.example", 1),
        "large": ("audio_too_large", "it is larger than 1 MiB (audio_limit)", 1),
        "endless": ("audio_too_large", "it is larger than 1 MiB (audio_limit)", 1),
        "slow": ("audio_unreachable", "did not send it within 2 s", 3),
    }
    asked = [audio(name, server.url(f"/{name}.wav")) for name in (*good, *bad)]
    data = f"data:audio/wav;base64,{base64.b64encode(AUDIO).decode()}"
    asked += [audio("data", data, url="/v1/audio/translations"), *chats(3)]
    batch_id = home.submit(asked)
    assert server.requests == [], "submit fetches nothing"
    home.extra |= {"VBATCH_AUDIO_PRIVATE": "true", "VBATCH_AUDIO_LIMIT": "1", "VBATCH_AUDIO_TIMEOUT": "2s"}
    home.run("run-worker", "--engine", "echo", "--drain")
    assert home.batch(batch_id)["request_counts"] == {"total": 14, "completed": 8, "failed": 6}
    answered = lines_of(home, batch_id, "output_path")
    text = f"{len(AUDIO)} bytes, sha256 {sha256(AUDIO).hexdigest()}"
    for name in (*good, "data"):
        assert answered[name]["response"]["body"]["text"] == text, name  # type: ignore[index]
    failed = lines_of(home, batch_id, "error_path")
    assert failed.keys() == bad.keys()
    for name, (code, words, tries) in bad.items():
        error = failed[name]["error"]
        assert failed[name]["response"] is None
        assert (error["code"], words in error["message"]) == (code, True), error  # type: ignore[index]
        assert sum(seen.path == f"/{name}.wav" for seen in server.requests) == tries, name
    status = home.run("status", batch_id).stdout
    assert "audio_too_large" in status
    assert f"vbatch retry {batch_id}" in status


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_private_addresses_and_plain_http_are_refused_by_default(home: Home, server: Receiver) -> None:
    """Mutant: the setting is on by default."""
    server.pages["/a"] = [Page(body=AUDIO)]
    named = {"http": server.url("/a"), "private": f"https://localhost:{server.port}/a"}
    batch_id = home.submit([audio(name, url) for name, url in named.items()])
    home.run("run-worker", "--engine", "echo", "--drain")
    failed = lines_of(home, batch_id, "error_path")
    assert {line["error"]["code"] for line in failed.values()} == {"audio_refused"}  # type: ignore[index]
    for line in failed.values():
        assert "audio_private = true allows it" in line["error"]["message"]  # type: ignore[index]
    assert server.requests == []


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_worker_that_is_killed_while_it_fetches_loses_nothing(home: Home, server: Receiver) -> None:
    server.pages["/a"] = [Page(body=AUDIO, delay=60), Page(body=AUDIO)]
    home.extra |= {"VBATCH_AUDIO_PRIVATE": "true", "VBATCH_ENGINE": "echo"}
    batch_id = home.submit([audio("a", server.url("/a"))])
    with home.worker() as worker:
        until(lambda: bool(server.requests), progress=partial(cpu_seconds, worker.pid))
        worker.kill()
        worker.wait()
    home.run("run-worker", "--drain")
    assert lines_of(home, batch_id, "output_path").keys() == {"a"}


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_stop_does_not_wait_for_a_slow_server_longer_than_allowed(home: Home, server: Receiver) -> None:
    """What is still being fetched at ``drain_limit`` is given back. Mutant: a fetch that cannot be cancelled."""
    server.pages["/a"] = [Page(body=AUDIO, delay=300)]
    home.extra |= {"VBATCH_AUDIO_PRIVATE": "true", "VBATCH_ENGINE": "echo", "VBATCH_DRAIN_LIMIT": "1s"}
    batch_id = home.submit([audio("a", server.url("/a"))])
    with home.worker() as worker:
        until(lambda: bool(server.requests), progress=partial(cpu_seconds, worker.pid))
        worker.terminate()
        assert worker.wait(60) == 0
    assert home.batch(batch_id)["request_counts"] == {"total": 1, "completed": 0, "failed": 0}
