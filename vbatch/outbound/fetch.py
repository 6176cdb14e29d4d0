"""GET what a URL of a request names, whole and in memory: from public addresses, over TLS, no larger than allowed.

As for a webhook (``vbatch.outbound.http``), the name is resolved once and its addresses are looked at. A redirect is
followed on the same host alone. Nothing here blocks the event loop: each download has a thread of its own.
"""

from __future__ import annotations

import asyncio
import base64
import http.client
import re
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from http import HTTPStatus
from urllib.parse import SplitResult, unquote_to_bytes, urljoin, urlsplit

from vbatch.outbound.http import Pinned, Refused, addresses, check, reason, without_password

REDIRECTS = 3
BLOCK = 256 << 10
LONGEST_PAUSE = 60.0  # seconds before another try, whatever the server asks for
_PASSING = (408, 425, 429)  # statuses that a later try may not get, besides 5xx
_BLANK = re.compile(rb"\s+")


class Trouble(StrEnum):
    """Why nothing was fetched."""

    REFUSED = "refused"  # the URL or its address may not be used
    INVALID = "invalid"  # a data URL that holds no data
    MISSING = "missing"  # the server answers, and does not give it
    TOO_LARGE = "too_large"
    UNREACHABLE = "unreachable"  # for now: no answer, or the server reports trouble of its own


