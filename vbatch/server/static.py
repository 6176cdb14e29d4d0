"""``/static``: the one script, the one stylesheet and the icon of the page."""

from __future__ import annotations

import hashlib
from importlib import resources

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

_KINDS = {"page.css": "text/css", "page.js": "text/javascript", "icon.svg": "image/svg+xml"}
_FILES = {name: resources.files("vbatch.server").joinpath("static", name).read_bytes() for name in _KINDS}
VERSION = hashlib.sha256(b"".join(_FILES.values())).hexdigest()[:12]  # in their addresses: they may be kept


async def static(request: Request) -> Response:
    """Answer one of them."""
    name = request.url.path.rpartition("/")[2]
    headers = {"cache-control": "public, max-age=31536000, immutable"}
    return Response(_FILES[name], headers=headers, media_type=_KINDS[name])


routes = [Route(f"/static/{name}", static) for name in _KINDS]
open_paths = tuple(f"/static/{name}" for name in _KINDS)
