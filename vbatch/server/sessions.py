"""Who has logged in to the page: a cookie stands for the key that was given once, and a form token for the cookie.

Sessions are in memory: they end with the server, and so with its keys. The cookie is HttpOnly and SameSite=Strict; it
opens the page and what can be downloaded, and nothing that changes anything but the page's own forms, which carry the
token. Its name has the port, for a browser sends the cookies of a host to every port of it.
"""

from __future__ import annotations

import asyncio
import hmac
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from http.cookies import CookieError, SimpleCookie

from starlette.requests import Request
from starlette.types import Scope

from vbatch.server.errors import ApiError
from vbatch.server.keys import Keys

LIFETIME = timedelta(hours=12)
MOST = 100  # logged in at the same time; the oldest goes
_COOKIE_BYTES = 8192
_AFTER_WRONG = 1.0  # seconds until the next attempt of anybody
_WAITING = 8  # attempts that may wait; further ones are refused


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """One login. ``form_token`` is in every form of its pages; ``ends`` is on the monotonic clock."""

    form_token: str
    ends: float

    def owns(self, token: str | None) -> bool:
        """Return whether a form is of a page of this session."""
        return token is not None and hmac.compare_digest(token.encode(), self.form_token.encode())


class Sessions:
    """The logins of a server. Where no key is demanded, everybody has the same session, without a login."""

    def __init__(
        self, keys: Keys, *, pause: float = _AFTER_WRONG, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.demanded = keys.demanded
        self._keys = keys
        self._pause = pause
        self._clock = clock
        self._turn = asyncio.Lock()
        self._waiting = 0
        self._open: OrderedDict[str, Session] = OrderedDict()
        self._everyone = Session(form_token=secrets.token_urlsafe(32), ends=float("inf"))

    async def log_in(self, key: str) -> str | None:
        """Return the value of the cookie of a new session; None for a wrong key.

        One wrong key a second is compared, however many connections are used. Raises ApiError where too many wait.
        """
        if self._waiting >= _WAITING:
            raise ApiError(429, "Too many attempts to log in: wait a moment.", retry_after=_WAITING)
        self._waiting += 1
        try:
            async with self._turn:
                if self._keys.fits(key):
                    return self._begin()
                await asyncio.sleep(self._pause)
                return None
        finally:
            self._waiting -= 1

    def _begin(self) -> str:
        value = secrets.token_urlsafe(32)
        self._open[value] = Session(
            form_token=secrets.token_urlsafe(32), ends=self._clock() + LIFETIME.total_seconds()
        )
        while len(self._open) > MOST:
            self._open.popitem(last=False)
        return value

    def of(self, scope: Scope) -> Session | None:
        """Return the session of a request; None where its sender has not logged in."""
        if not self.demanded:
            return self._everyone
        found = self._open.get(_cookie(scope) or "")
        return found if found is not None and found.ends > self._clock() else None

    def end(self, scope: Scope) -> None:
        """Forget the session of a request."""
        self._open.pop(_cookie(scope) or "", None)


def sessions_of(request: Request) -> Sessions:
    """Return the sessions of the app that got this request."""
    sessions: Sessions = request.app.state.sessions
    return sessions


def cookie_name(scope: Scope) -> str:
    """Return the name of the cookie."""
    server = scope.get("server")
    return f"vbatch_{server[1] if server else 0}"


def _cookie(scope: Scope) -> str | None:
    sent = b"; ".join(value for name, value in scope["headers"] if name == b"cookie")
    if len(sent) > _COOKIE_BYTES:
        return None
    try:
        found = SimpleCookie(sent.decode("latin-1")).get(cookie_name(scope))
    except CookieError:
        return None
    return None if found is None else found.value
