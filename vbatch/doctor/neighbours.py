"""Checks of services beside us that a person has named: retried before any alarm, so that none is false.

The incident's third alarm was false: Label Studio was reported as down while its health page said UP.
"""

from __future__ import annotations

import base64
import shlex
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
from urllib.parse import unquote, urlsplit, urlunsplit

from vbatch.doctor.catalogue import Meaning
from vbatch.doctor.checks import Check, Group
from vbatch.doctor.facts import Facts
from vbatch.doctor.findings import Finding, Level, info, ok, skip

T = TypeVar("T")

TRIES = 5
PAUSE = 1.0  # seconds between two tries
LIMIT = 3.0  # seconds for one try

MEANINGS = {
    "neighbours.none": Meaning(
        means="No neighbour is configured.",
        remedy='[doctor.neighbours] label-studio = "http://127.0.0.1:8080/health" in config.toml names one.',
    ),
    "neighbours.healthy": Meaning(means="The service answers.", remedy="Leave it alone."),
    "neighbours.down": Meaning(
        means="Nobody answers there, in five tries.",
        remedy="Start the service; vbatch does not depend on it.",
    ),
    "neighbours.unhealthy": Meaning(
        means="The service answers, and says itself that it is not well (5xx).", remedy="Look at its log."
    ),
    "neighbours.probe": Meaning(
        means="The question is wrong, not the service: a URL that is none, a path that it does not have, a redirect, "
        "a certificate that is not trusted.",
        remedy="Mend the URL in config.toml.",
    ),
    "neighbours.address": Meaning(
        means="The service answers at another loopback address (127.0.0.1 against ::1) than the URL leads to.",
        remedy="Use the address that is shown.",
    ),
}

_LOOPBACKS = ("127.0.0.1", "[::1]")


@dataclass(frozen=True, slots=True)
class _Answer:
    """What one try came to: an HTTP status, or why there was none."""

    status: int | None
    seconds: float = 0.0
    reason: str = ""
    ours: bool = False  # the question was wrong


def _health(facts: Facts) -> Iterator[Finding]:
    """Ask all neighbours at once."""
    neighbours = facts.settings.doctor.neighbours
    if not neighbours:
        yield skip("neighbours.none", "no neighbour is configured")
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
        url, headers = _without_password(configured)
    except ValueError:
        return _wrong_question(name, "its URL", "it is no http URL")
    answer = _Answer(None)
    for left in reversed(range(TRIES)):
        answer = _ask(url, headers)
        if answer.ours or (answer.status is not None and answer.status < 500):
            break
        if left:
            time.sleep(PAUSE)
    return _finding(name, url, headers, answer)


def _without_password(url: str) -> tuple[str, dict[str, str]]:
    """Take user and password out of a URL, which is shown, into the header that says them to the service."""
    user, at, rest = urlsplit(url).netloc.rpartition("@")
    if not at:
        return url, {}
    secret = base64.b64encode(unquote(user).encode()).decode()
    return urlunsplit(urlsplit(url)._replace(netloc=rest)), {"Authorization": f"Basic {secret}"}


def _finding(name: str, url: str, headers: dict[str, str], answer: _Answer) -> Finding:
    if answer.status is not None:
        return _answered(name, url, answer.status, answer.seconds)
    if answer.ours:
        return _wrong_question(name, url, answer.reason)
    if (other := _elsewhere(url, headers)) is not None:
        return Finding(
            id="neighbours.address",
            level=Level.INFO,
            what=f"{name} is healthy at {other}, not at {url}",
            why="it listens on one of the two loopback addresses only; nothing is wrong with it",
            commands=(shlex.join(["curl", "-i", other]),),
        )
    return _alarm("neighbours.down", f"{name} does not answer ({answer.reason}), {TRIES} tries", url)


def _answered(name: str, url: str, status: int, seconds: float) -> Finding:
    if status >= 500:
        return _alarm("neighbours.unhealthy", f"{name} says that it is not well (HTTP {status})", url)
    if status >= 300:
        return _wrong_question(name, url, f"it answers, but not there (HTTP {status})")
    took = f"HTTP {status} in {seconds * 1000:.0f} ms"
    return ok("neighbours.healthy", f"{name} is healthy ({took}): leave it alone")


def _alarm(finding: str, what: str, url: str) -> Finding:
    return Finding(
        id=finding,
        level=Level.WARN,
        what=what,
        why="vbatch does not depend on it",
        commands=(shlex.join(["curl", "-i", url]),),
    )


def _wrong_question(name: str, url: str, reason: str) -> Finding:
    return info(
        "neighbours.probe",
        f"{name}: the question is wrong, not the service: {reason}",
        f"{url} in [doctor.neighbours]",
        commands=(shlex.join(["curl", "-i", url]),),
    )


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect is an answer: what lies behind it is another question."""

    def redirect_request(self, *_arguments: object, **_named: object) -> None:
        return None


def _ask(url: str, headers: dict[str, str]) -> _Answer:
    """Ask once. The limit is for the whole answer: that of a socket is for each of its bytes."""
    if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).netloc:
        return _Answer(None, reason="it is no http URL", ours=True)
    try:
        return _aside(partial(_open, url, headers)).get(timeout=LIMIT)
    except Empty:
        return _unanswered(TimeoutError())


def _open(url: str, headers: dict[str, str]) -> _Answer:
    # No proxy: a neighbour is on this machine or in this house.
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
        return _Answer(None, reason=f"what answers does not speak HTTP ({error})", ours=True)
    except OSError as error:
        return _unanswered(error)


def _unanswered(reason: str | BaseException) -> _Answer:
    match reason:
        case ssl.SSLError():
            return _Answer(None, reason=f"its certificate is not trusted ({reason.reason})", ours=True)
        case socket.gaierror():
            return _Answer(None, reason="its host name is not known", ours=True)
        case TimeoutError():
            return _Answer(None, reason="no answer in time")
        case OSError():
            return _Answer(None, reason=(reason.strerror or str(reason)).lower())
        case _:
            return _Answer(None, reason=str(reason))


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
        group=Group.NEIGHBOURS,
        run=_health,
        limit=timedelta(seconds=TRIES * (LIMIT + PAUSE) + 10),
    ),
)
