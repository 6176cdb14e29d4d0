"""The store, as doctor finds it: every way in which a database can be away, broken or not ours.

A secret is never shown: each test looks for the password in all that was found.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import text

from tests.rigs.postgres import Postgres
from tests.rigs.proxy import Mood, Proxy
from tests.rigs.waiting import until
from vbatch import config
from vbatch.doctor.checks import store as checks
from vbatch.doctor.facts import Facts
from vbatch.doctor.findings import Finding, Level, exit_code
from vbatch.doctor.running import Conduct, examine
from vbatch.errors import ExitCode
from vbatch.store import Store
from vbatch.store.database.backends import backend_of
from vbatch.store.database.backends.protocol import Fault, Transient
from vbatch.system import processes

SECRET = "correct-horse"


def examined(url: str, *, wait: timedelta = timedelta()) -> list[Finding]:
    facts = Facts(settings=config.load(database_url=url))
    try:
        findings = examine(checks.CHECKS, facts, Conduct(patience=wait)).findings
    finally:
        facts.close()
    assert SECRET not in repr(findings)
    return findings


def failure(url: str) -> Finding:
    """Return the one thing that is wrong; the exit code is that of what passes by itself, or of what does not."""
    findings = examined(url)
    (failed,) = [finding for finding in findings if finding.level is Level.FAIL]
    assert exit_code(findings) is failed.exit_code
    assert (failed.exit_code is ExitCode.STORE_UNREACHABLE) == failed.passing
    return failed


@pytest.fixture
def proxy(postgres: Postgres) -> Iterator[Proxy]:
    proxy = Proxy(postgres.socket)
    yield proxy
    proxy.close()


def through(proxy: Proxy) -> str:
    return f"postgresql://postgres:{SECRET}@127.0.0.1:{proxy.port}/postgres?sslmode=disable&connect_timeout=3"


@pytest.mark.parametrize(
    ("mood", "finding", "words"),
    [
        (Mood.ACCEPT_AND_CLOSE, "store.away", "closed the connection unexpectedly"),  # the incident's own
        (Mood.ACCEPT_AND_HANG, "store.hanging", "does not answer"),
        (Mood.STARTING_UP, "store.starting", "is starting up"),
    ],
)
def test_a_server_that_is_not_ready(proxy: Proxy, mood: Mood, finding: str, words: str) -> None:
    """Mutant: taking what cannot be reached for what a person must mend; systemd would not start again."""
    proxy.mood = mood
    found = failure(through(proxy))
    assert (found.id, found.passing, found.exit_code) == (finding, True, ExitCode.STORE_UNREACHABLE)
    assert words in found.what


@pytest.mark.parametrize(
    ("url", "words"),
    [
        (f"postgresql://me:{SECRET}@127.0.0.1:1/vbatch", "connection refused"),
        (f"postgresql://me:{SECRET}@no-such-host.invalid/vbatch", "host name"),
        (f"postgresql://me:{SECRET}@/vbatch?host=/nowhere", "no socket file"),
    ],
)
def test_nobody_serves_there(url: str, words: str) -> None:
    found = failure(url)
    assert (found.id, found.passing) == ("store.away", True)
    assert words in found.what


def test_a_server_that_recovers_from_a_crash(own_postgres: Postgres) -> None:
    """One backend was killed, and another one is slow to leave. Mutant: no pattern for it in ``faults``."""
    with psycopg.connect(own_postgres.url()) as killed, psycopg.connect(own_postgres.url()) as slow:
        os.kill(slow.info.backend_pid, signal.SIGSTOP)
        os.kill(killed.info.backend_pid, signal.SIGKILL)
        deadline = time.monotonic() + 4  # a server ends a backend that is slow to leave after 5 s
        found = examined(own_postgres.url())[0]
        while found.id != "store.recovering" and time.monotonic() < deadline:
            time.sleep(0.05)
            found = examined(own_postgres.url())[0]
    assert (found.id, found.passing) == ("store.recovering", True)
    assert "nothing is lost" not in found.why
    assert found.exit_code is ExitCode.STORE_UNREACHABLE


def test_for_how_long_a_server_starts(own_postgres: Postgres) -> None:
    """Its own process tells. Mutant: no word of it; a person cannot tell a minute from an hour."""
    own_postgres.stop()
    (own_postgres.folder / "data" / "recovery.signal").touch()
    own_postgres.start(wait=False, restore_command="sleep 600; false", hot_standby="off")
    until(lambda: re.search(r"; for \d+ s so far$", failure(own_postgres.url()).why))
    own_postgres.kill()


def test_for_how_long_it_was_seen_to_start(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where its process is on another machine. Mutant: no word of it."""
    monkeypatch.setattr(processes, "entitled", lambda _pattern: [])
    proxy.mood = Mood.STARTING_UP
    findings = examined(through(proxy), wait=timedelta(seconds=3))
    seen = re.search(r"; for (\d+) s at least$", findings[0].why)
    assert seen is not None
    assert int(seen[1]) >= 2


