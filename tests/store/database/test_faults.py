"""A database that comes back is waited for; what a person must fix is reported at once. Against real ones."""

from __future__ import annotations

import os
import sqlite3
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import Connection, text
from sqlalchemy.engine import make_url

from tests.rigs.disk import Unavailable, small_disk
from tests.rigs.filling import answers_to, claim, count, take_in, worker
from tests.rigs.postgres import Postgres
from tests.rigs.proxy import Mood, Proxy, proxy
from tests.rigs.waiting import SILENCE, until
from vbatch.errors import ExitCode, Interrupted, StoreMisconfigured, StoreUnreachable
from vbatch.protocol import BatchStatus
from vbatch.store import NO_PATIENCE, Patience, Store, catalog, finalization, queue
from vbatch.store.database.backends.postgresql import SETTINGS

QUICK = Patience(limit=timedelta(seconds=0.5), pause=timedelta(seconds=0.1))
ENDLESS = Patience(limit=None, pause=timedelta(seconds=0.1))


@pytest.fixture
def moody(postgres: Postgres) -> Iterator[Proxy]:
    with proxy(postgres.socket) as running:
        yield running


def through(running: Proxy, url: str) -> str:
    """The URL of a database behind the proxy."""
    return f"postgresql://postgres@127.0.0.1:{running.port}/{make_url(url).database}"


def refusal(url: str) -> StoreMisconfigured:
    """What a store with endless patience does not wait for."""
    store = Store(url, patience=ENDLESS)
    with pytest.raises(StoreMisconfigured) as refused:
        store.prepare()
    assert refused.value.exit_code is ExitCode.MISCONFIGURED
    assert refused.value.hint
    store.close()
    return refused.value


def reason(url: str) -> str:
    """What a store says that it waits for."""
    reasons: list[str | None] = []
    store = Store(url, patience=NO_PATIENCE, on_wait=lambda text, _seconds: reasons.append(text))
    with pytest.raises(StoreUnreachable) as unreachable:
        store.prepare()
    assert unreachable.value.exit_code is ExitCode.STORE_UNREACHABLE
    store.close()
    return unreachable.value.message


# What a person must fix.


@pytest.fixture(scope="module")
def with_passwords() -> Iterator[Postgres]:
    """A server that asks for passwords, as every real one does."""
    access = (
        "local postgres postgres trust",
        "local all banned reject",
        "local all all scram-sha-256",
    )
    with tempfile.TemporaryDirectory(prefix="vbatch-pg-") as folder:
        Path(folder).chmod(0o755)
        server = Postgres(Path(folder) / "server")
        server.start()
        server.execute("CREATE ROLE ann LOGIN PASSWORD 'right'")
        server.execute("CREATE ROLE nologin PASSWORD 'right'")
        server.execute("CREATE DATABASE private OWNER ann")
        server.execute("REVOKE CONNECT ON DATABASE private FROM public")
        server.execute("CREATE ROLE bob LOGIN PASSWORD 'right'")
        server.execute("CREATE DATABASE stranger")
        server.stop()
        (server.folder / "data" / "pg_hba.conf").write_text("\n".join(access) + "\n")
        server.start()
        yield server
        server.stop()


@pytest.mark.parametrize(
    ("user", "password", "database", "words"),
    [
        ("ann", "wrong", "private", "wrong password"),
        ("nobody", "right", "private", "wrong password"),
        ("ann", None, "private", "requires a password"),
        ("ann", "right", "missing", "does not exist"),
        ("nologin", "right", "private", "may not connect"),
        ("bob", "right", "private", "permission denied"),
        ("bob", "right", "stranger", "permission denied"),
        ("banned", "right", "private", "does not let this user in"),
    ],
)
def test_a_server_that_refuses_us_is_not_waited_for(
    with_passwords: Postgres, user: str, password: str | None, database: str, words: str
) -> None:
    """``pg_isready`` says OK to most of these."""
    secret = f":{password}" if password else ""
    refused = refusal(f"postgresql://{user}{secret}@/{database}?host={with_passwords.folder}")
    assert words in refused.message
    assert "right" not in refused.message + str(refused.hint)


def test_the_right_password_opens_the_door(with_passwords: Postgres) -> None:
    store = Store(f"postgresql://ann:right@/private?host={with_passwords.folder}", patience=NO_PATIENCE)
    store.prepare()
    assert "right" not in str(store)
    store.close()


