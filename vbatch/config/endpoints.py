"""The tables ``[endpoints.NAME]``: other servers that answer requests, for the engine ``endpoint``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def base_url(url: str) -> str:
    """Return the address below which a server has ``/v1/…``; it may be given with or without ``/v1``.

    Raises ValueError, in words for people.
    """
    if not (url.isascii() and url.isprintable()) or " " in url:
        raise ValueError("it has characters that must be percent-encoded")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise ValueError("it is no URL") from None
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        raise ValueError("it must begin with http:// or https:// and name a host, as http://gpu2:8000")
    if "@" in parts.netloc:
        raise ValueError("it must hold no password: api_key_env names the variable with the key")
    if parts.query or parts.fragment:
        raise ValueError("it must end with the path")
    return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/').removesuffix('/v1')}"


def _variable(name: str) -> str:
    if _VARIABLE.fullmatch(name) is None:
        raise ValueError("it must be the name of a variable, not the key itself")
    return name


class EndpointSettings(BaseModel):
    """``[endpoints.NAME]``: a server with OpenAI's API. The key itself stands in the environment alone.

    ``models``: only these of its models are used; without it, all that its ``/v1/models`` lists.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: Annotated[str, AfterValidator(base_url)]
    api_key_env: Annotated[str, AfterValidator(_variable)] | None = None
    models: tuple[str, ...] = ()
    max_inflight: int | None = Field(None, ge=1)


def of_urls(urls: tuple[str, ...]) -> Mapping[str, EndpointSettings]:
    """Return the endpoints that ``--url`` names, each under its host and port. Raises ValueError."""
    found: dict[str, EndpointSettings] = {}
    for url in map(base_url, urls):
        name = url.partition("://")[2]
        found[name if name not in found else url] = EndpointSettings(url=url, max_inflight=None)
    return found
