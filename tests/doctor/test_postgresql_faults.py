"""What PostgreSQL can refuse beside the usual, and that no part of a URL shows a password."""

from __future__ import annotations

import signal

import psycopg
import pytest

from tests.doctor.test_store import SECRET, examined, failure
from tests.rigs.postgres import Postgres
from tests.rigs.waiting import until
from vbatch import config
from vbatch.doctor import report
from vbatch.doctor.diagnosis import Diagnosis
from vbatch.doctor.findings import exit_code
from vbatch.errors import ExitCode
from vbatch.store import Store


def test_a_server_that_shuts_down(own_postgres: Postgres) -> None:
    """It waits for its clients, and lets nobody in."""
    assert own_postgres._process is not None
    with psycopg.connect(own_postgres.url()):
        own_postgres._process.send_signal(signal.SIGTERM)
        until(lambda: examined(own_postgres.url())[0].passing)
        findings = examined(own_postgres.url())
    assert findings[0].id == "store.stopping"
    assert exit_code(findings) is ExitCode.STORE_UNREACHABLE


def test_a_user_who_may_connect_and_not_make_tables(own_postgres: Postgres) -> None:
    """The rule since PostgreSQL 15. Mutant: calling the database empty and well; the first batch would fail."""
    own_postgres.execute("CREATE ROLE bob LOGIN")
    own_postgres.execute("CREATE DATABASE empty")
    url = f"postgresql://bob@/empty?host={own_postgres.folder}"
    found = failure(url)
    assert (found.id, found.exit_code) == ("store.forbidden", ExitCode.MISCONFIGURED)
    own_postgres.execute("GRANT CREATE ON SCHEMA public TO bob", "empty")  # as the finding's command does
    assert exit_code(examined(url)) is ExitCode.DONE


def test_a_user_who_may_read_and_not_write(own_postgres: Postgres) -> None:
    """Mutant: looking at the schema's revision alone."""
    store = Store(own_postgres.url())
    store.prepare()
    store.close()
    own_postgres.execute("CREATE ROLE bob LOGIN")
    own_postgres.execute("GRANT SELECT ON ALL TABLES IN SCHEMA public TO bob")
    url = f"postgresql://bob@/postgres?host={own_postgres.folder}"
    found = failure(url)
    assert (found.id, found.exit_code) == ("store.forbidden", ExitCode.MISCONFIGURED)
    assert "batch, blocked, chunk, event, file, process, request, result, worker" in found.what
    own_postgres.execute("GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO bob")
    assert exit_code(examined(url)) is ExitCode.DONE


@pytest.mark.parametrize(
    ("url", "finding"),
    [
        (f"postgresql://ann@/d?host=/nowhere&password={SECRET}", "store.away"),
        (f"postgresql://ann@/d?host=/nowhere&sslpassword={SECRET}", "store.away"),
        (f"postgresql://ann:{SECRET}@/d?host=/nowhere&sslmode=maybe", "store.url"),
        (f"postgresql://ann:p@{SECRET}@127.0.0.1:1/d", "store.url"),
        (f"postgresql://ann:p@h/{SECRET}@127.0.0.1:1/d", "store.url"),
        (f"postgresql://ann:{SECRET}@127.0.0.1/d?host=/nowhere&port=many", "store.url"),
        (f"postgresql://ann:{SECRET}@127.0.0.1:99999/d", "store.url"),
        (f"postgresql://ann:{SECRET}@h1:1,h2:2/d", "store.url"),
    ],
)
def test_no_part_of_a_url_shows_a_password(url: str, finding: str) -> None:
    """``examined`` looks for it in the findings. Mutant: hiding what stands before the first @ alone."""
    assert failure(url).id == finding
    settings = config.load(database_url=url)
    assert SECRET not in "\n".join(report._sections(Diagnosis.of(examined(url), story=None), settings))