@pytest.mark.parametrize(
    "url",
    [
        "",
        "nonsense",
        "mysql://u@h/d",
        "sqlite://",
        "sqlite:///:memory:",
        "postgresql://h:port/d",
        "postgresql://[::1/d",
    ],
)
def test_a_url_that_names_no_store_is_refused(url: str) -> None:
    with pytest.raises(StoreMisconfigured) as refused:
        Store(url)
    assert "VBATCH_DATABASE_URL" in str(refused.value.hint)


@pytest.mark.parametrize("options", ["sslmode=maybe", "no_such_option=1", "port=99999"])
def test_url_options_that_libpq_does_not_take_are_refused(options: str) -> None:
    refusal(f"postgresql://postgres@/postgres?host=/nowhere&{options}")


def test_a_read_only_file_is_refused(tmp_path: Path) -> None:
    """Root may write anything; there its connection may not."""
    path = tmp_path / "vbatch.db"
    store = Store(f"sqlite:///{path}")
    store.prepare()
    store.close()
    path.chmod(0o400)
    store = Store(f"sqlite:///{path}", patience=ENDLESS)
    if os.geteuid() == 0:
        store.read(lambda connection: connection.exec_driver_sql("PRAGMA query_only=ON"))
    with pytest.raises(StoreMisconfigured, match="read-only"):
        take_in(store)


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"not a database at all" * 100, "not a SQLite database"), (b"SQLite format 3\0" + b"\xff" * 4000, "")],
)
def test_a_file_that_is_no_database_is_refused_and_left_alone(
    tmp_path: Path, content: bytes, words: str
) -> None:
    path = tmp_path / "vbatch.db"
    path.write_bytes(content)
    assert words in refusal(f"sqlite:///{path}").message
    assert path.read_bytes() == content


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "vbatch.db"
    store = Store(f"sqlite:///{path}")
    store.prepare()
    take_in(store, 3000, body=b"x" * 700)
    store.close()
    with path.open("r+b") as file:
        for offset in range(16384, path.stat().st_size, 16384):
            file.seek(offset)
            file.write(b"\xff" * 2000)
    assert "damaged" in refusal(f"sqlite:///{path}").message


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert str(tmp_path) in refusal(f"sqlite:///{tmp_path}/file/below/vbatch.db").message


def test_a_folder_in_the_place_of_the_file_is_refused(tmp_path: Path) -> None:
    refusal(f"sqlite:///{tmp_path}")


# What passes by itself.


def test_a_server_that_is_not_there_yet_is_waited_for(tmp_path: Path) -> None:
    assert "no socket file" in reason(f"postgresql://postgres@/postgres?host={tmp_path}")
    assert "connection refused" in reason("postgresql://postgres@127.0.0.1:1/postgres")


def test_a_host_name_that_is_not_known_yet_is_waited_for() -> None:
    """At boot the name server comes up later than vbatch."""
    assert "host name" in reason("postgresql://postgres@no-such-host.invalid/postgres")


@pytest.mark.parametrize(
    ("mood", "words"),
    [(Mood.ACCEPT_AND_CLOSE, "closed the connection"), (Mood.STARTING_UP, "starting up")],
)
def test_a_server_that_is_coming_up_is_waited_for(
    moody: Proxy, postgresql_url: str, mood: Mood, words: str
) -> None:
    moody.mood = mood
    assert words in reason(through(moody, postgresql_url))


@pytest.mark.parametrize("mood", [Mood.ACCEPT_AND_CLOSE, Mood.STARTING_UP])
def test_waiting_ends_when_the_server_is_there(moody: Proxy, postgresql_url: str, mood: Mood) -> None:
    moody.mood = mood
    waits: list[tuple[str | None, float]] = []

    def waited(text: str | None, seconds: float) -> None:
        waits.append((text, seconds))
        if len(waits) == 3:
            moody.mood = Mood.FORWARD

    store = Store(through(moody, postgresql_url), patience=ENDLESS, on_wait=waited)
    store.prepare()
    assert take_in(store).counts.total == 1
    assert [text is None for text, _ in waits] == [False, False, False, True]
    assert [seconds for _, seconds in waits] == sorted(seconds for _, seconds in waits)
    store.close()


