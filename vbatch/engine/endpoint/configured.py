"""The servers that the configuration or ``--url`` names: whether they can be used, and the pool of them."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from datetime import timedelta
from typing import TYPE_CHECKING

from vbatch.config import Settings
from vbatch.config.endpoints import EndpointSettings
from vbatch.errors import ConfigError
from vbatch.text import harmless

if TYPE_CHECKING:
    from vbatch.engine.endpoint.pool import Pool

INSTALL = "pip install 'vbatch[endpoint]'"


def installed() -> bool:
    """Whether the HTTP client is installed; it is not imported."""
    return importlib.util.find_spec("aiohttp") is not None


def require(settings: Settings) -> None:
    """Raise ConfigError where a person must do something before any server can be used."""
    if not installed():
        raise ConfigError("the endpoint engine needs aiohttp, which is not installed", hint=INSTALL)
    if not settings.endpoints:
        raise ConfigError(
            "no endpoint is configured", hint="vbatch run-worker --engine endpoint --url http://HOST:8000"
        )
    if settings.preload is not None:
        raise ConfigError(
            "the endpoint engine loads no model, so there is none to preload",
            hint="vbatch run-worker --engine endpoint, without --preload",
        )
    if settings.chat:
        raise ConfigError(
            "the endpoint engine answers no chats; a server itself does", hint="chat = false, in config.toml"
        )
    for name, endpoint in settings.endpoints.items():
        key_of(name, endpoint)


def key_of(name: str, endpoint: EndpointSettings) -> str | None:
    """Return the key of an endpoint, from the environment; None where it has none. Raises ConfigError."""
    variable = endpoint.api_key_env
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key:
        raise ConfigError(
            f'{variable} is not set, which [endpoints."{harmless(name)}"] names for its key',
            hint=f"export {variable}=…",
        )
    if not (key.isascii() and key.isprintable()):
        raise ConfigError(f"{variable} is no key: it has characters that no HTTP header can have")
    return key


async def load(
    endpoints: Mapping[str, EndpointSettings],
    *,
    max_inflight: int | None,
    request_timeout: timedelta | None,
) -> Pool:
    """Make the pool of these servers, and look at each of them once. Raises ConfigError."""
    from vbatch.engine.endpoint.client import Client
    from vbatch.engine.endpoint.place import Place
    from vbatch.engine.endpoint.pool import Pool

    keys = {name: key_of(name, endpoint) for name, endpoint in endpoints.items()}
    places = [
        Place(name, endpoint, Client(endpoint.url, keys[name]), ceiling=max_inflight)
        for name, endpoint in endpoints.items()
    ]
    pool = Pool(places, total=max_inflight, request_timeout=request_timeout)
    try:
        await pool.begin()
    except BaseException:  # a stop: no connection is left behind
        await pool.close()
        raise
    return pool
