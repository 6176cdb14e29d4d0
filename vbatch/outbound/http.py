"""POST to a URL that another user chose: no redirect, TLS verified, and only to addresses that were looked at.

The name is resolved once and the connection goes to one of those very addresses, so that a name which resolves
differently a moment later (DNS rebinding) reaches nothing else.
"""

from __future__ import annotations

import base64
import http.client
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from queue import Empty, SimpleQueue
from urllib.parse import SplitResult, unquote, urlsplit, urlunsplit

# Networks that Python takes for public: protocol assignments, site-local, IPv4 in IPv6 of old.
_NOT_PUBLIC = tuple(map(ipaddress.ip_network, ("192.0.0.0/24", "fec0::/10", "::/96")))
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


class Refused(Exception):
    """The URL may not be used, or the other side did not accept what was sent. The text names no secret of the URL."""


def check(url: str) -> SplitResult:
    """Return the parts of a URL. Raises Refused for anything but http and https with a host."""
    if not (url.isascii() and url.isprintable()) or " " in url:
        raise Refused("the URL has characters that must be percent-encoded")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise Refused("the URL cannot be understood") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise Refused("the URL must begin with http:// or https:// and name a host")
    if port == 0:
        raise Refused("the URL names port 0")
    return parts


def shown(url: str) -> str:
    """Return a URL without what may be secret: user, password, query and path."""
    try:
        parts = check(url)
    except Refused:
        return "a URL"
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}/…"


def without_password(url: str) -> tuple[str, dict[str, str]]:
    """Move user and password out of a URL into the header for the service."""
    user, at, rest = urlsplit(url).netloc.rpartition("@")
    if not at:
        return url, {}
    secret = base64.b64encode(unquote(user).encode()).decode()
    return urlunsplit(urlsplit(url)._replace(netloc=rest)), {"Authorization": f"Basic {secret}"}


def reason(error: OSError) -> str:
    """Describe why a server cannot be reached, in words that name no secret."""
    match error:
        case ssl.SSLError():
            return f"its certificate is not trusted ({error.reason})"
        case socket.gaierror():
            return "its host name is unknown"
        case TimeoutError():
            return "no answer in time"
        case _:
            return (error.strerror or str(error)).lower()


def post(url: str, body: bytes, headers: Mapping[str, str], *, seconds: float, private: bool = False) -> int:
    """Send a body and return the status of the answer, which is 2xx.

    ``seconds`` is for all of it: a server that sends a byte now and then gains no time. ``private``: addresses of this
    machine and of its networks are allowed. Raises Refused for a URL or an address that is not allowed and for any
    other status, OSError where the other side cannot be reached in time.
    """
    check(url)
    exchange = _Exchange(url, body, headers, end=time.monotonic() + seconds, private=private)
    # In a thread of its own, for neither the resolver nor a socket has a limit for the whole.
    threading.Thread(target=exchange.run, name="post", daemon=True).start()
    try:
        outcome = exchange.outcome.get(timeout=seconds)
    except Empty:
        exchange.abort()
        raise TimeoutError("no answer in time") from None
    if isinstance(outcome, Exception):
        raise outcome
    if not 200 <= outcome < 300:
        moved = " (redirects are not followed)" if 300 <= outcome < 400 else ""
        raise Refused(f"HTTP {outcome}{moved}")
    return outcome


class _Exchange:
    """One request and the status of its answer, or what it failed with, in ``outcome``."""

    def __init__(
        self, url: str, body: bytes, headers: Mapping[str, str], *, end: float, private: bool
    ) -> None:
        url, secret = without_password(url)
        self._parts = urlsplit(url)
        self._body, self._headers = body, {**headers, **secret, "User-Agent": "vbatch"}
        self._end, self._private = end, private
        self._connection: Pinned | None = None
        self.outcome: SimpleQueue[int | Exception] = SimpleQueue()

    def run(self) -> None:
        try:
            self.outcome.put(self._status())
        except http.client.HTTPException as error:
            self.outcome.put(Refused(f"the answer is not HTTP ({type(error).__name__})"))
        except Exception as error:
            self.outcome.put(error)

    def _status(self) -> int:
        secure = self._parts.scheme == "https"
        host = self._parts.hostname or ""
        port = self._parts.port or (443 if secure else 80)
        allows = None if self._private else "notify_private = true"
        connection = self._connection = Pinned(
            host, port, addresses(host, port, allows=allows), self._end, secure=secure
        )
        try:
            path = (self._parts.path or "/") + (f"?{self._parts.query}" if self._parts.query else "")
            connection.request("POST", path, body=self._body, headers=self._headers)
            return connection.getresponse().status  # what else the answer holds is of no interest
        finally:
            connection.close()

    def abort(self) -> None:
        """End a thread that still waits for the other side."""
        if self._connection is not None:
            self._connection.abort()


def addresses(host: str, port: int, *, allows: str | None) -> list[str]:
    """Resolve a name. Raises Refused where any of its addresses is not public.

    ``allows`` is the setting that would allow a private one; None where it does.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except UnicodeError:  # of the codec for names: a part that is empty or too long
        raise Refused("the URL names no possible host") from None
    resolved = list(dict.fromkeys(str(entry[4][0]) for entry in found))
    for address in resolved:
        if allows is not None and not is_public(address):
            raise Refused(f"{host} is a private address ({address}); {allows} allows it")
    return resolved


def is_public(address: str) -> bool:
    """Return whether an address is one of the internet, also where IPv6 only wraps an IPv4 address."""
    parsed = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed in _NAT64:
            return is_public(str(ipaddress.IPv4Address(int(parsed) & 0xFFFFFFFF)))
        wrapped = parsed.ipv4_mapped or parsed.sixtofour or (parsed.teredo or (None, None))[1]
        if wrapped is not None:
            return is_public(str(wrapped))
    known = any(parsed in network for network in _NOT_PUBLIC)
    return parsed.is_global and not parsed.is_multicast and not known


class Pinned(http.client.HTTPConnection):
    """A connection for a host's name to one of these addresses; ``end`` is when it must be over, monotonic."""

    def __init__(self, host: str, port: int, pinned: list[str], end: float, *, secure: bool) -> None:
        super().__init__(host, port)
        self.default_port = 443 if secure else 80  # the Host header names any other
        self._addresses, self._end, self._secure = pinned, end, secure

    def abort(self) -> None:
        """End what another thread still waits for."""
        if self.sock is not None:
            with suppress(OSError):
                socket.socket.shutdown(self.sock, socket.SHUT_RDWR)

    def connect(self) -> None:
        """Connect to the first address that answers; the certificate is that of the name."""
        for tried, address in enumerate(self._addresses):
            left = len(self._addresses) - tried
            try:
                self.sock = socket.create_connection((address, self.port), self._rest() / left)
                break
            except OSError:
                if left == 1:
                    raise
        self.sock.settimeout(self._rest())
        if self._secure:
            self.sock = ssl.create_default_context().wrap_socket(
                self.sock, server_hostname=self.host, do_handshake_on_connect=False
            )
            self.sock.do_handshake()
            self.sock.settimeout(self._rest())

    def _rest(self) -> float:
        """Return how much time is left. Raises TimeoutError."""
        rest = self._end - time.monotonic()
        if rest <= 0:
            raise TimeoutError("no answer in time")
        return rest