def test_a_server_that_accepts_and_says_nothing_is_given_up_on(
    moody: Proxy, postgresql_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vbatch.store.database.backends.postgresql.CONNECT_TIMEOUT_S", 2)
    moody.mood = Mood.ACCEPT_AND_HANG
    assert "does not answer" in reason(through(moody, postgresql_url))


def test_too_many_clients_are_waited_for(own_postgres: Postgres) -> None:
    own_postgres.stop()
    own_postgres.start(max_connections="5", superuser_reserved_connections="0", reserved_connections="0")
    others = [psycopg.connect(own_postgres.url()) for _ in range(5)]
    assert "no free connection" in reason(own_postgres.url())
    for other in others:
        other.close()
    store = Store(own_postgres.url())
    store.prepare()
    store.close()


def test_a_server_that_is_restarted_in_the_middle_is_waited_for(own_postgres: Postgres) -> None:
    waits = 0

    def waited(reason: str | None, _seconds: float) -> None:
        nonlocal waits
        waits += 1
        if waits == 5:
            own_postgres.start(wait=False)  # it recovers from the crash while vbatch keeps asking

    store = Store(own_postgres.url(), patience=ENDLESS, on_wait=waited)
    store.prepare()
    batch = take_in(store, 300)
    who = worker(store)
    (lease,) = claim(store, who)
    own_postgres.kill()
    flushed = queue.flush(store, worker=who, results=answers_to(lease))
    assert flushed.recorded == 256
    assert waits > 5
    assert catalog.find(store, batch.id).counts.completed == 256
    store.close()


def test_terminated_backends_are_not_noticed(own_postgres: Postgres) -> None:
    store = Store(own_postgres.url(), patience=ENDLESS)
    store.prepare()
    for _ in range(5):
        own_postgres.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'vbatch'"
        )
        take_in(store)
    assert len(catalog.recent(store, limit=9)) == 5
    store.close()


def test_a_file_that_cannot_be_opened_for_no_lasting_reason_is_waited_for(tmp_path: Path) -> None:
    """Its journal cannot be had. Mutant: SQLITE_CANTOPEN is permanent; a moment's fault then ends a service."""
    journal = tmp_path / "vbatch.db-journal"
    said: list[str | None] = []

    def waited(reason: str | None, _seconds: float) -> None:
        said.append(reason)
        if len(said) == 2:
            journal.unlink()

    store = Store(f"sqlite:///{tmp_path / 'vbatch.db'}", patience=ENDLESS, on_wait=waited)
    store.prepare()
    journal.symlink_to(tmp_path / "gone" / "journal")
    take_in(store)
    assert said == ["the file cannot be opened", "the file cannot be opened", None]
    store.close()


