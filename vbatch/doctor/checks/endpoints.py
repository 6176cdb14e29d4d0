"""Checks of the other servers that answer requests: whether each is reached, and lets this machine in."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import timedelta

from vbatch.config.endpoints import EndpointSettings
from vbatch.doctor.facts import Facts
from vbatch.doctor.findings import Check, Entry, Finding
from vbatch.engine.endpoint import configured
from vbatch.engine.kinds import KINDS
from vbatch.errors import ConfigError, ExitCode
from vbatch.text import count, harmless

REACHABLE = Entry(
    id="endpoint.reachable",
    means="an endpoint cannot be reached; its requests go to the others that have its models, or wait until it is back",
    commands=("curl -i {url}/v1/models",),
    advice="start the server",
)
BLOCKED = Entry(
    id="endpoint.blocked",
    means="an endpoint refuses requests until a person changes something: the key, the account, the address; its "
    "requests wait and none fails",
    commands=("curl -i {url}/v1/models",),
)
MISSING = Entry(
    id="endpoint.missing",
    means="the endpoint engine needs an HTTP client, and an endpoint",
    commands=(configured.INSTALL,),
    advice='[endpoints.NAME] url = "http://gpu2:8000" in config.toml, or vbatch run-worker --url URL',
)


def _endpoints(facts: Facts) -> Iterator[Finding]:
    """Ask every server that the configuration names for its models."""
    endpoints, used = facts.settings.endpoints, KINDS[facts.settings.engine].remote
    if not endpoints and not used:
        yield REACHABLE.skip("no endpoint is configured")
        return
    if not configured.installed():
        what = "aiohttp is not installed, so no endpoint can be used"
        yield MISSING.fail(what, exit_code=ExitCode.MISCONFIGURED) if used else MISSING.warn(what)
        return
    if not endpoints:
        yield MISSING.info("no endpoint is configured; --url may name one", commands=())
        return
    yield from asyncio.run(_ask_all(dict(endpoints), fatal=used))


async def _ask_all(endpoints: dict[str, EndpointSettings], *, fatal: bool) -> list[Finding]:
    asked = (_ask(name, endpoint, fatal=fatal) for name, endpoint in endpoints.items())
    return list(await asyncio.gather(*asked))


async def _ask(name: str, endpoint: EndpointSettings, *, fatal: bool) -> Finding:  # noqa: PLR0911  (a table)
    from vbatch.engine.endpoint.client import Broken, Client
    from vbatch.engine.endpoint.rules import Closed
    from vbatch.engine.endpoint.watch import NO_LIST, look

    shown, values = harmless(f"{name} ({endpoint.url})"), {"url": endpoint.url}
    report = BLOCKED.fail if fatal else BLOCKED.warn
    try:
        client = Client(endpoint.url, configured.key_of(name, endpoint))
    except ConfigError as error:
        commands = (error.hint,) if error.hint else ()
        return report(error.message, commands=commands, exit_code=ExitCode.MISCONFIGURED)
    try:
        found = await look(client)
    finally:
        await client.close()
    match found:
        case Broken():
            return REACHABLE.warn(f"{shown} cannot be reached: {found.cause}", values=values)
        case Closed():
            return report(f"{shown} {found.reason}", values=values)
        case None if not endpoint.models:
            return report(f"{shown} {NO_LIST.reason}", evidence=(NO_LIST.hint,), values=values)
        case None:
            return REACHABLE.ok(f"{shown} answers")
    if lacking := sorted(set(endpoint.models) - found):
        return BLOCKED.warn(f"{shown} does not list {harmless(', '.join(lacking))}", values=values)
    return REACHABLE.ok(f"{shown} answers; it has {count(len(found), 'model')}")


CHECKS = (
    Check(
        name="endpoint.reachable",
        finds=(REACHABLE, BLOCKED, MISSING),
        run=_endpoints,
        limit=timedelta(seconds=40),
    ),
)
