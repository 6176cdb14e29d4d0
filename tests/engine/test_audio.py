"""Requests that name audio: fetched before the engine gets them, within limits, and sent as a form."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Iterator
from datetime import timedelta
from email import policy
from email.parser import BytesParser
from hashlib import sha256
from typing import Any

import pytest

from tests.rigs.receiver import Page, Receiver, receiver
from vbatch.engine import NotSent, Reply, multipart
from vbatch.engine.audio import Hearing, Memory
from vbatch.engine.echo import EchoEngine
from vbatch.outbound.fetch import Limits

URL = "/v1/audio/transcriptions"
AUDIO = bytes(range(256)) * 40
LIMITS = Limits(size=1 << 20, size_name="audio_limit", seconds=30, allows=None)


@pytest.fixture
def server() -> Iterator[Receiver]:
    with receiver() as running:
        yield running


class Recorder(EchoEngine):
    """The echo engine, which also keeps what it was sent."""

    def __init__(self) -> None:
        super().__init__("echo", timedelta(0))
        self.forms: list[tuple[str, dict[str, Any], bytes]] = []

    async def post_form(self, url: str, body: bytes, upload: bytes) -> Reply:
        self.forms.append((url, json.loads(body), upload))
        return await super().post_form(url, body, upload)


def ask(engine: EchoEngine, *, limits: Limits = LIMITS, url: str = URL, **body: object) -> Reply:
    document = json.dumps({"model": "echo"} | body).encode()
    return asyncio.run(Hearing(engine, limits).post(url, document))


def test_what_the_url_names_is_sent_with_the_other_fields(server: Receiver) -> None:
    server.pages["/a.wav"] = [Page(body=AUDIO)]
    engine = Recorder()
    reply = ask(engine, file_url=server.url("/a.wav"), language="en", temperature=0.0)
    assert engine.forms == [(URL, {"model": "echo", "language": "en", "temperature": 0.0}, AUDIO)]
    assert reply.status == 200
    assert json.loads(reply.body)["text"] == f"{len(AUDIO)} bytes, sha256 {sha256(AUDIO).hexdigest()}"


def test_other_requests_are_untouched() -> None:
    reply = ask(EchoEngine("echo", timedelta(0)), url="/v1/completions", prompt="hi", file_url="x")
    assert json.loads(reply.body)["choices"][0]["text"] == "hi"


@pytest.mark.parametrize(
    ("source", "code", "transient"),
    [
        ("/none", "audio_missing", False),
        ("/busy", "audio_unreachable", True),
        ("/large", "audio_too_large", False),
        ("ftp://host/a", "audio_refused", False),
        ("data:audio/wav;base64,A", "audio_invalid", False),
        (7, "audio_invalid", False),
    ],
)
def test_what_cannot_be_had_never_reaches_the_engine(
    server: Receiver,
    source: object,
    code: str,
    transient: bool,
) -> None:
    server.pages["/busy"] = [Page(status=503, headers={"Retry-After": "2"})]
    server.pages["/large"] = [Page(body=bytes(LIMITS.size + 1))]
    engine = Recorder()
    named = server.url(source) if isinstance(source, str) and source.startswith("/") else source
    with pytest.raises(NotSent) as error:
        ask(engine, file_url=named)
    assert (error.value.code, error.value.transient, engine.forms) == (code, transient, [])
    assert error.value.message.startswith("The ")
    assert error.value.retry_after == (2.0 if transient else None)


def test_the_engine_has_a_limit_of_its_own() -> None:
    """vLLM's is 25 MiB by default. Mutant: only the limit of the settings is used."""
    engine = Recorder()
    engine.upload_limit = (len(AUDIO) - 1, "VLLM_MAX_AUDIO_CLIP_FILESIZE_MB")
    with pytest.raises(NotSent, match=r"larger than .* MiB \(VLLM_MAX_AUDIO_CLIP_FILESIZE_MB\)"):
        ask(engine, file_url=f"data:audio/wav;base64,{base64.b64encode(AUDIO).decode()}")


