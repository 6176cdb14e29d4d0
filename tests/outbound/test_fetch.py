"""What a request may have fetched, and what becomes of a server that gives something else."""

from __future__ import annotations

import asyncio
import base64
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.outbound.test_http import dripping
from tests.rigs.receiver import Page, Receiver, receiver
from tests.rigs.waiting import until
from vbatch.outbound import fetch as fetch_module
from vbatch.outbound import http
from vbatch.outbound.fetch import Limits, NotFetched, Trouble, check_form, fetch
from vbatch.outbound.http import Refused

AUDIO = bytes(range(256)) * 40
LIMIT = 1 << 20


@pytest.fixture
def server() -> Iterator[Receiver]:
    with receiver() as running:
        yield running


def get(
    url: str,
    *,
    size: int = LIMIT,
    seconds: float = 20,
    allows: str | None = None,
    waits: list[int] | None = None,
) -> bytes:
    limits = Limits(size=size, size_name="audio_limit", seconds=seconds, allows=allows)
    waited = waits if waits is not None else []
    return asyncio.run(fetch(url, limits, waiting=lambda: waited.append(1)))


def refusal(url: str, **limits: Any) -> tuple[Trouble, str]:
    with pytest.raises(NotFetched) as error:
        get(url, **limits)
    return error.value.trouble, str(error.value)


@pytest.mark.parametrize("sized", [True, False])
def test_it_is_fetched_with_and_without_a_length(server: Receiver, sized: bool) -> None:
    server.pages["/a.wav?x=1"] = [Page(body=AUDIO, sized=sized)]
    assert get(server.url("/a.wav?x=1")) == AUDIO


@pytest.mark.parametrize("sized", [True, False])
def test_what_is_too_large_is_not_taken(server: Receiver, sized: bool) -> None:
    """Mutant: the bytes are not counted."""
    server.pages["/a"] = [Page(body=AUDIO, sized=sized)]
    assert get(server.url("/a"), size=len(AUDIO)) == AUDIO
    trouble, words = refusal(server.url("/a"), size=len(AUDIO) - 1)
    assert trouble is Trouble.TOO_LARGE
    assert "(audio_limit)" in words


def test_a_length_that_is_too_large_is_enough(server: Receiver) -> None:
    """Mutant: the length is not looked at; so many bytes are fetched in vain."""
    server.pages["/a"] = [Page(body=AUDIO, delay=60)]
    assert refusal(server.url("/a"), size=len(AUDIO) - 1)[0] is Trouble.TOO_LARGE


def test_a_body_that_ends_too_early_is_not_taken(server: Receiver) -> None:
    """Mutant: no look at how much is missing; half of a recording is then transcribed as if it were all."""
    server.pages["/a"] = [Page(body=AUDIO, missing=1)]
    assert refusal(server.url("/a"))[0] is Trouble.UNREACHABLE


@pytest.mark.parametrize(
    ("status", "trouble"),
    [
        (404, Trouble.MISSING),
        (403, Trouble.MISSING),
        (304, Trouble.MISSING),
        (206, Trouble.MISSING),
        (408, Trouble.UNREACHABLE),
        (429, Trouble.UNREACHABLE),
        (503, Trouble.UNREACHABLE),
    ],
)
def test_a_status_is_final_or_passing(server: Receiver, status: int, trouble: Trouble) -> None:
    server.pages["/secret"] = [Page(status=status, body=b"x")]
    """And no word of the path or the query, which may be a secret."""
    server.pages["/secret?token=abc"] = server.pages["/secret"]
    assert refusal(server.url("/secret?token=abc")) == (trouble, f"127.0.0.1 answered with HTTP {status}")


def test_the_server_says_when_to_try_again(server: Receiver) -> None:
    server.pages["/a"] = [Page(status=503, headers={"Retry-After": "7"})]
    server.pages["/b"] = [Page(status=503, headers={"Retry-After": "86400"})]
    server.pages["/c"] = [Page(status=503, headers={"Retry-After": "Fri, 31 Dec 2027 23:59:59 GMT"})]
    pauses = []
    for path in "abc":
        with pytest.raises(NotFetched) as error:
            get(server.url(f"/{path}"))
        pauses.append(error.value.retry_after)
    assert pauses == [7.0, fetch_module.LONGEST_PAUSE, None]


def test_a_redirect_is_followed_on_its_host_alone(server: Receiver) -> None:
    """Mutants: every redirect is followed; none is."""
    server.pages["/a"] = [Page(status=302, headers={"Location": "/b"})]
    server.pages["/b"] = [Page(body=AUDIO)]
    assert get(server.url("/a")) == AUDIO
    for elsewhere in (f"http://localhost:{server.port}/b", "http://127.0.0.1:9/b", "ftp://127.0.0.1/b"):
        server.pages["/a"] = [Page(status=307, headers={"Location": elsewhere})]
        assert refusal(server.url("/a"))[0] is Trouble.REFUSED, elsewhere
    server.pages["/a"] = [Page(status=301, headers={"Location": "/a"})]
    assert refusal(server.url("/a"))[0] is Trouble.MISSING