class NotFetched(Exception):
    """Nothing was fetched; the text names no secret of the URL."""

    def __init__(self, trouble: Trouble, message: str, *, retry_after: float | None = None) -> None:
        self.trouble = trouble
        self.retry_after = retry_after
        super().__init__(message)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What may be fetched. ``allows`` is the setting that would allow plain http and private addresses, None where it
    does. ``size_name`` is the setting of ``size``, in bytes; ``seconds`` are for all of one download.
    """

    size: int
    size_name: str
    seconds: float
    allows: str | None


def check_form(url: str) -> None:
    """Raise Refused for what nothing can be fetched from, whatever is allowed: neither an http(s) nor a data URL."""
    if url.startswith("data:"):
        if not decoded(url):
            raise Refused("the data URL holds no bytes")
    elif url.lower().startswith(("https://", "http://")):
        check(url)
    else:
        raise Refused("it must begin with https:// or data:")


def decoded(url: str) -> bytes:
    """Return what a data URL holds. Raises Refused where that is not base64."""
    header, comma, data = url.partition(",")
    if not comma or not header.endswith(";base64"):
        raise Refused("a data URL must be written data:TYPE;base64,DATA")
    try:
        text = _BLANK.sub(b"", unquote_to_bytes(data) if "%" in data else data.encode("ascii"))
        return base64.b64decode(text, validate=True)
    except ValueError:  # UnicodeEncodeError and binascii.Error are two
        raise Refused("the data URL is not valid base64") from None


async def fetch(url: str, limits: Limits, *, waiting: Callable[[], None] = lambda: None) -> bytes:
    """Return what a URL names. ``waiting`` is called about once a second while it lasts. Raises NotFetched."""
    if url.startswith("data:"):
        return _held(url, limits)
    try:
        check(url)
    except Refused as error:
        raise NotFetched(Trouble.REFUSED, str(error)) from None
    loop = asyncio.get_running_loop()
    done: asyncio.Future[bytes] = loop.create_future()
    download = _Download(url, limits)

    def run() -> None:
        outcome = download.outcome()
        with suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(_settle, done, outcome)

    threading.Thread(target=run, name="fetch", daemon=True).start()
    try:
        while not (await asyncio.wait((done,), timeout=1))[0]:
            waiting()
            if time.monotonic() > download.end:
                raise download.late()
        return done.result()
    finally:
        done.cancel()
        download.abort()


def _settle(done: asyncio.Future[bytes], outcome: bytes | Exception) -> None:
    if done.done():
        return
    if isinstance(outcome, Exception):
        done.set_exception(outcome)
    else:
        done.set_result(outcome)


def _held(url: str, limits: Limits) -> bytes:
    try:
        data = decoded(url)
    except Refused as error:
        raise NotFetched(Trouble.INVALID, str(error)) from None
    if not data:
        raise NotFetched(Trouble.INVALID, "the data URL holds no bytes")
    if len(data) > limits.size:
        raise _too_large(limits)
    return data


def _too_large(limits: Limits) -> NotFetched:
    size = f"{limits.size / (1 << 20):g} MiB"
    return NotFetched(Trouble.TOO_LARGE, f"it is larger than {size} ({limits.size_name})")


class _Download:
    """One download in a thread of its own, with the redirects on its host."""

    def __init__(self, url: str, limits: Limits) -> None:
        self._url, self._limits = url, limits
        self.host = urlsplit(url).hostname or ""
        self.end = time.monotonic() + limits.seconds
        self._connection: Pinned | None = None
        self._aborted = False

    def outcome(self) -> bytes | Exception:
        """Return what was fetched, or why nothing was."""
        try:
            return self._follow()
        except Exception as error:
            return self._explained(error)

    def _explained(self, error: Exception) -> Exception:
        match error:
            case Refused():
                return NotFetched(Trouble.REFUSED, str(error))
            case http.client.HTTPException():
                cause = f"ended its answer too early, or it is not HTTP ({type(error).__name__})"
                return NotFetched(Trouble.UNREACHABLE, f"{self.host} {cause}")
            case TimeoutError():
                return self.late()
            case OSError():
                return NotFetched(Trouble.UNREACHABLE, f"{self.host}: {reason(error)}")
            case _:  # NotFetched, or a defect: the caller raises it
                return error

    def late(self) -> NotFetched:
        """Say that the time is over."""
        seconds = f"{self._limits.seconds:g} s"
        return NotFetched(Trouble.UNREACHABLE, f"{self.host} did not send it within {seconds}")

    def abort(self) -> None:
        """End the thread where it still waits for the other side."""
        self._aborted = True
        if self._connection is not None:
            self._connection.abort()

    def _follow(self) -> bytes:
        url = self._url
        for _ in range(REDIRECTS + 1):
            found = self._get(url)
            if isinstance(found, bytes):
                return found
            url = _next(url, found)
        raise NotFetched(Trouble.MISSING, f"{self.host} redirects more than {REDIRECTS} times")

    def _get(self, url: str) -> bytes | str:
        """Return the content, or where a redirect leads to."""
        url, secret = without_password(url)
        parts = check(url)
        secure, host = parts.scheme == "https", parts.hostname or ""
        if not secure and self._limits.allows is not None:
            raise Refused(f"plain http is not used; {self._limits.allows} allows it")
        port = _port(parts)
        pinned = addresses(host, port, allows=self._limits.allows)
        connection = self._connection = Pinned(host, port, pinned, self.end, secure=secure)
        try:
            if self._aborted:
                raise TimeoutError
            path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            connection.request("GET", path, headers={**secret, "User-Agent": "vbatch", "Accept": "*/*"})
            answer = connection.getresponse()
            location = answer.getheader("Location")
            if answer.status in (301, 302, 303, 307, 308) and location is not None:
                return location
            if answer.status != HTTPStatus.OK:
                raise self._failure(answer)
            return self._content(answer)
        finally:
            connection.close()

    def _content(self, answer: http.client.HTTPResponse) -> bytes:
        if answer.length is not None and answer.length > self._limits.size:
            raise _too_large(self._limits)
        content = bytearray()
        while block := answer.read(BLOCK):
            content += block
            if len(content) > self._limits.size:
                raise _too_large(self._limits)
            if self._aborted or time.monotonic() > self.end:
                raise TimeoutError
        if answer.length:  # http.client takes the end of the connection for the end of the content
            raise NotFetched(Trouble.UNREACHABLE, f"{self.host} ended the connection before all was sent")
        if not content:
            raise NotFetched(Trouble.MISSING, f"{self.host} sent no bytes")
        return bytes(content)

    def _failure(self, answer: http.client.HTTPResponse) -> NotFetched:
        status = answer.status
        passing = status >= 500 or status in _PASSING
        trouble = Trouble.UNREACHABLE if passing else Trouble.MISSING
        after = answer.getheader("Retry-After") or ""
        return NotFetched(
            trouble,
            f"{self.host} answered with HTTP {status}",
            retry_after=min(float(after), LONGEST_PAUSE) if passing and after.isdecimal() else None,
        )


def _next(url: str, location: str) -> str:
    """Return where a redirect leads to. Raises Refused for another host, and for less security."""
    following = urljoin(url, location)
    here, there = urlsplit(url), check(following)
    if there.hostname != here.hostname:
        raise Refused(
            f"{here.hostname} redirects to another host, {there.hostname}: name the URL that is there"
        )
    upgraded = (here.scheme, there.scheme) == ("http", "https")
    if not upgraded and (there.scheme, _port(there)) != (here.scheme, _port(here)):
        raise Refused(f"{here.hostname} redirects to another service on it: name the URL that is there")
    return following


def _port(parts: SplitResult) -> int:
    return parts.port or (443 if parts.scheme == "https" else 80)
