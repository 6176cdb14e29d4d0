"""Who may speak to the server: keys, hosts, web pages; and what it does with clients that send too much or nothing."""

from __future__ import annotations

import contextlib
import json
import socket
import stat
import time
from pathlib import Path

from tests.rigs.commands import Home
from tests.rigs.serving import KEY, Served, served
from tests.rigs.waiting import until

JSON = {"content-type": "application/json"}


def error(body: bytes) -> dict[str, object]:
    """Return the error object, which has four keys, always."""
    found: dict[str, object] = json.loads(body)["error"]
    assert set(found) == {"message", "type", "param", "code"}
    return found


def test_a_key_may_have_any_letters(own: Home) -> None:
    """Mutant: the bytes of a header are read as Latin-1, and compared as UTF-8."""
    key = "ein Schl\u00fcssel der Tests"
    with served(own, VBATCH_API_KEY=key) as server:
        sent = {"x-api-key": key.encode().decode("latin-1")}
        assert server.ask("/v1/models", key=None, headers=sent)[0] == 200


def test_a_key_is_needed_for_all_but_health(server: Served) -> None:
    """Mutant: a guard that lets a request without ``Authorization`` through."""
    status, headers, body = server.ask("/v1/models", key=None)
    assert (status, error(body)["type"]) == (401, "authentication_error")
    assert headers["x-request-id"].startswith("req_")
    status, _, body = server.ask("/v1/models", key=f"{KEY}x")
    assert (status, error(body)["code"]) == (401, "invalid_api_key")
    assert server.ask("/v1/models", key=None, headers={"Authorization": f"Basic {KEY}"})[0] == 401
    assert server.ask("/v1/models", key=None, headers={"Authorization": "Bearer schl\xfcssel"})[0] == 401
    assert server.ask("/v1/models")[0] == 200
    assert server.ask("/v1/models", key=None, headers={"x-api-key": KEY})[0] == 200
    assert server.json("/health", key=None) == {"status": "no_worker", "store": True, "workers": 0}
    assert server.stop() == 0


REFUSED = [
    ({"Host": "evil.example"}, 421),
    ({"Host": "evil.example:8088"}, 421),
    ({"Host": "127.0.0.1.evil.example"}, 421),
    ({"Host": "localhost:1"}, 200),
    ({"Origin": "https://evil.example"}, 403),
    ({"Origin": "null"}, 403),
    ({"Origin": "http://127.0.0.1:1"}, 403),
    ({"Sec-Fetch-Site": "cross-site"}, 403),
    ({"Sec-Fetch-Site": "same-site"}, 403),
    ({"Sec-Fetch-Site": "none"}, 200),
]


def test_other_hosts_and_web_pages_are_refused(server: Served) -> None:
    """A rebound name, and a form of another site, with the right key. Mutant: no check of Host, or of Origin."""
    for headers, status in REFUSED:
        got, answered, body = server.ask("/v1/models", headers=headers)
        assert got == status, headers
        assert "access-control-allow-origin" not in answered
        if status != 200:
            error(body)
    status, _, body = server.ask("/v1/nothing")
    assert (status, error(body)["code"]) == (404, "unknown_url")
    status, _, body = server.ask("/v1/models", method="DELETE")
    assert status == 405
    error(body)
    status, _, body = server.ask("/v1/models/none")
    assert (status, error(body)["code"]) == (404, "model_not_found")


def test_a_refused_upload_costs_no_byte(server: Served) -> None:
    """The refusal comes before the body, and the connection ends. Mutant: a check inside the app's handlers."""
    with server.connect() as client:
        client.sendall(
            b"POST /v1/files HTTP/1.1\r\nHost: 127.0.0.1\r\nOrigin: http://evil.example\r\n"
            b"Content-Type: multipart/form-data; boundary=x\r\nContent-Length: 10000000000\r\n\r\n"
        )
        answer = b""
        while block := client.recv(65536):
            answer += block
    assert answer.startswith(b"HTTP/1.1 403 ")


