"""How the store's database is run is recognised from what is really there."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from vbatch.store.hosting import Kind, recognise
from vbatch.system import servers
from vbatch.system.servers import Container

# Answers as docker 28 does, for a machine with one container.
DOCKER = """#!/bin/sh
case $1 in
  ps) printf 'label-studio\\t0.0.0.0:8080->8080/tcp\\npg\\t127.0.0.1:4332->5432/tcp\\n' ;;
  inspect) printf '%s\\n' "$POLICY" ;;
esac
"""


@pytest.fixture
def docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command of a container engine, whose daemon the tests cannot have."""
    command = tmp_path / "docker"
    command.write_text(DOCKER)
    command.chmod(command.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("POLICY", "no")


def test_sqlite_needs_nothing_else_to_run() -> None:
    found = recognise("sqlite:////home/me/vbatch.db")
    assert (found.kind, found.where) == (Kind.EMBEDDED, "/home/me/vbatch.db")
    assert found.hint is None


@pytest.mark.parametrize("host", ["db.example.org", "10.0.0.7"])
def test_another_machine(host: str) -> None:
    found = recognise(f"postgresql+psycopg://me:secret@{host}:5433/vbatch")
    assert (found.kind, found.where) == (Kind.REMOTE, f"{host}:5433")
    assert "secret" not in found.words


def test_a_port_that_nobody_serves_is_just_local() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    assert recognise(f"postgresql://me@localhost:{port}/vbatch").kind is Kind.LOCAL


def test_a_container_that_does_not_come_back_is_reported(docker: None) -> None:
    found = recognise("postgresql://me:secret@127.0.0.1:4332/vbatch")
    assert found.kind is Kind.CONTAINER
    assert found.hint == "docker update --restart unless-stopped pg"
    assert "docker.service" in found.after
    assert "secret" not in found.words


def test_a_container_that_comes_back_needs_no_hint(docker: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLICY", "unless-stopped")
    assert recognise("postgresql://me@localhost:4332/vbatch").hint is None


def test_the_port_inside_the_container_is_not_the_published_one(docker: None) -> None:
    assert servers.publishing(5432) is None


def test_podman_names_the_unit_that_restarts_containers() -> None:
    container = Container(engine="podman", name="my pg", restart_policy="unless-stopped")
    assert not container.comes_back
    assert container.remedy.startswith("podman update --restart always 'my pg'")


def test_the_unit_of_a_listener_is_read_from_its_cgroup(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real listener of this test; only its cgroup is made up."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        process = tmp_path / str(os.getpid())
        (tmp_path / "net").symlink_to("/proc/self/net")
        process.mkdir()
        (process / "fd").symlink_to("/proc/self/fd")
        (process / "cgroup").write_text(
            "0::/system.slice/system-postgresql.slice/postgresql@15-main.service\n"
        )
        monkeypatch.setattr(servers, "PROC", tmp_path)
        assert servers.unit_of_port(port) == "postgresql@15-main.service"
        assert recognise(f"postgresql://localhost:{port}/x").unit == "postgresql@15-main.service"


@pytest.mark.parametrize(
    ("cgroup", "unit"),
    [
        ("0::/user.slice/user-1000.slice/user@1000.service/app.slice/pg.service", "pg.service"),
        ("0::/user.slice/user-1000.slice/user@1000.service/app.slice/a.scope", None),
        ("0::/user.slice/user-1000.slice/session-2.scope", None),
    ],
)
def test_a_session_is_no_unit(cgroup: str, unit: str | None) -> None:
    assert servers._unit_in(cgroup) == unit


def test_the_search_needs_no_rights() -> None:
    """Processes of other users are passed over, also by a user who may look at none of them."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to become nobody")
    script = "import os; from vbatch.system import servers; os.setuid(65534); print(servers.unit_of_port(1))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout == "None\n", done.stderr


@pytest.mark.parametrize(
    ("url", "where"),
    [
        ("postgresql://me:se/cr#e?t[@10.0.0.7/vbatch", "10.0.0.7:5432"),
        ("postgresql://me@/vbatch?host=10.0.0.7,10.0.0.8&port=5433,5434", "10.0.0.7:5433"),
    ],
)
def test_urls_that_only_the_store_reads_right(url: str, where: str) -> None:
    """Mutant: urllib's urlsplit, for which a password ends at # or /."""
    assert recognise(url).where == where
