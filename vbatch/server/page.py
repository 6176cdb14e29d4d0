"""The page for people: batches, one batch, its requests. Looking only, but for cancel, pause and resume.

Every address asks for the login by itself; a form carries the token of its login.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlencode

from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route
from starlette.types import Scope

from vbatch import batches, pausing
from vbatch.batches import Blocks, browsing
from vbatch.batches.browsing import Start, Which
from vbatch.pausing import Reason
from vbatch.server import fields, render, samples, views
from vbatch.server.chart import chart
from vbatch.server.context import Context, context_of
from vbatch.server.login import form_of_page, logged_in
from vbatch.server.sessions import Session, Sessions, sessions_of

_BATCHES = 50  # on a page
_REQUESTS = 10  # on a page
_LINE = 10**12  # no file has as many
_REFRESH = 5.0  # seconds until a page asks again, at least
_SHARE = 20  # of its time at most the server spends on one open page
_KINDS = 50  # of failures


async def overview(request: Request, session: Session) -> Response:
    """Show the batches, who works, and how fast."""
    after = request.query_params.get("after") or None
    if after is not None and not fields.is_batch_id(after):
        raise fields.no_batch(after)
    return await _shown(request, session, "overview.html", _overview, after)


def _overview(context: Context, after: str | None) -> dict[str, Any]:
    found = batches.page(context.store, limit=_BATCHES, after=after)
    blocked = batches.blocks(context.store)
    rows = [views.progress(batch, blocked.get(batch.pk, Blocks())) for batch in found.batches]
    more = f"/?{urlencode({'after': found.batches[-1].id})}" if found.has_more else None
    queue = batches.queue_progress(context.store)
    return {
        "rows": rows,
        "blocked": [(row, blocked[row.batch.pk].models) for row in rows if row.batch.pk in blocked],
        "unfinished": queue.unfinished_batches,
        "workers": [views.machine(worker) for worker in batches.live_workers(context.store)],
        "chart": chart(context.samples.pace(samples.ALL)),
        "more": more,
        "first": after is None,
    }


async def one(request: Request, session: Session) -> Response:
    """Show one batch: how far it is, what failed and why, what is blocked, its files."""
    return await _shown(request, session, "batch.html", _one, fields.batch_id(request))


def _one(context: Context, batch_id: str) -> dict[str, Any]:
    status = batches.status(context.store, batch_id)
    batch, at_work = status.batch, status.at_work
    blocks = at_work.blocked if at_work is not None else Blocks()
    return {
        "row": views.progress(batch, blocks),
        "figures": views.figures(status),
        "facts": views.facts(batch),
        "failures": status.failures[:_KINDS],
        "other_failures": max(0, len(status.failures) - _KINDS),
        "blocks": blocks.models,
        "at_work": at_work,
        "downloads": views.downloads(batch),
        "can_cancel": not batch.status.final and batch.status not in ("cancelling", "finalizing"),
        "chart": chart(context.samples.pace(batch.id)),
    }


async def requests(request: Request, session: Session) -> Response:
    """Show some requests beside their answers, or one alone with all of its text."""
    query = request.query_params
    try:
        which = Which(query.get("show", Which.ALL))
    except ValueError:
        raise fields.invalid("show", ", ".join(Which)) from None
    alone = query.get("alone") == "1"
    batch_id, start = fields.batch_id(request), _start(query)
    return await _shown(request, session, "requests.html", _requests, batch_id, which, start, alone)


def _start(query: QueryParams) -> Start:
    name = "before" if "before" in query else "after"
    line = fields.number(query, name, least=0, most=_LINE, default=0)
    return Start(line=line, backwards=name == "before")


def _requests(context: Context, batch_id: str, which: Which, start: Start, alone: bool) -> dict[str, Any]:
    batch = batches.find(context.store, batch_id)
    found = browsing.page(context.store, batch, which=which, start=start, limit=1 if alone else _REQUESTS)
    most = views.ALONE if alone else views.IN_LIST
    return {
        "row": views.progress(batch),
        "pairs": [views.pair(leaf, most=most) for leaf in found.leaves],  # shortened one after another
        "turning": views.turning(batch, found, which, alone=alone),
        "which": which,
        "alone": alone,
    }


async def cancel(request: Request, _session: Session) -> Response:
    """Cancel a batch."""
    context, batch_id = context_of(request), fields.batch_id(request)
    await context.in_store(batches.request_cancel, context.store, batch_id)
    context.poke()
    return RedirectResponse(views.address(batch_id), 303)


async def pause(request: Request, _session: Session) -> Response:
    """Pause the workers of the server's account on this host; running requests finish."""
    context = context_of(request)
    await context.in_files(pausing.pause, context.settings, everyone=False, now=False)
    return RedirectResponse("/", 303)


async def resume(request: Request, _session: Session) -> Response:
    """End that pause."""
    context = context_of(request)
    await context.in_files(pausing.resume, context.settings, everyone=False)
    return RedirectResponse("/", 303)


async def _shown(
    request: Request,
    session: Session,
    template: str,
    look: Callable[..., dict[str, Any]],
    *arguments: Any,
) -> Response:
    """Look into the store, and show what is there. A page that is dear to make asks less often to be made again."""
    context = context_of(request)

    def work() -> Response:
        began = time.monotonic()
        values = look(context, *arguments)
        found = pausing.shown(context.settings)
        return render.page(
            template,
            pause=found,
            can_resume=found is not None and found.reason is Reason.ACCOUNT,
            token=session.form_token,
            may_log_out=sessions_of(request).demanded,
            refresh=round(max(_REFRESH, (time.monotonic() - began) * _SHARE)),
            **values,
        )

    return await context.in_store(work)


def lets_in(sessions: Sessions, scope: Scope) -> bool:
    """Return whether a request without a key gets through: to pages, which ask for the login, and to downloads."""
    path: str = scope["path"]
    if path in _PAGES or path.startswith("/batches/"):
        return True
    return scope["method"] in ("GET", "HEAD") and path.startswith("/v1/") and sessions.of(scope) is not None


_PAGES = frozenset({"/", "/pause", "/resume"})

routes = [
    Route("/", logged_in(overview), methods=["GET"]),
    Route("/batches/{batch_id}", logged_in(one), methods=["GET"]),
    Route("/batches/{batch_id}/requests", logged_in(requests), methods=["GET"]),
    Route("/batches/{batch_id}/cancel", form_of_page(cancel), methods=["POST"]),
    Route("/pause", form_of_page(pause), methods=["POST"]),
    Route("/resume", form_of_page(resume), methods=["POST"]),
]
