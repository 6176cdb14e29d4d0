"""The text of the server's unit: ``vbatch serve`` beside the workers, in their account, with their environment.

It shares with the worker's unit (``vbatch.service.unit``) all that is not about a GPU. It differs in what is final: a
port that is taken or an address that is late (78) passes by itself, and so the server is tried again.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

from vbatch.errors import ExitCode
from vbatch.service import unit
from vbatch.service.quoting import command
from vbatch.service.unit import Key, UnitSpec
from vbatch.system.units import SERVER, SERVER_UNIT

NEW = f"{SERVER}-new.service"  # the name under which it is verified
STOP_LIMIT = timedelta(minutes=1)  # for the answers that are under way


def render(spec: UnitSpec) -> str:
    """Return the unit file, sealed as the worker's is."""
    title = f"{SERVER_UNIT}: OpenAI's batch API on the queue of this account."
    return unit.sealed(spec, title, unit=_unit(spec), service=_service(spec))


def _unit(spec: UnitSpec) -> Iterator[Key | str]:
    yield "Description", "vbatch server"
    yield from unit.order(spec)


def _service(spec: UnitSpec) -> Iterator[Key | str]:
    yield "Type", "exec"
    yield from unit.account(spec)
    yield from unit.environment(spec)
    yield "ExecStart", command("", *unit.program(spec), "serve")
    yield from unit.restarts(spec, ExitCode.USAGE)
    yield "KillMode", "mixed"
    yield "TimeoutStopSec", unit.span(STOP_LIMIT)
    yield "SyslogIdentifier", SERVER
    yield "LimitNOFILE", "65536"
    yield "# A core dump would hold prompts and keys."
    yield "LimitCORE", "0"
    yield from unit.home(spec)
