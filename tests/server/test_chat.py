"""Chat through ``vbatch serve``: to the worker that has the model, by OpenAI's own client, streams and all."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from tests.rigs.commands import Home, chats
from tests.rigs.serving import KEY, Served
from tests.rigs.waiting import until
from vbatch.system import sockets

CHAT = {"VBATCH_CHAT": "true", "VBATCH_PRELOAD": "echo"}
ASKED = {"model": "echo", "messages": [{"role": "user", "content": "one two three"}]}


@pytest.fixture
def client(server: Served) -> Iterator[openai.OpenAI]:
    """OpenAI's client as it is, with its retries."""
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY, timeout=60) as opened:
        yield opened


def loaded(server: Served) -> bool:
    return server.ask("/v1/chat/completions", method="POST", body=json.dumps(ASKED).encode())[0] == 200


def test_the_official_client_chats_beside_a_batch(own: Home, server: Served, client: openai.OpenAI) -> None:
    """Whole and streamed, while the batch of the same model is answered and loses nothing."""
    batch = own.submit(chats(300))
    with own.worker("--engine", "echo", VBATCH_ECHO_LATENCY_MS="30", VBATCH_MAX_INFLIGHT="8", **CHAT):
        until(lambda: loaded(server))
        answer = client.chat.completions.create(**ASKED)  # type: ignore[call-overload]
        assert answer.choices[0].message.content == "one two three"
        pieces = client.chat.completions.create(**ASKED, stream=True)  # type: ignore[call-overload]
        began, arrived, words = time.monotonic(), [], []
        for piece in pieces:
            arrived.append(time.monotonic() - began)
            words.append(piece.choices[0].delta.content or "")
        assert "".join(words) == "one two three"
        assert arrived[0] < arrived[-1] - 0.02, "it comes piece by piece"
        assert client.responses.create(model="echo", input="a b").output_text == "a b"
        assert len(client.embeddings.create(model="echo", input="a").data[0].embedding) == 8
        until(lambda: own.finished(batch) == 300)
    assert own.batch(batch)["request_counts"] == {"total": 300, "completed": 300, "failed": 0}


def test_what_is_not_loaded_is_named_with_what_to_do(
    own: Home, server: Served, client: openai.OpenAI
) -> None:
    """And the client does not ask three times. Mutants: no Retry-After; no x-should-retry."""
    ask = {"method": "POST", "body": json.dumps(ASKED | {"model": "some/model"}).encode()}
    status, headers, body = server.ask("/v1/chat/completions", **ask)  # type: ignore[arg-type]
    assert (status, headers["retry-after"]) == (503, "30")
    assert "chat = true" in json.loads(body)["error"]["message"]
    with own.worker("--engine", "echo", **CHAT):
        until(lambda: loaded(server))
        began = time.monotonic()
        with pytest.raises(openai.InternalServerError) as caught:
            client.chat.completions.create(**ASKED | {"model": "some/model"})  # type: ignore[call-overload]
        assert time.monotonic() - began < 20
        assert caught.value.code == "model_not_loaded"
        assert "vbatch run-worker --preload some/model" in caught.value.message
        assert "loaded: echo" in caught.value.message
        for wrong, expected in ((b"{", 400), (b"{}", 400), (b'{"model": 3}', 400)):
            assert server.ask("/v1/chat/completions", method="POST", body=wrong)[0] == expected
        with pytest.raises(openai.AuthenticationError):
            client.with_options(api_key="wrong").chat.completions.create(**ASKED)  # type: ignore[call-overload]
        assert server.ask("/v1/messages", method="GET")[0] == 405
        own.run("pause")
        until(lambda: not loaded(server))

        def refused() -> str:
            return str(json.loads(server.ask("/v1/chat/completions", **ask)[2])["error"]["message"])  # type: ignore[arg-type]

        assert "vbatch resume" in refused()  # mutant: it names the model alone, and a batch would wait, too


def test_a_client_that_leaves_ends_its_chat_in_the_worker(own: Home, server: Served) -> None:
    """Mutant: the server does not look whether its client is still there."""
    hanging = json.dumps(ASKED | {"metadata": {"vbatch_echo": "hang"}}).encode()
    with own.worker("--engine", "echo", VBATCH_DRAIN_LIMIT="60s", **CHAT) as worker:
        until(lambda: loaded(server))
        connection = server.connect()
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {KEY}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(hanging)}\r\n\r\n"
        )
        connection.sendall(head.encode() + hanging)
        time.sleep(0.5)  # it is in the worker by then
        connection.close()
        began = time.monotonic()
        worker.send_signal(signal.SIGTERM)
        worker.wait(60)
        assert time.monotonic() - began < 30, "the worker waited for a chat that no one waits for"


def test_a_dead_and_a_hanging_worker_are_passed_over(own: Home, server: Served, tmp_path: Path) -> None:
    """Mutants: a socket that refuses, or does not answer, is an error of the server."""
    with own.worker("--engine", "echo", **CHAT) as dead:
        until(lambda: loaded(server))
        os.kill(dead.pid, signal.SIGKILL)
        dead.wait()
        assert not loaded(server)
    hanging = sockets.listen(own.state_dir, "worker_0000000000000000")
    with hanging, own.worker("--engine", "echo", **CHAT):
        until(lambda: loaded(server))
        names = [sockets.worker_of(path) for path in sockets.found(own.state_dir)]
        assert len(names) == 2, "the socket of the dead worker is removed by the next one"


def test_floods_are_refused(server: Served) -> None:
    """A request that says it is too large is refused before it is read."""
    with server.connect() as connection:
        connection.sendall(
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {KEY}\r\n"
            f"Content-Length: {1 << 40}\r\n\r\n".encode()
        )
        assert connection.recv(64).startswith(b"HTTP/1.1 413 ")
        connection.shutdown(socket.SHUT_WR)
