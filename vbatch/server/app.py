"""The app: every route, the errors, and the guard around it all.

A module of routes has ``routes``, and ``open_paths`` where some of them need no key. It is added here.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial

from starlette.applications import Starlette

from vbatch.server import batches, chat, files, health, login, metrics, models, page, static, uploads
from vbatch.server.context import Context
from vbatch.server.errors import HANDLERS
from vbatch.server.guard import Guard
from vbatch.server.keys import Keys
from vbatch.server.sessions import Sessions
from vbatch.server.starting import UntilReady

_MODULES = (files, uploads, batches, models, chat, health, metrics, static, login, page)


def make_app(
    context: Context,
    *,
    keys: Keys,
    hosts: Collection[str],
    open_paths: Collection[str] = (),
    ready: Callable[[], bool] = lambda: True,
) -> Guard:
    """Return the ASGI app. ``hosts`` are its names besides loopback's; ``open_paths`` need no key either.

    Until it is ``ready``, requests are answered with 503.
    """
    app = Starlette(
        routes=[route for module in _MODULES for route in module.routes],
        exception_handlers=HANDLERS,
    )
    app.router.redirect_slashes = False  # a redirect of a POST loses its body
    app.state.context = context
    sessions = app.state.sessions = Sessions(keys)
    opened = {path for module in _MODULES for path in getattr(module, "open_paths", ())}
    knows = partial(page.lets_in, sessions)
    return Guard(
        UntilReady(app, ready), keys=keys, hosts=hosts, open_paths=opened.union(open_paths), knows=knows
    )
