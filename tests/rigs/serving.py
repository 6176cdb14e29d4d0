"""A real ``vbatch serve`` process for tests, and the ways to speak to it."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import socket
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import Any

from tests.rigs.commands import VBATCH, Home
from tests.rigs.waiting import cpu_seconds, exit_code, until

KEY = "a-key-of-the-tests-0123456789"


@dataclass
class Served:
    """A running server: ``url`` ends without a slash."""

    process: subprocess.Popen[bytes]
    log: Path
    port: int
    key: str = KEY

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def ask(
        self,
        path: str,
        *,
        method: str = "GET",
        body: bytes | None = None,
        key: str | None = KEY,
        headers: Mapping[str, str] = {},
    ) -> tuple[int, dict[str, str], bytes]:
        """Send one request; return status, headers and body."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=60)
        sent = ({"Authorization": f"Bearer {key}"} if key else {}) | dict(headers)
        try:
            connection.request(method, path, body, sent)
            answer: HTTPResponse = connection.getresponse()
            return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
        finally:
            connection.close()

    def json(self, path: str, **options: Any) -> Any:
        """Send one request, and return the document that answers it."""
        if (document := options.pop("document", None)) is not None:
            options |= {"body": json.dumps(document).encode(), "method": options.get("method", "POST")}
        return json.loads(self.ask(path, **options)[2])

    def connect(self) -> socket.socket:
        """Open a connection for what no client would send."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=60)

    def kill(self) -> None:
        """End it as a power cut would."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """End it as systemd does; return its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return exit_code(self.process)


@contextlib.contextmanager
def served(
    home: Home,
    *options: str,
    port: int = 0,
    ready: str = r"server\.ready url=\S+:(\d+)",
    **environment: str,
) -> Iterator[Served]:
    """Run a server on a free port; it is killed at the end if it still lives."""
    log = home.path / "serve.log"
    begin = log.stat().st_size if log.exists() else 0
    with log.open("ab") as stream:
        process = subprocess.Popen(
            [*VBATCH, "serve", "--port", str(port), *options],
            env={"VBATCH_API_KEY": KEY} | home.env | environment,
            cwd=home.path,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
        )
    try:
        found: list[str] = []

        def is_ready() -> bool:
            with log.open("rb") as file:
                file.seek(begin)
                text = file.read().decode(errors="replace")
            found[:] = re.findall(ready, text)
            if process.poll() is not None:
                raise AssertionError(f"the server ended with {process.returncode}:\n{text}")
            return bool(found)

        until(is_ready, progress=lambda: cpu_seconds(process.pid))
        yield Served(process, log, int(found[0]))
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGCONT)
            process.kill()
        process.wait()
