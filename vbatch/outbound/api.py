"""Talk JSON with a service that the user named: no redirect, TLS verified, one time limit for each exchange."""

from __future__ import annotations

import http.client
import time
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode, urlsplit

import msgspec

from vbatch.outbound.http import Pinned, addresses, check, reason, without_password

BLOCK = 1 << 20
LARGEST = 512 << 20  # bytes of an answer


class Unreachable(Exception):
    """No answer, or not a whole one: whether the service has done what was asked is unknown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What a service answered. ``document`` is None where the body is not JSON."""

    status: int
    document: Any
    retry_after: float | None = None

    @property
    def succeeded(self) -> bool:
        """Whether the status is 2xx."""
        return 200 <= self.status < 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Api:
    """A service at a base URL. ``headers`` may hold a secret: they are never shown."""

    url: str
    seconds: float = 60
    headers: dict[str, str] = field(default_factory=dict, repr=False)

    def get(self, path: str, **query: object) -> Reply:
        """Ask for a document."""
        return self.send("GET", f"{path}?{urlencode(query)}" if query else path)

    def post(self, path: str, document: object) -> Reply:
        """Send a document, or one that is encoded already."""
        body = document if isinstance(document, bytes) else msgspec.json.encode(document)
        return self.send("POST", path, body)

    def send(self, method: str, path: str, body: bytes | None = None) -> Reply:
        """Send a request and return the answer, whatever its status.

        Raises Refused for a URL that cannot be used, Unreachable.
        """
        end = time.monotonic() + self.seconds
        url, secret = without_password(self.url.rstrip("/"))
        parts = check(url)
        secure, host = parts.scheme == "https", parts.hostname or ""
        port = parts.port or (443 if secure else 80)
        headers = {"Accept": "application/json", "User-Agent": "vbatch", **secret, **self.headers}
        if body is not None:
            headers["Content-Type"] = "application/json"
        try:
            pinned = addresses(host, port, allows=None)
            connection = Pinned(host, port, pinned, end, secure=secure)
            try:
                connection.request(method, urlsplit(url).path + path, body=body, headers=headers)
                return _reply(connection.getresponse(), end)
            finally:
                connection.close()
        except http.client.HTTPException as error:
            cause = f"it ended its answer too early, or it is not HTTP ({type(error).__name__})"
            raise Unreachable(f"{host}: {cause}") from None
        except OSError as error:
            raise Unreachable(f"{host}: {reason(error)}") from None


def _reply(answer: http.client.HTTPResponse, end: float) -> Reply:
    content = bytearray()
    while block := answer.read(BLOCK):
        content += block
        if len(content) > LARGEST or time.monotonic() > end:
            raise TimeoutError
    if answer.length:
        raise http.client.IncompleteRead(b"")
    try:
        document = msgspec.json.decode(content) if content else None
    except msgspec.DecodeError:
        document = None
    after = answer.getheader("Retry-After") or ""
    return Reply(
        status=answer.status, document=document, retry_after=float(after) if after.isdecimal() else None
    )
