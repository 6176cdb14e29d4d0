"""The HTTP client: certificates, redirects, answers without end, and words for what is not HTTP."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.outbound.conftest import certificate
from vbatch.engine.endpoint.client import Broken, Client, TooLarge

__all__ = ["certificate"]

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"


def ask(answer: bytes, *, tls: Path | None = None, scheme: str | None = None) -> object:
    """Ask a server that writes this; return the status, or what was raised."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()
        writer.close()

    async def run() -> object:
        context = None
        if tls is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(tls)
        server = await asyncio.start_server(serve, "localhost", 0, ssl=context)
        port = server.sockets[0].getsockname()[1]
        client = Client(f"{scheme or ('https' if tls else 'http')}://localhost:{port}", None)
        try:
            return (await client.models()).status
        except (Broken, TooLarge) as error:
            return error
        finally:
            await client.close()
            server.close()

    return asyncio.run(run())


def test_a_certificate_must_be_trusted(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutant: a client that verifies nothing."""
    error = ask(OK, tls=certificate)
    assert isinstance(error, Broken)
    assert (error.reached, error.cause.partition(" (")[0]) == (False, "its certificate is not trusted")
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    assert ask(OK, tls=certificate) == 200


_MOVED = b"HTTP/1.1 302 Found\r\nLocation: http://localhost:1/\r\nContent-Length: 0\r\n\r\n"
CASES: dict[str, tuple[bytes, Callable[[object], bool]]] = {
    "redirect": (
        b"HTTP/1.1 302 Found\r\nLocation: http://localhost:1/\r\nContent-Length: 0\r\n\r\n",
        lambda x: x == 302,
    ),
    "large": (b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n{", lambda x: isinstance(x, TooLarge)),
    "cut": (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{", lambda x: "ends in the middle" in str(x)),
    "silent": (b"", lambda x: str(x) == "the server closed the connection"),
    "other": (b"SSH-2.0-OpenSSH_9\r\n\r\n", lambda x: "is not HTTP" in str(x)),
}


@pytest.mark.parametrize("name", CASES)
def test_what_is_no_whole_answer(name: str) -> None:
    """Mutants: a redirect that is followed, with the key; an answer that fills the memory."""
    written, expected = CASES[name]
    found = ask(written)
    assert expected(found), found
