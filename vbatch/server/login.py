"""``/login`` and ``/logout``: the key is given once, in a form, never in an address."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from urllib.parse import parse_qs

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from vbatch.errors import VbatchError
from vbatch.server import errors
from vbatch.server.errors import ApiError
from vbatch.server.fields import bounded_body
from vbatch.server.render import page
from vbatch.server.sessions import LIFETIME, Session, cookie_name, sessions_of

FORM_BYTES = 16 << 10
_PATIENCE = 20.0  # seconds for a form

Handler = Callable[[Request], Awaitable[Response]]
Shown = Callable[[Request, Session], Awaitable[Response]]


async def form(request: Request) -> dict[str, str]:
    """Return the fields of a form. Raises ApiError."""
    body = await bounded_body(request, most=FORM_BYTES, seconds=_PATIENCE)
    try:
        found = parse_qs(body.decode(), max_num_fields=16, errors="strict")
    except ValueError:
        raise ApiError(400, "The form cannot be read.") from None
    return {name: values[-1] for name, values in found.items()}


def logged_in(show: Shown) -> Handler:
    """Return the handler that shows a page to those who have logged in, and the login to others.

    An error is a page too.
    """

    async def handler(request: Request) -> Response:
        session = sessions_of(request).of(request.scope)
        if session is None:
            return RedirectResponse("/login", 303)
        try:
            return await show(request, session)
        except ApiError as error:
            return _error(error)
        except VbatchError as error:
            return _error(errors.of(error))

    return handler


def form_of_page(act: Shown) -> Handler:
    """Return the handler of a form that changes something: only from a page of the same session."""

    async def show(request: Request, session: Session) -> Response:
        if not session.owns((await form(request)).get("token")):
            raise ApiError(403, "This form is not of a page of this login: load the page again.")
        return await act(request, session)

    return logged_in(show)


def _error(error: ApiError) -> Response:
    answer = page("error.html", error.status, message=error.message)
    if error.retry_after is not None:
        answer.headers["retry-after"] = str(error.retry_after)
    if error.close:
        answer.headers["connection"] = "close"
    return answer


async def ask(request: Request) -> Response:
    """Show the form for the key; whoever has logged in needs none."""
    if sessions_of(request).of(request.scope) is not None:
        return RedirectResponse("/", 303)
    return page("login.html", wrong=False)


async def log_in(request: Request) -> Response:
    """Compare the key, and begin a session."""
    sessions = sessions_of(request)
    if not sessions.demanded:
        return RedirectResponse("/", 303)
    try:
        cookie = await sessions.log_in((await form(request)).get("key", "").strip())
    except ApiError as error:
        return _error(error)
    if cookie is None:
        return page("login.html", 401, wrong=True)
    sessions.end(request.scope)
    answer = RedirectResponse("/", 303)
    answer.set_cookie(
        cookie_name(request.scope),
        cookie,
        max_age=int(LIFETIME.total_seconds()),
        httponly=True,
        samesite="strict",
        secure=request.url.scheme == "https",
    )
    return answer


async def log_out(request: Request, _session: Session) -> Response:
    """End the session."""
    sessions_of(request).end(request.scope)
    answer = RedirectResponse("/login", 303)
    answer.delete_cookie(cookie_name(request.scope), httponly=True, samesite="strict")
    return answer


routes = [
    Route("/login", ask, methods=["GET"]),
    Route("/login", log_in, methods=["POST"]),
    Route("/logout", form_of_page(log_out), methods=["POST"]),
]
open_paths = ("/login", "/logout")
