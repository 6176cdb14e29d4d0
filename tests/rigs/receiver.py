"""A real HTTP server that takes what is sent to it, answers as it is told to, and remembers."""

from __future__ import annotations

import contextlib
import ssl
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


@dataclass(frozen=True)
class Seen:
    """One request."""

    path: str
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True, kw_only=True)
class Page:
    """What is answered to a GET. ``sized``: with a Content-Length; ``missing`` bytes of the body are never sent.

    The body follows ``delay`` seconds after the headers.
    """

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    sized: bool = True
    missing: int = 0
    delay: float = 0


@dataclass
class Receiver:
    """``status`` is what it answers to a POST, after ``delay`` seconds. ``pages`` are those of each path, in turn.

    The last one of a path stays.
    """

    port: int = 0
    status: int = 200
    delay: float = 0
    requests: list[Seen] = field(default_factory=list)
    closing: threading.Event = field(default_factory=threading.Event)
    pages: dict[str, list[Page]] = field(default_factory=dict)

    def url(self, path: str = "/hook") -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}{path}"


@contextlib.contextmanager
def receiver(certificate: Path | None = None) -> Iterator[Receiver]:
    """Keep one running; with a certificate and its key it speaks TLS."""
    told = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            told.requests.append(Seen(self.path, dict(self.headers.items()), body))
            told.closing.wait(told.delay)
            with contextlib.suppress(OSError):
                self.send_response(told.status)
                self.send_header("Location", "http://127.0.0.1:9/elsewhere")
                self.send_header("Content-Length", "0")
                self.end_headers()

        def do_GET(self) -> None:
            told.requests.append(Seen(self.path, dict(self.headers.items()), b""))
            pages = told.pages.get(self.path, [Page(status=404)])
            page = pages.pop(0) if len(pages) > 1 else pages[0]
            with contextlib.suppress(OSError):
                self.send_response(page.status)
                if page.sized:
                    self.send_header("Content-Length", str(len(page.body)))
                for name, value in page.headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.flush()
                told.closing.wait(page.delay)
                self.wfile.write(page.body[: len(page.body) - page.missing])

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    if certificate is not None:
        secure = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        secure.load_cert_chain(certificate)
        server.socket = secure.wrap_socket(server.socket, server_side=True)
    told.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield told
    finally:
        told.closing.set()
        server.shutdown()
        server.server_close()
        thread.join()
