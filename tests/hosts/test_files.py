"""Several hosts on one PostgreSQL: who writes the files of a batch, and what the others say meanwhile."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.rigs.commands import Home, Lines, chats
from tests.rigs.hosts import REAL, WHY, Host
from tests.rigs.waiting import cpu_seconds, exit_code, until

pytestmark = pytest.mark.skipif(not REAL, reason=WHY)

ECHO = ("run-worker", "--engine", "echo", "--drain")


def hosts(tmp_path: Path, url: str) -> tuple[Host, Host, Host]:
    return Host(tmp_path, "alpha", url), Host(tmp_path, "beta", url), Host(tmp_path, "gamma", url)


def status(host: Home, batch_id: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(host.run("status", batch_id, "--json").stdout)
    return document


def test_the_submitting_host_writes_the_files(tmp_path: Path, postgresql_url: str) -> None:
    """Mutants: ``finalization.written_on`` takes every batch (the worker writes on its own disk); ``overview.left``
    counts files of other hosts (the worker never drains); ``leave_to_others`` records nothing (it stays in progress);
    ``open_store`` writes nothing at its end.
    """
    alpha, beta, gamma = hosts(tmp_path, postgresql_url)
    expected = chats(300)
    batch_id = alpha.submit(expected)
    output = alpha.path / "prompts.output.jsonl"

    beta.run(*ECHO)  # it ends, though files are missing
    found = status(beta, batch_id)
    assert (found["status"], found["files_wait_for"]) == ("finalizing", "alpha")
    assert found["request_counts"]["completed"] == 300
    assert not output.exists()
    words = f"its files wait for alpha: any vbatch command there, or: vbatch results {batch_id} -o FILE"
    assert words in gamma.run("status", batch_id).stdout
    listed = gamma.run("list")
    assert f"{batch_id}: {words}" in listed.stderr
    assert json.loads(gamma.run("list", "--json").stdout)["data"][0]["files_wait_for"] == "alpha"
    report = gamma.run("doctor", "queue", check=False).stdout
    assert f"the files of {batch_id} wait for alpha" in report
    refused = gamma.run("delete", batch_id, check=False)
    assert refused.returncode == 1
    assert "files wait for alpha" in refused.stderr
    assert not output.exists()

    gamma.run("results", batch_id, "-o", "here.jsonl")
    assert len((gamma.path / "here.jsonl").read_text().splitlines()) == 300

    listed = alpha.run("list")
    assert f"the files of {batch_id} are written: {output}" in listed.stderr
    found = status(gamma, batch_id)
    assert (found["status"], found["files_wait_for"]) == ("completed", None)
    lines = Lines.of(found)
    assert not lines.lost(expected)
    assert not lines.doubled
    assert (gamma.path / "here.jsonl").read_bytes() == output.read_bytes()


def test_submit_wait_writes_them_itself(tmp_path: Path, postgresql_url: str) -> None:
    """Mutant: ``batches.watch`` does not write what is due here (it waits for ever)."""
    alpha, beta, _gamma = hosts(tmp_path, postgresql_url)
    source = alpha.write("prompts", chats(40))
    with (
        alpha.start("submit", str(source), "--wait", log="submit.log") as submitting,
        beta.start("run-worker", "--engine", "echo"),
    ):
        assert exit_code(submitting) == 0, (alpha.path / "submit.log").read_text()
    assert len((alpha.path / "prompts.output.jsonl").read_text().splitlines()) == 40


def test_a_worker_of_that_host_writes_them_and_commands_there_leave_it_to_it(
    tmp_path: Path, postgresql_url: str
) -> None:
    """Mutant: ``due_here`` does not ask for workers of its own host (two writers), or any worker counts as one."""
    alpha, beta, _gamma = hosts(tmp_path, postgresql_url)
    batch_id = alpha.submit(chats(40))
    beta.run(*ECHO)
    with beta.start("run-worker", "--engine", "echo"):  # another host's worker is no writer
        until(lambda: "worker.ready" in beta.worker_log)
        with alpha.start("run-worker", "--engine", "echo"):
            until(lambda: f"batch.completed batch={batch_id}" in alpha.worker_log)
    assert len((alpha.path / "prompts.output.jsonl").read_text().splitlines()) == 40

    second = alpha.submit(chats(40), name="second")
    with beta.start("run-worker", "--engine", "echo"):
        until(lambda: status(beta, second)["status"] == "finalizing")
        assert "are written" in alpha.run("list").stderr
    assert status(beta, second)["status"] == "completed"


def test_a_third_host_that_waits_says_why_and_ends_if_asked_to(tmp_path: Path, postgresql_url: str) -> None:
    """Mutants: ``follow`` does not name the host; the limit does not count for files of another host."""
    alpha, beta, gamma = hosts(tmp_path, postgresql_url)
    batch_id = alpha.submit(chats(4))
    beta.run(*ECHO)
    for mode in ([], ["--json"], ["--quiet"]):
        ended = gamma.run("watch", batch_id, "--exit-status", "--blocked-limit", "1s", *mode, check=False)
        assert ended.returncode == 69, ended.stderr
        assert "wait for alpha: any vbatch command there" in ended.stderr
    with gamma.start("watch", batch_id, log="watch.log") as watching:
        until(lambda: "wait for alpha" in (gamma.path / "watch.log").read_text())
        assert watching.poll() is None
        alpha.run("status", batch_id)
        until(lambda: watching.poll() is not None, progress=lambda: cpu_seconds(watching.pid))
        assert watching.returncode == 0


def test_a_host_that_is_gone_for_good(tmp_path: Path, postgresql_url: str) -> None:
    """A renamed host is another one; the answers are taken elsewhere, and the batch is given up by name."""
    alpha, beta, _gamma = hosts(tmp_path, postgresql_url)
    batch_id = alpha.submit(chats(4))
    beta.run(*ECHO)
    beta.run("results", batch_id, "-o", "answers.jsonl")
    beta.run("delete", "--force", batch_id)
    assert len((beta.path / "answers.jsonl").read_text().splitlines()) == 4
    assert batch_id not in beta.run("list", "--quiet").stdout


def test_a_folder_that_refuses_is_named_and_hinders_no_command(tmp_path: Path, postgresql_url: str) -> None:
    """Mutants: the OSError ends the command; root writes into the folder of another user."""
    alpha, beta, _gamma = hosts(tmp_path, postgresql_url)
    (alpha.path / "out").mkdir()
    batch_id = alpha.submit(chats(4), "-o", str(alpha.path / "out" / "answers.jsonl"))
    beta.run(*ECHO)
    (alpha.path / "out").rmdir()
    (alpha.path / "out").write_text("a file now")
    listed = alpha.run("list")
    assert f"{batch_id} only lacks its files" in listed.stderr
    (alpha.path / "out").unlink()
    (alpha.path / "out").mkdir()
    os.chown(alpha.path / "out", 1234, 1234)
    assert "files" not in alpha.run("list").stderr
    os.chown(alpha.path / "out", 0, 0)
    assert f"the files of {batch_id} are written" in alpha.run("list").stderr


def test_a_batch_without_a_host_and_a_sqlite_file_are_written_by_any_worker(
    tmp_path: Path, postgresql_url: str
) -> None:
    """Mutants: ``written_on`` leaves batches without a host to nobody; it asks for the host in a SQLite file too."""
    alpha, beta, _gamma = hosts(tmp_path, postgresql_url)
    old = alpha.submit(chats(4))
    with psycopg.connect(postgresql_url, autocommit=True) as connection:
        connection.execute("UPDATE batch SET host = NULL")
    beta.run(*ECHO)
    assert status(beta, old)["status"] == "completed"

    alpha.database_url = beta.database_url = f"sqlite:///{tmp_path}/shared/vbatch.db"
    new = alpha.submit(chats(4), name="file")
    beta.run(*ECHO)
    assert status(alpha, new)["status"] == "completed"