def test_a_lock_of_another_transaction_is_told_and_waited_for(
    postgresql_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A psql session that was left open, say. Mutant: no lock_timeout; the worker then hangs without a word."""
    monkeypatch.setitem(SETTINGS, "lock_timeout", "300ms")
    said: list[str | None] = []
    store = Store(postgresql_url, patience=ENDLESS, on_wait=lambda reason, _seconds: said.append(reason))
    take_in(store)
    with psycopg.connect(postgresql_url) as other, ThreadPoolExecutor() as threads:
        other.execute("SELECT * FROM chunk FOR UPDATE")
        (batch,) = catalog.recent(store, limit=1)
        cancelling = threads.submit(finalization.request_cancel, store, pk=batch.pk)
        until(lambda: bool(said))
        other.rollback()
        assert cancelling.result().status is BatchStatus.CANCELLING
    assert said[0] == "another transaction holds a lock that vbatch needs"
    assert said[-1] is None
    store.close()


def test_who_is_frozen_in_a_transaction_does_not_keep_its_locks(
    postgresql_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or lost its power: others would wait for as long as the server believes that it is alive. Thawed, it works on.

    Mutants: no idle_in_transaction_session_timeout; SQLSTATE 25P03 taken for a defect, which ends the thawed worker.
    """
    monkeypatch.setitem(SETTINGS, "idle_in_transaction_session_timeout", "300ms")
    store, other = Store(postgresql_url, patience=ENDLESS), Store(postgresql_url, patience=NO_PATIENCE)
    pk = take_in(store).pk
    frozen, thawed = threading.Event(), threading.Event()

    def work(connection: Connection) -> int:
        connection.execute(text("SELECT * FROM chunk FOR UPDATE")).all()
        if not frozen.is_set():
            frozen.set()
            assert thawed.wait(SILENCE)
        return int(connection.execute(text("SELECT count(*) FROM chunk")).scalar_one())

    with ThreadPoolExecutor() as threads:
        freezing = threads.submit(store.write, work)
        assert frozen.wait(SILENCE)
        assert finalization.request_cancel(other, pk=pk).status is BatchStatus.CANCELLING
        thawed.set()
        assert freezing.result() == 1
    store.close()
    other.close()


def test_a_commit_whose_answer_is_lost_is_done_once(moody: Proxy, postgresql_url: str) -> None:
    store = Store(through(moody, postgresql_url), patience=ENDLESS)
    take_in(store, 300)
    who = worker(store)
    moody.mood = Mood.DROP_COMMIT_ANSWER
    (lease,) = claim(store, who)
    assert (lease.key.epoch, len(lease.requests)) == (1, 256)
    moody.mood = Mood.DROP_COMMIT_ANSWER
    flushed = queue.flush(store, worker=who, results=answers_to(lease, lease.requests[:9]))
    assert flushed.rejected == frozenset()
    moody.mood = Mood.DROP_COMMIT_ANSWER
    flushed = queue.flush(store, worker=who, results=answers_to(lease, lease.requests[9:]))
    assert flushed.finished == {lease.key}
    assert moody.dropped_commits == 3
    assert count(store, "result") == 256
    store.close()


def test_a_locked_sqlite_file_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "vbatch.db"
    reasons: list[str | None] = []
    store = Store(f"sqlite:///{path}", patience=ENDLESS, on_wait=lambda text, _: reasons.append(text))
    store.prepare()
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN EXCLUSIVE")
    threading.Timer(3, lambda: other.execute("ROLLBACK")).start()
    assert take_in(store).counts.total == 1
    assert reasons[0] == "another process holds its lock"
    assert reasons[-1] is None
    store.close()
    other.close()


@pytest.mark.root
def test_a_full_disk_is_waited_for(tmp_path: Path) -> None:
    try:
        with small_disk(tmp_path, megabytes=4) as disk:
            filler = disk / "filler"
            reasons: list[str | None] = []

            def make_room(text: str | None, _seconds: float) -> None:
                reasons.append(text)
                filler.unlink(missing_ok=True)

            store = Store(f"sqlite:///{disk}/vbatch.db", patience=ENDLESS, on_wait=make_room)
            store.prepare()
            take_in(store, 300)
            filler.write_bytes(bytes(os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize - 8192))
            assert take_in(store, 300, body=b"x" * 1000).counts.total == 300
            assert reasons == ["the disk is full", None]
            assert count(store, "request") == 600
            store.close()
    except Unavailable as why:
        pytest.skip(str(why))


# How long to wait.


def test_a_commands_patience_ends(tmp_path: Path) -> None:
    store = Store(f"postgresql://postgres@/postgres?host={tmp_path}", patience=QUICK)
    began = time.monotonic()
    with pytest.raises(StoreUnreachable) as unreachable:
        store.prepare()
    assert time.monotonic() - began > 0.4
    assert "no socket file" in unreachable.value.message
    assert unreachable.value.hint == "vbatch doctor store"
    store.close()


def test_a_stop_ends_the_waiting_at_once(tmp_path: Path) -> None:
    stop = threading.Event()
    patience = Patience(limit=None, pause=timedelta(hours=1))
    store = Store(
        f"postgresql://postgres@/postgres?host={tmp_path}",
        patience=patience,
        stop=stop,
        on_wait=lambda _reason, _seconds: threading.Timer(0.2, stop.set).start(),
    )
    with pytest.raises(Interrupted):
        store.prepare()
    store.close()


def test_a_defect_of_ours_is_not_waited_for(store: Store) -> None:
    with pytest.raises(Exception, match="no_such_table"):
        store.read(lambda connection: connection.exec_driver_sql("SELECT * FROM no_such_table"))


def test_a_database_without_an_encoding_keeps_every_character(postgres: Postgres) -> None:
    """``initdb`` under the C locale makes SQL_ASCII databases."""
    postgres.execute(
        "CREATE DATABASE ascii ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0"
    )
    store = Store(postgres.url("ascii"))
    store.prepare()
    batch = take_in(store, name="naïve 🜚")
    assert catalog.find(store, batch.id).name == "naïve 🜚"
    store.close()
    postgres.execute("DROP DATABASE ascii WITH (FORCE)")
