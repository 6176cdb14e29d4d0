"""Services beside us: a healthy one is left alone, a broken question is told from a broken service."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from tests.rigs.commands import Home
from vbatch import config
from vbatch.doctor.checks import neighbours
from vbatch.doctor.facts import Facts
from vbatch.doctor.findings import Check, Finding, Level
from vbatch.doctor.running import Conduct, examine


class _Handler(BaseHTTPRequestHandler):
    """Answers as its path says; /health as Label Studio does."""

    def do_GET(self) -> None:
        status = {"/health": 200, "/broken": 503, "/moved": 302}.get(self.path, 404)
        if self.path == "/private" and self.headers["Authorization"] == "Basic YW5uOmhAcnNl":  # ann:h@rse
            status = 200
        self.send_response(status)
        if status == 302:
            self.send_header("Location", "/login")
        self.end_headers()
        self.wfile.write(b'{"status": "UP"}')

    def log_message(self, *_arguments: object) -> None:
        """Say nothing."""


@contextmanager
def serving(port: int = 0, *, host: str = "127.0.0.1") -> Iterator[int]:
    server_type = type(
        "Server", (HTTPServer,), {"address_family": socket.AF_INET6 if ":" in host else socket.AF_INET}
    )
    with server_type((host, port), _Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "PAUSE", 0.2)


def found(tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> Finding:
    file = tmp_path / "config.toml"
    file.write_text(f'[doctor.neighbours]\nlabel-studio = "{url}"\n')
    monkeypatch.setenv("VBATCH_CONFIG", str(file))
    (finding,) = neighbours._health(Facts(settings=config.load()))
    return finding


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_healthy_neighbour_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving() as port:
        finding = found(tmp_path, f"http://127.0.0.1:{port}/health", monkeypatch)
    assert (finding.id, finding.level) == ("neighbours.healthy", Level.OK)
    assert "leave it alone" in finding.what


def test_one_that_is_late_is_no_alarm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The incident's false alarm. Mutant: one try only."""
    port = free_port()
    stop = threading.Event()

    def late() -> None:
        time.sleep(0.4)
        with serving(port):
            stop.wait(20)

    thread = threading.Thread(target=late)
    thread.start()
    finding = found(tmp_path, f"http://127.0.0.1:{port}/health", monkeypatch)
    stop.set()
    thread.join()
    assert finding.id == "neighbours.healthy"


def test_one_that_is_down_is_a_warning_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finding = found(tmp_path, f"http://127.0.0.1:{free_port()}/health", monkeypatch)
    assert (finding.id, finding.level) == ("neighbours.down", Level.WARN)
    assert "connection refused" in finding.what


@pytest.mark.parametrize(
    ("path", "expected", "level"),
    [
        ("/broken", "neighbours.unhealthy", Level.WARN),
        ("/elsewhere", "neighbours.probe", Level.INFO),
        ("/moved", "neighbours.probe", Level.INFO),
    ],
)
def test_what_it_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, expected: str, level: Level
) -> None:
    """Mutant: taking every answer but 200 for a broken service."""
    with serving() as port:
        finding = found(tmp_path, f"http://127.0.0.1:{port}{path}", monkeypatch)
    assert (finding.id, finding.level) == (expected, level)


@pytest.mark.parametrize(
    "url",
    ["127.0.0.1:8080", "http://[::1", "ftp://127.0.0.1/", "http://", "http://no-such-host.invalid/health"],
)
def test_a_question_that_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    assert found(tmp_path, url, monkeypatch).id == "neighbours.probe"


def test_somebody_who_does_not_speak_http(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def talk(listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            client.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")
            client.close()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=talk, args=(listener,), daemon=True).start()
        finding = found(tmp_path, f"http://127.0.0.1:{listener.getsockname()[1]}/health", monkeypatch)
    assert finding.id == "neighbours.probe"


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6 here")
def test_the_other_loopback_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutant: reporting it as down."""
    try:
        with serving(host="::1") as port:
            finding = found(tmp_path, f"http://127.0.0.1:{port}/health", monkeypatch)
    except OSError:
        pytest.skip("this machine has no ::1")
    assert finding.id == "neighbours.address"
    assert f"http://[::1]:{port}/health" in finding.what


def test_one_that_drips_costs_its_limit_and_no_more(tmp_path: Path) -> None:
    """A byte a second for ever. Mutants: a limit for each read alone; threads that are waited for at the end."""
    home = Home(tmp_path, f"sqlite:///{tmp_path / 'vbatch.db'}")
    with socket.create_server(("127.0.0.1", 0)) as listener, serving() as healthy:
        threading.Thread(target=_drip, args=(listener,), daemon=True).start()
        file = tmp_path / "config.toml"
        drips = f"http://127.0.0.1:{listener.getsockname()[1]}/health"
        file.write_text(
            f'[doctor.neighbours]\ndrips = "{drips}"\nhealthy = "http://127.0.0.1:{healthy}/health"\n'
        )
        home.extra["VBATCH_CONFIG"] = str(file)
        done = home.run("doctor", "neighbours")
    assert "drips does not answer (no answer in time)" in done.stdout
    assert "healthy is healthy" in done.stdout


def _drip(listener: socket.socket) -> None:
    def serve(client: socket.socket) -> None:
        with suppress(OSError):
            for byte in b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 1000:
                client.sendall(bytes([byte]))
                time.sleep(1)

    while True:
        try:
            client, _ = listener.accept()
        except OSError:
            return
        threading.Thread(target=serve, args=(client,), daemon=True).start()


def test_a_check_that_hangs_here_is_a_warning() -> None:
    """vbatch does not depend on neighbours. Mutant: FAIL, as for a driver."""
    release = threading.Event()

    def hang(_facts: Facts) -> list[Finding]:
        release.wait(60)
        return []

    check = Check(name="neighbours.health", finds=(neighbours.NONE,), run=hang, limit=timedelta(seconds=0.1))
    (finding,) = examine([check], Facts(settings=config.load()), Conduct()).findings
    release.set()
    assert (finding.id, finding.level) == ("neighbours.hanging", Level.WARN)


def test_no_proxy_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutant: an opener that honours http_proxy."""
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port()}")
    with serving() as port:
        finding = found(tmp_path, f"http://127.0.0.1:{port}/health", monkeypatch)
    assert finding.id == "neighbours.healthy"


def test_a_password_is_used_and_not_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutant: the URL as it is: urllib takes the password for a port, and says so."""
    with serving() as port:
        open_to_ann = found(tmp_path, f"http://ann:h%40rse@127.0.0.1:{port}/private", monkeypatch)
    assert open_to_ann.id == "neighbours.healthy"
    closed = found(tmp_path, f"http://ann:h%40rse@127.0.0.1:{free_port()}/private?a=1&b=2", monkeypatch)
    assert "rse" not in repr(closed)
    assert closed.commands[0].startswith("curl -i 'http://127.0.0.1:")


def test_none_configured() -> None:
    (finding,) = neighbours._health(Facts(settings=config.load()))
    assert finding.level is Level.SKIP