def test_an_engine_that_waits_for_a_file_does_not_hang(server: Receiver) -> None:
    """Mutant: ``progress`` is that of the engine alone; a slow server then has a good engine restarted."""
    server.pages["/a"] = [Page(body=AUDIO, delay=1.5)]
    engine = Recorder()
    hearing = Hearing(engine, LIMITS)

    async def scenario() -> tuple[int, int]:
        posting = asyncio.ensure_future(
            hearing.post(URL, json.dumps({"model": "echo", "file_url": server.url("/a")}).encode())
        )
        before = hearing.progress
        while hearing.progress == before:
            await asyncio.wait((posting,), timeout=0.05)
        during = engine.progress
        await posting
        return before, during

    assert asyncio.run(scenario()) == (0, 0)
    assert engine.progress == 1


def test_a_request_that_is_cancelled_leaves_no_memory_held(server: Receiver) -> None:
    """Mutant: what was taken is given back after an answer alone."""
    server.pages["/slow"] = [Page(body=AUDIO, delay=60)]
    hearing = Hearing(Recorder(), LIMITS)

    async def scenario() -> int:
        body = json.dumps({"model": "echo", "file_url": server.url("/slow")}).encode()
        posting = asyncio.ensure_future(hearing.post(URL, body))
        while not server.requests:
            await asyncio.wait((posting,), timeout=0.05)
        held = hearing._memory.held
        posting.cancel()
        await asyncio.wait((posting,))
        return held

    assert asyncio.run(scenario()) == LIMITS.size
    assert hearing._memory.held == 0


def test_memory_is_given_in_turn_and_never_more_than_there_is() -> None:
    """Mutants: no limit; a small request passes a large one for ever; what is too large for all waits for ever."""

    async def scenario() -> list[tuple[str, int]]:
        memory = Memory(100)
        order: list[tuple[str, int]] = []

        async def hold(name: str, size: int, rounds: int) -> None:
            async with memory.take(size) as taken:
                order.append((name, memory.held))
                for _ in range(rounds):
                    await asyncio.sleep(0)
                taken.shrink(size // 2)
                for _ in range(rounds):
                    await asyncio.sleep(0)

        wanted = [("a", 60), ("b", 60), ("c", 10), ("d", 400), ("e", 1)]
        cancelled = asyncio.ensure_future(hold("x", 100, 1))
        tasks = [asyncio.ensure_future(hold(name, size, 5)) for name, size in wanted]
        gone = asyncio.ensure_future(hold("y", 50, 1))
        await asyncio.sleep(0)
        cancelled.cancel()
        gone.cancel()
        await asyncio.gather(*tasks)
        assert memory.held == 0
        return order

    order = asyncio.run(scenario())
    assert [name for name, _ in order if name != "x"] == ["a", "b", "c", "d", "e"]
    assert all(held <= 100 or name == "d" for name, held in order)


def test_a_form_as_a_library_reads_it() -> None:
    """Python's own reader of MIME gets back each field and each byte."""
    upload = b"\r\n--x\r\n\0\xff" * 3 + b"\r\n"
    fields = {
        "model": "m",
        "language": None,
        "prompt": 'naïve "quoted"\nline',
        "temperature": 0.5,
        "use_beam_search": True,
        "seed": 12345678901234567,
        "vllm_xargs": {"a": [1, "b"]},
        "timestamp_granularities": ["word", "segment"],
        'odd"name': "x",
    }
    body, content_type = multipart.form(json.dumps(fields).encode(), upload)
    message = BytesParser(policy=policy.HTTP).parsebytes(
        f"Content-Type: {content_type}\r\n\r\n".encode() + body
    )
    read = [
        (part.get_param("name", header="content-disposition"), part.get_payload(decode=True))
        for part in message.iter_parts()
    ]
    assert read == [
        ("model", b"m"),
        ("prompt", 'naïve "quoted"\nline'.encode()),
        ("temperature", b"0.5"),
        ("use_beam_search", b"true"),
        ("seed", b"12345678901234567"),
        ("vllm_xargs", b'{"a":[1,"b"]}'),
        ("timestamp_granularities[]", b"word"),
        ("timestamp_granularities[]", b"segment"),
        ("odd%22name", b"x"),
        ("file", upload),
    ]