def test_floods_and_slow_heads_end(own: Home, server: Served) -> None:
    """Too many headers, and a head that never ends. Mutant: no limit on the time of a head."""
    with server.connect() as client:
        client.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n" + b"x: y\r\n" * 50_000)
        assert client.recv(100).startswith(b"HTTP/1.1 400 ")
    with server.connect() as client:
        client.sendall(b"GET /health HTTP/1.1\r\nHost: loc")
        started = time.monotonic()
        client.settimeout(120)
        assert client.recv(100) == b""
        assert 10 < time.monotonic() - started < 100
    assert server.ask("/health")[0] == 200


def test_refusals_of_the_protocol_have_the_shape_of_all_others(own: Home) -> None:
    """What is no HTTP, and one connection too many. Mutants: uvicorn's own answers, which are plain text."""

    def document(client: socket.socket) -> tuple[bytes, dict[str, object]]:
        answer = b""
        while block := client.recv(65536):
            answer += block
        head, _, body = answer.partition(b"\r\n\r\n")
        assert b"\r\ncontent-type: application/json" in head
        assert b"\r\nconnection: close" in head.lower()
        return head.partition(b"\r\n")[0], json.loads(body)["error"]

    config = own.path / "config" / "vbatch" / "config.toml"
    config.parent.mkdir(parents=True)
    config.write_text("[serve]\nconnections = 8\n")
    with served(own) as server:
        for sent in (b"GARBAGE\r\n\r\n", b"GET /health HTTP/1.1\r\nHost: x\r\nContent-Length: y\r\n\r\n"):
            with server.connect() as client:
                client.sendall(sent)
                status, error = document(client)
            assert status == b"HTTP/1.1 400 Bad Request"
            assert sorted(error) == ["code", "message", "param", "type"]
            assert (error["type"], error["code"]) == ("invalid_request_error", "invalid_http")
        with contextlib.ExitStack() as stack:
            for _ in range(8):
                stack.enter_context(server.connect())
            until(lambda: server.ask("/health")[0] == 503)
            with server.connect() as client:
                client.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
                status, error = document(client)
            assert status == b"HTTP/1.1 503 Service Unavailable"
            assert sorted(error) == ["code", "message", "param", "type"]
            assert (error["type"], error["code"]) == ("server_error", "too_many_connections")
        until(lambda: server.ask("/health")[0] == 200)


def test_the_first_start_makes_a_key(own: Home, tmp_path: Path) -> None:
    """It is for this account alone, and stays. Mutant: a file made with the umask."""
    key = own.run("serve", "--print-key").stdout.strip()
    file = tmp_path / "data" / "vbatch" / "api-key"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert own.run("serve", "--print-key").stdout.strip() == key == file.read_text().strip()
    with served(own, VBATCH_API_KEY="") as running:
        assert running.ask("/v1/models", key=key)[0] == 200
        assert running.ask("/v1/models", key=None)[0] == 401
    file.chmod(0o640)
    done = own.run("serve", "--print-key", check=False)
    assert done.returncode == 78
    assert f"hint: chmod 600 {file}" in done.stderr


def test_other_addresses_need_a_key_of_ones_own(own: Home) -> None:
    """Mutant: the check is left out for ``--no-key``."""
    for options in (("--host", "0.0.0.0"), ("--host", "::", "--no-key")):
        done = own.run("serve", "--port", "0", *options, check=False)
        assert done.returncode == 78, done.stderr
        assert "hint: " in done.stderr
    with served(own, "--host", "0.0.0.0") as running:
        assert running.ask("/v1/models", key=None)[0] == 401
        assert running.ask("/v1/models")[0] == 200
    with served(own, "--no-key") as running:
        done = own.run("serve", "--port", str(running.port), check=False)
        assert done.returncode == 78
        assert f"hint: vbatch serve --port {running.port + 1}" in done.stderr
        assert running.ask("/v1/models", key=None)[0] == 200