@pytest.mark.parametrize("words", ["is in recovery mode", "is not yet accepting connections"])
def test_the_words_of_a_server_that_recovers(words: str) -> None:
    """Of PostgreSQL's own source (backend_startup.c). Mutant: no pattern for one of them."""
    error = psycopg.OperationalError(f"connection failed: FATAL:  the database system {words}")
    fault = backend_of("postgresql://h/d").diagnose(error)
    assert isinstance(fault, Transient)
    assert fault.fault is Fault.RECOVERING


def test_too_many_clients(own_postgres: Postgres) -> None:
    own_postgres.stop()
    own_postgres.start(max_connections="5", superuser_reserved_connections="0", reserved_connections="0")
    held = [psycopg.connect(own_postgres.url()) for _ in range(5)]
    found = failure(own_postgres.url())
    assert (found.id, found.passing) == ("store.full", True)
    for connection in held:
        connection.close()


def test_what_passes_is_waited_for(proxy: Proxy) -> None:
    """Mutant: no second look."""

    proxy.mood = Mood.STARTING_UP
    threading.Timer(1.0, lambda: setattr(proxy, "mood", Mood.FORWARD)).start()
    findings = examined(through(proxy), wait=timedelta(seconds=30))
    assert exit_code(findings) is ExitCode.DONE


@pytest.fixture(scope="module")
def guarded() -> Iterator[Postgres]:
    """A server that asks for passwords and knows who may do what."""
    with tempfile.TemporaryDirectory(
        prefix="vbatch-pg-"
    ) as folder:  # each new pytest closes pytest's own folder
        Path(folder).chmod(0o755)
        server = Postgres(Path(folder) / "server")
        server.start()
        server.execute(f"CREATE ROLE ann LOGIN PASSWORD '{SECRET}'")
        server.execute(f"CREATE ROLE bob LOGIN PASSWORD '{SECRET}'")
        server.execute("CREATE DATABASE private OWNER ann")
        server.execute("REVOKE CONNECT ON DATABASE private FROM public")
        server.stop()
        rules = ("local all postgres trust", "local all banned reject", "local all all scram-sha-256")
        (server.folder / "data" / "pg_hba.conf").write_text("\n".join(rules) + "\n")
        server.start()
        yield server
        server.stop()


@pytest.mark.parametrize(
    ("user", "database", "finding"),
    [
        (f"ann:{SECRET}-not", "private", "store.password"),
        ("ann", "private", "store.password"),
        (f"ann:{SECRET}", "missing", "store.no_database"),
        (f"bob:{SECRET}", "private", "store.forbidden"),
        (f"banned:{SECRET}", "private", "store.forbidden"),
    ],
)
def test_a_server_that_refuses_us(guarded: Postgres, user: str, database: str, finding: str) -> None:
    """``pg_isready`` says OK to all of these. Mutant: waiting for them; ``--wait`` would cost its whole time."""
    url = f"postgresql://{user}@/{database}?host={guarded.folder}"
    findings = examined(url, wait=timedelta(hours=1))
    (found,) = [one for one in findings if one.level is Level.FAIL]
    assert (found.id, found.passing) == (finding, False)
    assert shlex.split(found.commands[0])[:1] == ["psql"]  # a command, not a sentence
    assert exit_code(findings) is ExitCode.MISCONFIGURED


def test_an_unknown_user(postgres: Postgres) -> None:
    found = failure(f"postgresql://nobody_here:{SECRET}@/postgres?host={postgres.folder}")
    assert found.id == "store.no_user"


def test_settings_that_break_the_promise(own_postgres: Postgres) -> None:
    own_postgres.stop()
    own_postgres.start(fsync="off", full_page_writes="off")
    found = failure(own_postgres.url())
    assert found.id == "store.durability"
    assert "fsync=off and full_page_writes=off" in found.what


def test_a_server_that_only_reads(own_postgres: Postgres) -> None:
    own_postgres.execute("ALTER SYSTEM SET default_transaction_read_only = on")
    own_postgres.stop()
    own_postgres.start()
    assert failure(own_postgres.url()).id == "store.read_only"


@pytest.mark.parametrize("url", ["", "mysql://a/b", "sqlite://", "postgresql://[::"])
def test_a_url_that_is_none(url: str) -> None:
    found = failure(url or "nonsense")
    assert (found.id, found.exit_code) == ("store.url", ExitCode.MISCONFIGURED)
    subprocess.run(["bash", "-ec", found.commands[0]], check=True)


def test_a_healthy_store(store: Store) -> None:
    findings = examined(store.url.render_as_string(hide_password=False))
    assert [finding.id for finding in findings] == ["store.reach", "store.durability"]
    assert {finding.level for finding in findings} == {Level.OK}


def test_a_newer_schema(store: Store) -> None:

    store.write(
        lambda connection: connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    )
    found = failure(store.url.render_as_string(hide_password=False))
    assert (found.id, found.exit_code) == ("store.schema_newer", ExitCode.MISCONFIGURED)