@pytest.mark.parametrize(
    "url", ["https://127.0.0.1:9/", "https://localhost:9/", "https://[::1]:9/", "https://10.0.0.1/"]
)
def test_a_private_address_must_be_allowed(url: str) -> None:
    """Mutant: no look at the address; a batch can then read what only this machine may read."""
    trouble, words = refusal(url, allows="audio_private = true")
    assert trouble is Trouble.REFUSED
    assert "private address" in words
    assert words.endswith("audio_private = true allows it")


def test_plain_http_must_be_allowed(server: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutant: no look at the scheme."""
    monkeypatch.setattr(http, "is_public", lambda _address: True)
    trouble, words = refusal(server.url("/a"), allows="audio_private = true")
    assert (trouble, server.requests) == (Trouble.REFUSED, [])
    assert words == "plain http is not used; audio_private = true allows it"


def test_the_address_that_was_looked_at_is_the_one_that_is_used(
    server: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that resolves to another address a moment later. Mutant: the connection resolves again."""
    addresses = iter(["192.88.99.1", "127.0.0.1"])  # of the first no server answers

    def resolve(host: str, port: int, *_: object, **__: object) -> list[object]:
        address = host if host[0].isdigit() else next(addresses)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    assert refusal(f"http://rebinding.example:{server.port}/", seconds=1)[0] is Trouble.UNREACHABLE
    assert server.requests == []


def test_the_time_is_limited_and_the_thread_ends(server: Receiver) -> None:
    server.pages["/a"] = [Page(body=AUDIO, delay=60)]
    waits: list[int] = []
    trouble, words = refusal(server.url("/a"), seconds=1.5, waits=waits)
    assert (trouble, words) == (Trouble.UNREACHABLE, "127.0.0.1 did not send it within 1.5 s")
    assert waits
    until(lambda: not _fetching())


def test_a_server_that_sends_a_byte_now_and_then_has_the_same_limit() -> None:
    """Mutants: the limit of a socket, which begins anew with each byte; a download that is not aborted."""
    with dripping() as port:
        assert refusal(f"http://127.0.0.1:{port}/a", seconds=1)[0] is Trouble.UNREACHABLE
        until(lambda: not _fetching())


def _fetching() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "fetch"]


def test_an_unknown_host_and_a_closed_port_may_pass() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        assert refusal(f"http://127.0.0.1:{closed.getsockname()[1]}/")[0] is Trouble.UNREACHABLE
    assert refusal("https://no-such-host.invalid/a")[0] is Trouble.UNREACHABLE


def test_certificates_are_checked(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutant: TLS without verification."""
    with receiver(certificate) as secure:
        secure.pages["/a"] = [Page(body=AUDIO)]
        url = f"https://localhost:{secure.port}/a"
        assert "certificate is not trusted" in refusal(url)[1]
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        assert get(url) == AUDIO


def test_a_data_url_is_decoded() -> None:
    encoded = base64.b64encode(AUDIO).decode()
    assert get(f"data:audio/wav;base64,{encoded}", allows="audio_private = true") == AUDIO
    assert get("data:audio/wav;rate=8000;base64,AA%3D%3D") == b"\0"
    assert refusal(f"data:;base64,{encoded}", size=len(AUDIO) - 1)[0] is Trouble.TOO_LARGE
    assert refusal("data:audio/wav;base64,A")[0] is Trouble.INVALID


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("data:audio/wav;base64,", "no bytes"),
        ("data:audio/wav,AAAA", "data:TYPE;base64,DATA"),
        ("data:audio/wav;base64", "data:TYPE;base64,DATA"),
        ("data:audio/wav;base64,A*AA", "not valid base64"),
        ("data:audio/wav;base64,AAAAA", "not valid base64"),
        ("data:audio/wav;base64,é", "not valid base64"),
        ("/home/me/a.wav", "https:// or data:"),
        ("file:///home/me/a.wav", "https:// or data:"),
        ("s3://bucket/a.wav", "https:// or data:"),
        ("", "https:// or data:"),
        ("https://", "name a host"),
        ("https://host/a b.wav", "percent-encoded"),
    ],
)
def test_what_is_no_url_of_audio(url: str, words: str) -> None:
    with pytest.raises(Refused, match=words):
        check_form(url)


@pytest.mark.parametrize("url", ["https://host/a.wav", "HTTP://host:8000/a", "data:audio/wav;base64,AAAA"])
def test_what_may_be_one(url: str) -> None:
    check_form(url)
