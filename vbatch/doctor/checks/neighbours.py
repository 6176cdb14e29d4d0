"""Checks of the services in the configuration's ``[doctor.neighbours]``: retried before any alarm.

A false alarm is why: a service was once reported as down while its health page said UP.
"""

from __future__ import annotations

import socket
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from http.client import HTTPException
from queue import Empty, SimpleQueue
from typing import TypeVar
from urllib.parse import urlsplit, urlunsplit

from vbatch.doctor.facts import Facts
from vbatch.doctor.findings import Check, Entry, Finding
from vbatch.outbound.http import reason, without_password

T = TypeVar("T")

TRIES = 5
PAUSE = 1.0  # seconds between two tries
LIMIT = 3.0  # seconds for one try

_CURL = ("curl -i {url}",)

NONE = Entry(
    id="neighbours.none",
    means="no neighbour is configured",
    advice='[doctor.neighbours] label-studio = "http://127.0.0.1:8080/health" in config.toml adds one',
)
HEALTHY = Entry(id="neighbours.healthy", means="the service answers", advice="leave it alone")
DOWN = Entry(
    id="neighbours.down",
    means="no server answers there; vbatch does not depend on it",
    commands=_CURL,
    advice="start the service",
)
UNHEALTHY = Entry(
    id="neighbours.unhealthy",
    means="the service answers and reports that it is not healthy (5xx); vbatch does not depend on it",
    commands=_CURL,
    advice="look at its log",
)
PROBE = Entry(
    id="neighbours.probe",
    means="the health URL in [doctor.neighbours] is wrong, not the service: no valid URL, an unknown path or host, a "
    "redirect, an untrusted certificate",
    commands=_CURL,
    advice="fix the URL in config.toml",
)
ADDRESS = Entry(
    id="neighbours.address",
    means="the service listens on only one of the two loopback addresses (127.0.0.1, ::1), and the URL leads to the "
    "other; nothing is wrong with the service",
    commands=_CURL,
    advice="use the address that is shown",
)

_LOOPBACKS = ("127.0.0.1", "[::1]")


@dataclass(frozen=True, slots=True)
class _Answer:
    """What one try came to: an HTTP status, or why there was none."""

    status: int | None
    seconds: float = 0.0
    reason: str = ""
    wrong_url: bool = False  # the URL is wrong, not the service


def _health(facts: Facts) -> Iterator[Finding]:
    """Ask all neighbours at once."""
    neighbours = facts.settings.doctor.neighbours
    if not neighbours:
        yield NONE.skip("no neighbour is configured")
        return
    asked = [_aside(partial(_ask_patiently, name, url)) for name, url in neighbours.items()]
    for answer in asked:
        yield answer.get()


def _aside(question: Callable[[], T]) -> SimpleQueue[T]:
    """Ask in a thread of its own, which is left behind where it hangs; its answer comes through the queue."""
    answers = SimpleQueue[T]()
    threading.Thread(target=lambda: answers.put(question()), name="doctor-neighbour", daemon=True).start()
    return answers


def _ask_patiently(name: str, configured: str) -> Finding:
    """Ask until there is an answer, five times at most."""
    try:
        url, headers = without_password(configured)
    except ValueError:
        return PROBE.info(f"{name}: the health URL is wrong: it is not an http URL", commands=())
    answer = _Answer(None)
    for left in reversed(range(TRIES)):
        answer = _ask(url, headers)
        if answer.wrong_url or (answer.status is not None and answer.status < 500):
            break
        if left:
            time.sleep(PAUSE)
    return _finding(name, url, headers, answer)


def _finding(name: str, url: str, headers: dict[str, str], answer: _Answer) -> Finding:
    values = {"url": url}
    if answer.wrong_url:
        return PROBE.info(f"{name}: the health URL {url} is wrong: {answer.reason}", values=values)
    if answer.status is None:
        if (other := _elsewhere(url, headers)) is not None:
            return ADDRESS.info(f"{name} is healthy at {other}, not at {url}", values={"url": other})
        return DOWN.warn(f"{name} does not answer ({answer.reason}), {TRIES} tries", values=values)
    if answer.status >= 500:
        return UNHEALTHY.warn(f"{name} reports that it is not healthy (HTTP {answer.status})", values=values)
    if answer.status >= 300:
        what = f"{name}: the health URL {url} is wrong (HTTP {answer.status}); the service answers"
        return PROBE.info(what, values=values)
    took = f"HTTP {answer.status} in {answer.seconds * 1000:.0f} ms"
    return HEALTHY.ok(f"{name} is healthy ({took}): leave it alone")


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Takes a redirect for an answer: what is behind it is another URL."""

    def redirect_request(self, *_arguments: object, **_named: object) -> None:
        return None


def _ask(url: str, headers: dict[str, str]) -> _Answer:
    """Ask once. The limit is for the whole answer: that of a socket is for each of its bytes."""
    if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).netloc:
        return _Answer(None, reason="it is not an http URL", wrong_url=True)
    try:
        return _aside(partial(_open, url, headers)).get(timeout=LIMIT)
    except Empty:
        return _unanswered(TimeoutError())


def _open(url: str, headers: dict[str, str]) -> _Answer:
    # No proxy: a neighbour is on this machine or on its network.
    opener = urllib.request.build_opener(_NoRedirects, urllib.request.ProxyHandler({}))
    started = time.monotonic()
    try:
        with opener.open(urllib.request.Request(url, headers=headers), timeout=LIMIT) as response:
            return _Answer(response.status, time.monotonic() - started)
    except urllib.error.HTTPError as error:
        error.close()
        return _Answer(error.code, time.monotonic() - started)
    except urllib.error.URLError as error:
        return _unanswered(error.reason)
    except (ValueError, HTTPException) as error:
        return _Answer(None, reason=f"what answers does not speak HTTP ({error})", wrong_url=True)
    except OSError as error:
        return _unanswered(error)


def _unanswered(error: str | BaseException) -> _Answer:
    if isinstance(error, OSError):
        wrong = isinstance(error, ssl.SSLError | socket.gaierror)
        return _Answer(None, reason=reason(error), wrong_url=wrong)
    return _Answer(None, reason=str(error))


def _elsewhere(url: str, headers: dict[str, str]) -> str | None:
    """Return the same URL at the other loopback address, where that one answers well."""
    parts = urlsplit(url)
    if parts.hostname not in ("localhost", "127.0.0.1", "::1"):
        return None
    port = f":{parts.port}" if parts.port else ""
    others = [address for address in _LOOPBACKS if address.strip("[]") != parts.hostname]
    for address in others:
        other = urlunsplit(parts._replace(netloc=address + port))
        answer = _ask(other, headers)
        if answer.status is not None and answer.status < 300:
            return other
    return None


CHECKS = (
    Check(
        name="neighbours.health",
        finds=(NONE, HEALTHY, DOWN, UNHEALTHY, PROBE, ADDRESS),
        run=_health,
        limit=timedelta(seconds=TRIES * (LIMIT + PAUSE) + 10),
    ),
)
