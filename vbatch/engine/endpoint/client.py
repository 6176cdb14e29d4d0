"""The HTTP client for one server: one answer, whole or not at all.

TLS is verified, no redirect is followed, no proxy and no cookie is used, and what a server sends is bounded. The key
goes into one header, and is removed from whatever the server sends back. There is no time limit for an answer: a
generation may take hours, and TCP's keep-alive finds a host that is gone.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp
from yarl import URL

from vbatch.text import one_line

MOST = 64 << 20  # bytes of an answer
CONNECT = 20.0  # seconds for a connection: name, TCP, TLS
LOOK = 10.0  # seconds for the list of the models
_IDLE = 4.0  # seconds that a connection is kept: uvicorn, and so vLLM, closes its own after 5
_HIDDEN = b"***"
_KEEP_ALIVE = (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 15), ("TCP_KEEPCNT", 4))  # seconds, seconds, tries


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """An HTTP answer, whole. The case of ``headers`` does not matter."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Broken(Exception):
    """There is no answer, or no whole one. ``reached``: the server took the request; ``cause`` is for people."""

    def __init__(self, cause: str, *, reached: bool) -> None:
        self.cause = cause
        self.reached = reached
        super().__init__(cause)


class TooLarge(Exception):
    """An answer is larger than ``MOST``."""


class Client:
    """Talks to one server. Made and used in one event loop."""

    def __init__(self, url: str, key: str | None) -> None:
        self._url = url
        self._key = key.encode() if key else None
        self._headers = {"User-Agent": "vbatch", "Accept": "application/json", "Accept-Encoding": "identity"}
        if key:
            self._headers["Authorization"] = f"Bearer {key}"
        self._urls: dict[str, URL] = {}
        self._session = self._new_session()

    async def models(self) -> Answer:
        """Ask for the list of the models. Raises Broken."""
        timeout = aiohttp.ClientTimeout(total=LOOK)
        return await self._ask("GET", "/v1/models", timeout=timeout)

    async def post(self, path: str, body: bytes, content_type: str = "application/json") -> Answer:
        """Send a request and return its answer. Raises Broken and TooLarge."""
        return await self._ask("POST", path, data=body, headers={"Content-Type": content_type})

    async def hang_up(self) -> None:
        """End every connection: what waits for an answer gets Broken. The next request opens a new one."""
        old, self._session = self._session, self._new_session()
        await old.close()

    async def close(self) -> None:
        """End every connection."""
        await self._session.close()

    async def _ask(self, method: str, path: str, **more: Any) -> Answer:
        url = self._urls.get(path)
        if url is None:
            url = self._urls[path] = URL(self._url + path, encoded=True)
        try:
            async with self._session.request(method, url, allow_redirects=False, **more) as response:
                body = await _whole(response)
                return Answer(status=response.status, headers=response.headers, body=self._without_key(body))
        except (aiohttp.ClientConnectorError, aiohttp.ClientConnectorCertificateError) as error:
            raise Broken(_unreachable(error), reached=False) from None
        except aiohttp.ConnectionTimeoutError:
            raise Broken(f"no connection within {CONNECT:.0f} s", reached=False) from None
        except TimeoutError:
            raise Broken(f"no answer within {LOOK:.0f} s", reached=True) from None
        except (aiohttp.ClientError, OSError) as error:
            raise Broken(_broken_off(error), reached=True) from None
        except RuntimeError as error:  # of a session that hang_up has closed
            if not self._session.closed:
                raise Broken("the connection was given up", reached=True) from None
            raise Broken(str(error), reached=False) from None

    def _without_key(self, body: bytes) -> bytes:
        return body.replace(self._key, _HIDDEN) if self._key and self._key in body else body

    def _new_session(self) -> aiohttp.ClientSession:
        verified = ssl.create_default_context() if self._url.startswith("https:") else True
        connector = aiohttp.TCPConnector(
            limit=0, keepalive_timeout=_IDLE, socket_factory=_socket, ssl=verified
        )
        return aiohttp.ClientSession(
            connector=connector,
            headers=self._headers,
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None, connect=CONNECT),
            auto_decompress=False,  # none was asked for, and what is compressed has no bound
        )


async def _whole(response: aiohttp.ClientResponse) -> bytes:
    """Read an answer, as far as it is allowed. Raises TooLarge."""
    length = response.content_length
    if length is not None:
        if length > MOST:
            raise TooLarge
        return await response.read()
    parts, size = [], 0
    async for part in response.content.iter_any():
        parts.append(part)
        size += len(part)
        if size > MOST:
            raise TooLarge
    return b"".join(parts)


def _socket(address: Any) -> socket.socket:
    """Make a socket that finds out, within two minutes, that the other host is gone."""
    family, kind, protocol = address[:3]
    made = socket.socket(family=family, type=kind, proto=protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEP_ALIVE:
        made.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return made


def _unreachable(error: aiohttp.ClientConnectorError | aiohttp.ClientConnectorCertificateError) -> str:
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        inner = error.certificate_error
        words = getattr(inner, "verify_message", None) or str(inner)
        return f"its certificate is not trusted ({one_line(words, limit=100)})"
    cause = error.os_error
    match cause:
        case ssl.SSLError():
            return f"no TLS connection ({one_line(str(cause.reason), limit=100)})"
        case socket.gaierror() | aiohttp.ClientConnectorDNSError():
            return "its host name is unknown"
        case ConnectionRefusedError():
            return "connection refused"
        case _:
            return one_line((cause.strerror or str(cause)).lower(), limit=100)


def _broken_off(error: Exception) -> str:
    match error:
        case aiohttp.ServerDisconnectedError():
            return "the server closed the connection"
        case aiohttp.ClientPayloadError():
            return "the answer ends in the middle"
        case ConnectionResetError():
            return "connection reset"
        case OSError() if error.strerror:
            return one_line(error.strerror.lower(), limit=100)
        case _:
            return f"the answer is not HTTP ({type(error).__name__})"
