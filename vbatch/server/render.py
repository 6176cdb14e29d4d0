"""Make pages of templates. Whatever a person or a model wrote is escaped, and what a browser would obey is shown.

That holds for every value of every template, so that none can be forgotten: HTML by autoescape, control and
bidirectional characters by ``finalize``.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from starlette.responses import Response

from vbatch import text
from vbatch.server.static import VERSION

# Nothing is loaded from elsewhere, framed, or sent elsewhere; what is on a page is kept by no cache.
HEADERS = {
    "content-security-policy": "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'none'",
    "referrer-policy": "same-origin",
    "cache-control": "no-store",
    "x-frame-options": "DENY",
}


def page(template: str, status: int = 200, **values: Any) -> Response:
    """Return a page."""
    body = _environment().get_template(template).render(version=VERSION, **values)
    return Response(body.encode(errors="replace"), status, HEADERS, "text/html")


def shown(value: Any) -> Any:
    """Return a text as it may stand on a page."""
    return (
        text.harmless(value, keep="\n\t")
        if isinstance(value, str) and not isinstance(value, Markup)
        else value
    )


@cache
def _environment() -> Environment:
    made = Environment(
        loader=PackageLoader("vbatch.server", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "count": text.count,
        "number": lambda value: f"{value:,}",
        "rate": text.rate,
        "ago": text.ago,
        "time": text.local_time,
        "one_line": lambda value, limit=120: text.one_line(value, limit=limit),
    }
    return made
