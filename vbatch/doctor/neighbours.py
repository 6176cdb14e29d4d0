"""Checks of services beside us that a person has named: retried before any alarm, so that none is false.

The incident's third alarm was false: Label Studio was reported as down while its health page said UP.
"""

from __future__ import annotations

import socket
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from http.client import HTTPException
from urllib.parse import urlsplit, urlunsplit

from vbatch.doctor.catalogue import Meaning
from vbatch.doctor.checks import Check, Group
from vbatch.doctor.facts import Facts
from vbatch.doctor.findings import Finding, Level, info, ok, skip

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
    with ThreadPoolExecutor(len(neighbours)) as threads:
        yield from threads.map(_ask_patiently, neighbours.keys(), neighbours.values())


def _ask_patiently(name: str, url: str) -> Finding:
    """Ask until there is an answer, five times at most."""
    answer = _Answer(None)
    for left in reversed(range(TRIES)):
        answer = _ask(url)
        if answer.ours or (answer.status is not None and answer.status < 500):
            break
        if left:
            time.sleep(PAUSE)
    return _finding(name, url, answer)


def _finding(name: str, url: str, answer: _Answer) -> Finding:
    if answer.status is not None:
        return _answered(name, url, answer.status, answer.seconds)
    if answer.ours:
        return _wrong_question(name, url, answer.reason)
    if (other := _elsewhere(url)) is not None:
        return Finding(
            id="neighbours.address",
            level=Level.INFO,
            what=f"{name} is healthy at {other}, not at {url}",
            why="it listens on one of the two loopback addresses only; nothing is wrong with it",
            commands=(f'{name} = "{other}"   # in [doctor.neighbours] of config.toml',),
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
        commands=(f"curl -i {url}",),
    )


def _wrong_question(name: str, url: str, reason: str) -> Finding:
    return info(
        "neighbours.probe",
        f"{name}: the question is wrong, not the service: {reason}",
        f"{url} in [doctor.neighbours]",
        commands=(f"curl -i {url}",),
    )


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect is an answer: what lies behind it is another question."""

    def redirect_request(self, *_arguments: object, **_named: object) -> None:
        return None


# No proxy: a neighbour is on this machine or in this house.
_opener = urllib.request.build_opener(_NoRedirects, urllib.request.ProxyHandler({}))


def _ask(url: str) -> _Answer:
    started = time.monotonic()
    if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).netloc:
        return _Answer(None, reason="it is no http URL", ours=True)
    try:
        with _opener.open(url, timeout=LIMIT) as response:
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


def _elsewhere(url: str) -> str | None:
    """Return the same URL at the other loopback address, where that one answers well."""
    parts = urlsplit(url)
    if parts.hostname not in ("localhost", "127.0.0.1", "::1"):
        return None
    port = f":{parts.port}" if parts.port else ""
    others = [address for address in _LOOPBACKS if address.strip("[]") != parts.hostname]
    for address in others:
        other = urlunsplit(parts._replace(netloc=address + port))
        answer = _ask(other)
        if answer.status is not None and answer.status < 300:
            return other
    return None


_LIMIT = timedelta(seconds=TRIES * (LIMIT + PAUSE) + 10)

CHECKS = (
    Check(
        name="neighbours.health",
        group=Group.NEIGHBOURS,
        run=_health,
        limit=timedelta(seconds=TRIES * (LIMIT + PAUSE) + 10),
    ),
)
