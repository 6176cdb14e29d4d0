"""What a server, a role or a pooler has set changes nothing: each transaction brings its own settings."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import threading
import traceback
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import insert, text
from sqlalchemy.engine import make_url

from tests.rigs.filling import answers_to, claim, count, take_in, worker
from tests.rigs.postgres import Postgres
from tests.rigs.waiting import until
from vbatch.errors import StoreDefect
from vbatch.store import NO_PATIENCE, WORKER_PATIENCE, Store, finalization, queue
from vbatch.store.database.backends.postgresql import SETTINGS
from vbatch.store.database.store import scratch_store
from vbatch.store.tables import REQUEST

HOSTILE = {
    "statement_timeout": "50ms",
    "lock_timeout": "1ms",
    "idle_in_transaction_session_timeout": "50ms",
    "default_transaction_isolation": "serializable",
    "synchronous_commit": "off",
    "DateStyle": "German",
    "IntervalStyle": "sql_standard",
    "TimeZone": "Pacific/Apia",
}


@pytest.fixture
def hostile(postgresql_url: str, postgres: Postgres) -> Iterator[str]:
    """The URL of a database whose role has settings of its own, as at a host that means well."""
    database = make_url(postgresql_url).database
    postgres.execute("CREATE ROLE hosted LOGIN")
    postgres.execute(f"ALTER DATABASE {database} OWNER TO hosted")
    postgres.execute("GRANT ALL ON ALL TABLES IN SCHEMA public TO hosted", str(database))
    postgres.execute("GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO hosted", str(database))
    for name, value in HOSTILE.items():
        postgres.execute(f"ALTER ROLE hosted SET {name} = '{value}'")
    yield f"postgresql://hosted@/{database}?host={postgres.folder}"
    postgres.execute(f"ALTER DATABASE {database} OWNER TO postgres")
    postgres.execute("DROP OWNED BY hosted", str(database))
    postgres.execute("DROP ROLE hosted")


def test_the_settings_of_a_role_change_nothing(hostile: str) -> None:
    """Mutants: no ISOLATION LEVEL; no set_config, or one that sets nothing."""
    with closing(Store(hostile, patience=NO_PATIENCE)) as store:
        store.prepare()
        seen = store.read(
            lambda connection: {
                name: connection.execute(text(f"SHOW {name}")).scalar_one()
                for name in (*SETTINGS, "transaction_isolation")
            }
        )
        store.write(lambda connection: connection.execute(text("SELECT pg_sleep(0.2)")))
    assert seen.pop("transaction_isolation") == "read committed"
    assert seen.pop("DateStyle").startswith("ISO")
    assert seen == {name: value for name, value in SETTINGS.items() if name != "DateStyle"}


def test_a_batch_is_stored_and_answered_under_such_a_role(hostile: str) -> None:
    """Mutant: no statement_timeout of 0 within the COPY of a submit."""
    with closing(Store(hostile, patience=NO_PATIENCE)) as store:
        store.prepare()
        take_in(store, 5000)
        who = worker(store)
        while leases := claim(store, who):
            queue.flush(
                store, worker=who, results=[a for one in leases for a in answers_to(one, one.requests)]
            )
        assert count(store, "result") == 5000


@pytest.mark.parametrize("level", ["read committed", "repeatable read", "serializable"])
def test_a_deadline_holds_at_every_isolation_level(
    postgresql_url: str, postgres: Postgres, level: str
) -> None:
    """Two transactions that expire at once fail one another under a stricter level. Mutant: no ISOLATION LEVEL."""
    database = make_url(postgresql_url).database
    postgres.execute(f"ALTER DATABASE {database} SET default_transaction_isolation = '{level}'")
    with closing(Store(postgresql_url, patience=NO_PATIENCE)) as store:
        store.prepare()
        batch = take_in(store, 10, expires_at=datetime.now(UTC) - timedelta(seconds=1))
        assert finalization.expire(store, now=datetime.now(UTC)) == [batch.id]
        shown = store.read(
            lambda connection: connection.execute(text("SHOW transaction_isolation")).scalar_one()
        )
    assert shown == "read committed"


def test_the_options_of_the_url_hold_in_each_transaction(postgresql_url: str) -> None:
    own = make_url(postgresql_url).update_query_dict({"options": r"-c work_mem=7MB --application_name=a\ b"})
    with closing(Store(own.render_as_string(hide_password=False), patience=NO_PATIENCE)) as store:
        for name, value in (("work_mem", "7MB"), ("application_name", "a b"), ("lock_timeout", "10s")):
            assert value == store.read(
                lambda connection, name=name: connection.execute(text(f"SHOW {name}")).scalar_one()  # type: ignore[misc]  # mypy: a default in a lambda
            )


def test_a_server_that_is_read_only_for_a_moment_is_waited_for(
    postgresql_url: str, postgres: Postgres
) -> None:
    """As during a failover. Mutant: SQLSTATE 25006 taken for permanent, which ends the worker for good."""
    database = make_url(postgresql_url).database
    said: list[str | None] = []
    store = Store(
        postgresql_url, patience=WORKER_PATIENCE, on_wait=lambda reason, _seconds: said.append(reason)
    )
    store.prepare()
    postgres.execute(f"ALTER DATABASE {database} SET default_transaction_read_only = on")
    store.close()  # as the failover closes its connections
    storing = threading.Thread(target=take_in, args=(store, 10))
    storing.start()
    until(lambda: bool(said))
    postgres.execute(f"ALTER DATABASE {database} SET default_transaction_read_only = off")
    storing.join()
    assert said[0] == "the server is read-only now: a standby, or a failover that is not over"
    assert said[-1] is None
    assert count(store, "request") == 10
    store.close()


def test_the_reason_is_the_server_s_message_and_not_its_hint(postgresql_url: str) -> None:
    said: list[str | None] = []
    store = Store(
        postgresql_url, patience=WORKER_PATIENCE, on_wait=lambda reason, _seconds: said.append(reason)
    )
    raising = "DO $$ BEGIN RAISE 'the cache is full' USING HINT = 'see the manual', ERRCODE = '53400'; END $$"
    tries = iter((raising, "SELECT 1"))
    store.read(lambda connection: connection.execute(text(next(tries))))
    assert said[0] == "the cache is full"
    store.close()


def test_a_statement_that_another_user_cancels_is_run_again(postgresql_url: str, postgres: Postgres) -> None:
    """Mutant: SQLSTATE 57014 taken for a defect of vbatch."""
    said: list[str | None] = []
    store = Store(
        postgresql_url, patience=WORKER_PATIENCE, on_wait=lambda reason, _seconds: said.append(reason)
    )
    sleeps = iter((60, 0))
    sleeping = threading.Thread(
        target=store.write,
        args=(lambda connection: connection.execute(text(f"SELECT pg_sleep({next(sleeps)})")),),
    )
    sleeping.start()
    cancel = "SELECT count(pg_cancel_backend(pid)) FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep%'"
    until(lambda: postgres.execute(cancel)[0][0])
    sleeping.join()
    assert said[0] == "the server cancelled a statement of vbatch"
    store.close()


def test_no_error_holds_a_request(store: Store) -> None:
    """A defect's text reaches the terminal and the journal. Mutant: the driver's own text, with DETAIL."""
    take_in(store, 1)
    secret = "the patient Jane Doe"
    row = {"batch": 1, "seq": 0, "line": 1, "custom_id": secret, "body": secret.encode()}
    broken = {**row, "seq": 7, "line": None}  # the failing row is in PostgreSQL's DETAIL
    for values in ([row], [row, row], [broken]):
        with pytest.raises(StoreDefect) as caught:
            store.write(lambda connection, values=values: connection.execute(insert(REQUEST), values))  # type: ignore[misc]  # mypy: a default in a lambda
        shown = "".join(traceback.format_exception(caught.value))
        assert "request" in shown
        assert "Jane" not in shown


@pytest.fixture
def pooler(tmp_path: Path, postgres: Postgres, postgresql_url: str) -> Iterator[str]:
    """A real pgbouncer in transaction mode before the server: each transaction may meet another connection."""
    program = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")
    if program is None:
        pytest.skip("pgbouncer is not installed (apt install pgbouncer)")
    database = make_url(postgresql_url).database
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    folder = postgres.folder.parent / f"pgbouncer-{port}"
    folder.mkdir()
    configuration = folder / "pgbouncer.ini"
    configuration.write_text(
        f"[databases]\n{database} = host={postgres.folder} user=postgres dbname={database}\n"
        f"[pgbouncer]\nlisten_addr=127.0.0.1\nlisten_port={port}\nunix_socket_dir=\nauth_type=any\n"
        "pool_mode=transaction\ndefault_pool_size=3\n"
    )
    as_user = []
    if os.geteuid() == 0:  # it refuses to run as root
        folder.chmod(0o755)
        as_user = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"]
    with (tmp_path / "pgbouncer.log").open("wb") as log:
        running = subprocess.Popen([*as_user, program, configuration], stdout=log, stderr=log)
    url = f"postgresql://postgres@127.0.0.1:{port}/{database}"

    def answers() -> bool:
        try:
            psycopg.connect(url).close()
        except psycopg.OperationalError:
            return False
        return True

    until(answers)
    yield url
    running.terminate()
    running.wait()
    shutil.rmtree(folder)


def test_a_pooler_in_transaction_mode_is_a_server_like_another(pooler: str, postgres: Postgres) -> None:
    """Mutants: settings in startup options, which it refuses; named prepared statements; a session SET, which leaks."""
    database = make_url(pooler).database
    postgres.execute(f"ALTER DATABASE {database} SET synchronous_commit = off")
    with closing(Store(pooler, patience=NO_PATIENCE)) as store:
        store.prepare()
        take_in(store, 3000)

        def work() -> None:
            who = worker(store, pid=threading.get_ident() % 1_000_000)
            while leases := claim(store, who):
                queue.flush(
                    store, worker=who, results=[a for one in leases for a in answers_to(one, one.requests)]
                )

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert count(store, "result") == 3000
        durable = store.write(
            lambda connection: connection.execute(text("SHOW synchronous_commit")).scalar_one()
        )
        assert durable == "on"
        with scratch_store(pooler) as inside, closing(Store(inside, patience=NO_PATIENCE)) as trial:
            trial.prepare()
            assert count(trial, "request") == 0
    with psycopg.connect(pooler, autocommit=True, prepare_threshold=None) as another_client:
        shown = another_client.execute("SHOW lock_timeout").fetchone()
    assert shown == ("0",)
