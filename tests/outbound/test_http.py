"""What a URL that somebody chose may reach, and what it may not."""

from __future__ import annotations

import base64
import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.rigs.receiver import Receiver, receiver
from vbatch.outbound import http
from vbatch.outbound.http import Refused


@pytest.fixture
def hook() -> Iterator[Receiver]:
    with receiver() as running:
        yield running


def test_it_is_posted(hook: Receiver) -> None:
    assert http.post(hook.url("/a?b=c"), b"{}", {"X-One": "1"}, seconds=5, private=True) == 200
    (seen,) = hook.requests
    assert (seen.path, seen.body, seen.headers["X-One"]) == ("/a?b=c", b"{}", "1")


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:9/", "http://localhost:9/", "http://[::1]:9/", "http://10.0.0.1/"]
)
def test_a_private_address_must_be_allowed(url: str) -> None:
    """Mutant: no look at the address; a batch can then reach the router, or a cloud's metadata."""
    with pytest.raises(Refused, match="private address"):
        http.post(url, b"", {}, seconds=1)


def test_the_address_that_was_looked_at_is_the_one_that_is_used(
    hook: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that resolves to a private address a moment later. Mutant: the connection resolves again."""
    addresses = iter(["192.88.99.1", "127.0.0.1"])  # of the first no server answers
    asked: list[str] = []

    def resolve(host: str, port: int, *_: object, **__: object) -> list[object]:
        if host[0].isdigit():
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, port))]
        asked.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (next(addresses), port))]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    with pytest.raises(OSError, match=r"."):
        http.post(f"http://rebinding.example:{hook.port}/", b"", {}, seconds=0.5)
    assert (asked, hook.requests) == (["rebinding.example"], [])


def test_one_private_address_among_others_is_enough(hook: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutant: only the first address is looked at."""
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (each, 80)) for each in ("192.88.99.1", "127.0.0.1")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    with pytest.raises(Refused, match="private address"):
        http.post(f"http://mixed.example:{hook.port}/", b"", {}, seconds=5)


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0", "10.1.2.3", "100.64.0.1", "127.9.9.9", "169.254.169.254", "172.16.0.1", "192.168.1.1", "192.0.0.8",
        "224.0.0.1", "255.255.255.255", "::", "::1", "fe80::1%eth0", "fc00::1", "fec0::1", "ff02::1", "::127.0.0.1",
        "::ffff:127.0.0.1", "64:ff9b::a00:1", "2002:7f00:1::", "2001:0:4136:e378:8000:63bf:80ff:fffe",
    ],
)  # fmt: skip
def test_an_address_that_is_not_of_the_internet(address: str) -> None:
    """Mutants: IPv4 that IPv6 only wraps; multicast; link-local, where a cloud keeps its credentials."""
    assert not http.is_public(address)


@pytest.mark.parametrize("address", ["1.1.1.1", "2606:4700::1111", "64:ff9b::101:101"])
def test_an_address_of_the_internet(address: str) -> None:
    assert http.is_public(address)


def test_a_name_with_two_addresses_of_which_one_answers(
    hook: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``localhost`` is ::1 first, and many a service listens on 127.0.0.1 alone. Mutant: only the first is tried."""
    found = [
        (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1", hook.port, 0, 0)),
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", hook.port)),
    ]
    resolve = socket.getaddrinfo

    def both(host: str, *rest: object, **named: object) -> object:
        return found if host == "localhost" else resolve(host, *rest, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", both)
    assert http.post(f"http://localhost:{hook.port}/", b"", {}, seconds=10, private=True) == 200
    assert hook.requests[0].headers["Host"] == f"localhost:{hook.port}"


@pytest.mark.parametrize("status", [301, 302, 307, 404, 500])
def test_a_redirect_is_not_followed_and_an_error_is_one(hook: Receiver, status: int) -> None:
    hook.status = status
    with pytest.raises(Refused, match=f"HTTP {status}"):
        http.post(hook.url("/"), b"", {}, seconds=5, private=True)
    assert len(hook.requests) == 1


def test_a_target_that_hangs_has_a_limit(hook: Receiver) -> None:
    hook.delay = 60
    with pytest.raises(TimeoutError):
        http.post(hook.url("/"), b"", {}, seconds=0.3, private=True)


def test_a_target_that_sends_a_byte_now_and_then_has_the_same_limit() -> None:
    """Mutant: the limit of a socket, which begins anew with each byte."""
    started = time.monotonic()
    with dripping() as port, pytest.raises(TimeoutError):
        http.post(f"http://127.0.0.1:{port}/", b"", {}, seconds=1, private=True)
    assert time.monotonic() - started < 10


def test_the_body_of_an_answer_is_not_waited_for() -> None:
    """Mutant: it is read; what was accepted is then sent again."""
    with dripping(b"HTTP/1.1 201 Created\r\nContent-Length: 9999\r\n\r\n") as port:
        assert http.post(f"http://127.0.0.1:{port}/", b"", {}, seconds=10, private=True) == 201


def test_user_and_password_go_into_a_header(hook: Receiver) -> None:
    url = hook.url("/x").replace("//", "//ann:p%40ss@")
    http.post(url, b"", {}, seconds=5, private=True)
    assert hook.requests[0].headers["Authorization"] == "Basic " + base64.b64encode(b"ann:p@ss").decode()
    assert hook.requests[0].headers["Host"] == f"127.0.0.1:{hook.port}"


def test_a_certificate_is_that_of_the_name(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutants: no verification; the name of the certificate compared with the address."""
    with receiver(certificate) as hook:
        url = f"https://localhost:{hook.port}/"
        with pytest.raises(ssl.SSLError) as unknown:
            http.post(url, b"", {}, seconds=10, private=True)
        assert "certificate is not trusted" in http.reason(unknown.value)
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        assert http.post(url, b"", {}, seconds=10, private=True) == 200
        with pytest.raises(ssl.SSLError):
            http.post(f"https://127.0.0.1:{hook.port}/", b"", {}, seconds=10, private=True)
        assert len(hook.requests) == 1


@contextlib.contextmanager
def dripping(first: bytes = b"HTTP/1.1 200 OK\r\n") -> Iterator[int]:
    """A server that answers so, and then with a byte of a header each tenth of a second."""
    done = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection, contextlib.suppress(OSError):
                connection.sendall(first)
                while not done.wait(0.1):
                    connection.sendall(b"x")

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield server.getsockname()[1]
        finally:
            done.set()
            thread.join()


@pytest.mark.parametrize(
    "url",
    [
        "ftp://h/x",
        "http://",
        "file:///etc/passwd",
        "http://h:0/",
        "http://[::1/",
        "x",
        "http://h/ä",
        "http://h/a b",
        "http://h/a\nb",
    ],
)
def test_other_urls_are_refused(url: str) -> None:
    with pytest.raises(Refused):
        http.check(url)


def test_a_url_is_shown_without_what_may_be_secret() -> None:
    assert http.shown("https://ann:pw@hooks.example:8443/T0K/EN?key=1") == "https://hooks.example:8443/…"
    assert http.shown("http://u@[::1]:8080/x") == "http://[::1]:8080/…"
