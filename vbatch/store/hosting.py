"""Recognise how the store's database is run, for the order of the unit and for hints to a person.

Only looks: at the URL, at the process that listens on its port, at what container engines report. A wrong guess costs
nothing but words, because the worker waits for any database, however it is started.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from vbatch.store.database.backends import backend_of
from vbatch.system import servers
from vbatch.system.servers import Container

# Units that a database may be in, of Debian, Fedora and Arch; an order after one that does not exist is void.
USUAL_UNITS = ("postgresql.service", "docker.service", "podman.service")


class Kind(StrEnum):
    """How the database is run."""

    EMBEDDED = "embedded"  # SQLite: a file, there whenever the disk is
    SERVICE = "service"  # a unit of this machine's systemd
    CONTAINER = "container"  # of docker or podman, on this machine
    LOCAL = "local"  # on this machine, but by nothing that could be recognised
    REMOTE = "remote"  # on another machine


@dataclass(frozen=True, slots=True, kw_only=True)
class Database:
    """What was recognised. ``where`` never holds a password; ``hint`` is what the person should still do.

    ``folder`` is where an embedded database's file is.
    """

    kind: Kind
    where: str
    unit: str | None = None
    container: Container | None = None
    folder: Path | None = None

    @property
    def words(self) -> str:
        """One sentence: what it is, and what that means at boot."""
        match self.kind:
            case Kind.EMBEDDED:
                return f"the store is a SQLite file, {self.where}: nothing else has to run"
            case Kind.SERVICE:
                return (
                    f"the store is PostgreSQL at {self.where}, run by {self.unit}: the worker starts after it"
                )
            case Kind.CONTAINER:
                assert self.container is not None
                return (
                    f"the store is PostgreSQL at {self.where}, in the {self.container.engine} container "
                    f"{self.container.name}: the worker waits until it answers"
                )
            case Kind.LOCAL:
                return f"the store is PostgreSQL at {self.where}, on this machine: the worker waits for it"
            case Kind.REMOTE:
                return f"the store is PostgreSQL at {self.where}: the worker waits for network and answer"

    @property
    def hint(self) -> str | None:
        """What keeps this database from coming back by itself after a power cut, as a command to paste."""
        if self.container is None or self.container.comes_back:
            return None
        return self.container.remedy

    @property
    def after(self) -> tuple[str, ...]:
        """The units that the worker is ordered after on its account."""
        return (*USUAL_UNITS, *([self.unit] if self.unit not in (None, *USUAL_UNITS) else []))


def recognise(url: str) -> Database:
    """Look at the store's URL and at what serves it now. Raises StoreMisconfigured for an invalid URL."""
    database = backend_of(url)
    if database.file is not None:
        return Database(kind=Kind.EMBEDDED, where=str(database.file), folder=database.file.parent)
    assert database.address is not None
    host, port = database.address
    if host.startswith("/") or not host:
        socket = Path(host or "/run/postgresql") / f".s.PGSQL.{port}"
        return _of_unit(str(socket), servers.unit_of_socket(socket))
    where = f"{host}:{port}"
    if not _is_here(host):
        return Database(kind=Kind.REMOTE, where=where)
    if (container := servers.publishing(port)) is not None:
        return Database(kind=Kind.CONTAINER, where=where, unit=container.unit, container=container)
    return _of_unit(where, servers.unit_of_port(port))


def _of_unit(where: str, unit: str | None) -> Database:
    return Database(kind=Kind.SERVICE if unit else Kind.LOCAL, where=where, unit=unit)


def _is_here(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
