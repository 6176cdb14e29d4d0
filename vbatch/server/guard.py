"""Who may speak to the server at all: Host, Origin and key are checked around the app, before a byte of a body is read.

A refused upload of 10 GB costs nothing. A web page cannot use a browser of this machine: neither by a name of its own
that leads to 127.0.0.1 (Host), nor by a form (Origin, Sec-Fetch-Site); there are no CORS headers at all.
"""

from __future__ import annotations

import ipaddress
import re
import secrets
from collections.abc import Callable, Collection, Iterable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vbatch.server import errors
from vbatch.server.errors import ApiError
from vbatch.server.keys import Keys

_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
_SAME = frozenset({b"same-origin", b"none"})
_HOST = re.compile(r"(?P<name>\[[0-9A-Fa-f:.%]+\]|[A-Za-z0-9._-]+)(:(?P<port>\d{1,5}))?")


class Guard:
    """A pure ASGI layer.

    ``open_paths`` need no key. ``knows`` says whether a request is of a person who has logged in otherwise, as by a
    cookie; it is asked where no key was sent.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        keys: Keys,
        hosts: Collection[str],
        open_paths: Collection[str],
        knows: Callable[[Scope], bool] = lambda _scope: False,
    ) -> None:
        self._app = app
        self._keys = keys
        self._hosts = frozenset(hosts) | _LOOPBACK
        self._open_paths = frozenset(open_paths)
        self._knows = knows

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or answer it."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        request_id = f"req_{secrets.token_hex(16)}"
        scope.setdefault("state", {})["request_id"] = request_id

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [
                    *message["headers"],
                    (b"x-request-id", request_id.encode()),
                    (b"x-content-type-options", b"nosniff"),
                ]
            await send(message)

        if scope["type"] != "http":  # nothing here speaks WebSocket
            await send({"type": "websocket.close", "code": 1000, "reason": ""})
        elif (refusal := self._refusal(scope)) is not None:
            await errors.response(refusal)(scope, receive, with_headers)
        else:
            await self._app(scope, receive, with_headers)

    def _refusal(self, scope: Scope) -> ApiError | None:
        headers: Iterable[tuple[bytes, bytes]] = scope["headers"]
        hosts = [value for name, value in headers if name == b"host"]
        host = _HOST.fullmatch(hosts[0].decode("latin-1")) if len(hosts) == 1 else None
        if host is None or not self._is_own(host["name"].strip("[]").lower(), scope):
            return ApiError(421, "This server does not answer to that Host.", code="wrong_host", close=True)
        if not _is_of_this_site(scope, hosts[0]):
            return ApiError(403, "Requests of other web sites are refused.", code="cross_site", close=True)
        return self._key_refusal(scope)

    def _key_refusal(self, scope: Scope) -> ApiError | None:
        if not self._keys.demanded or scope["path"] in self._open_paths:
            return None
        given = _given_key(scope["headers"])
        if given is None and self._knows(scope):
            return None
        if given is None:
            return ApiError(
                401,
                "You didn't provide an API key. `vbatch serve --print-key` prints it; send it as "
                "`Authorization: Bearer KEY`.",
                close=True,
            )
        if not self._keys.fits(given):
            return ApiError(
                401,
                "Incorrect API key provided. `vbatch serve --print-key` prints the right one.",
                code="invalid_api_key",
                close=True,
            )
        return None

    def _is_own(self, name: str, scope: Scope) -> bool:
        """Whether a Host is the server's: a name of its own, or the very address that the connection came to."""
        return name in self._hosts or (scope.get("server") is not None and name == scope["server"][0])


def is_loopback(host: str) -> bool:
    """Return whether an address to listen on can be reached from this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _is_of_this_site(scope: Scope, host: bytes) -> bool:
    for name, value in scope["headers"]:
        if name == b"origin":
            scheme, _, place = value.partition(b"://")
            if scheme not in (b"http", b"https") or place.lower() != host.lower():
                return False
        elif name == b"sec-fetch-site" and value not in _SAME:
            return False
    return True


def _given_key(headers: Iterable[tuple[bytes, bytes]]) -> str | None:
    """Return the key of ``Authorization: Bearer``, or of ``x-api-key``, which Anthropic's clients send."""
    found = {
        name: value.decode(errors="surrogateescape")
        for name, value in headers
        if name in (b"authorization", b"x-api-key")
    }
    if (bearer := found.get(b"authorization")) is not None:
        scheme, _, key = bearer.partition(" ")
        return key.strip() if scheme.lower() == "bearer" else ""
    return found.get(b"x-api-key")
