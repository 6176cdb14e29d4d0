"""What doctor says of a server, beside a real one: it answers, is stopped, asks for no key; its key, its quota."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from pydantic import SecretStr

from tests.rigs.commands import Home
from tests.rigs.serving import served
from vbatch.batches import serving
from vbatch.config import Settings
from vbatch.config.serve import ServeSettings
from vbatch.doctor.checks import server as checks
from vbatch.doctor.facts import Facts
from vbatch.doctor.findings import Finding, Level


@pytest.fixture
def own(tmp_path: Path) -> Home:
    return Home(tmp_path, f"sqlite:///{tmp_path / 'vbatch.db'}")


def found(home: Home, quota: int | None = None) -> dict[str, Finding]:
    settings = Settings.model_construct(
        data_dir=home.path / "data" / "vbatch",
        database_url=SecretStr(home.database_url),
        serve=ServeSettings.model_construct(files_quota=quota),
    )
    facts = Facts(settings=settings)
    return {finding.id: finding for check in checks.CHECKS for finding in check.run(facts)}


def levels(findings: dict[str, Finding]) -> dict[str, Level]:
    return {name: finding.level for name, finding in findings.items()}


def test_a_server_that_answers_and_one_that_is_stopped(own: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutant: a server whose lock is held is taken for one that answers."""
    assert set(levels(found(own)).values()) == {Level.SKIP}
    monkeypatch.setattr(serving, "_PATIENCE", 2.0)
    with served(own) as server:
        findings = found(own)
        assert findings["server.running"].what == f"the server answers at {server.url}"
        assert levels(findings) == {
            "server.key": Level.SKIP,  # it has the key of the tests
            "server.running": Level.OK,
            "server.open": Level.OK,
            "server.quota": Level.OK,
        }
        server.process.send_signal(signal.SIGSTOP)
        monkeypatch.setattr(serving, "_PATIENCE", 0.2)
        silent = found(own)["server.silent"]
        assert silent.level is Level.WARN
        assert silent.what == f"the server does not answer at {server.url}"
        assert silent.commands[-1] == f"fuser -k {own.path / 'data/vbatch/files/.lock'}"
        server.process.send_signal(signal.SIGCONT)
        server.stop()
    assert found(own)["server.running"].level is Level.SKIP


def test_who_can_read_the_key_or_needs_none(own: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutants: the mode of the key file is not looked at; a server without a key is fine beside other accounts."""
    own.run("serve", "--print-key")
    assert found(own)["server.key"].level is Level.OK
    (own.path / "data" / "vbatch" / "api-key").chmod(0o640)
    assert found(own)["server.key"].level is Level.WARN
    with served(own, "--no-key"):
        monkeypatch.setattr(checks, "_other_accounts", list)
        assert found(own)["server.open"].level is Level.OK
        monkeypatch.setattr(checks, "_other_accounts", lambda: ["ann"])
        findings = found(own)
        assert findings["server.open"].level is Level.WARN
        assert "ann" in findings["server.open"].what


def test_a_quota_that_is_nearly_full(own: Home) -> None:
    """Mutant: no look at the quota."""
    with served(own) as server:
        form = b'--x\r\nContent-Disposition: form-data; name="%s"%s\r\n\r\n%s\r\n'
        parts = form % (b"purpose", b"", b"batch") + form % (b"file", b'; filename="a"', b"x" * 95)
        sent = {"content-type": "multipart/form-data; boundary=x"}
        assert server.ask("/v1/files", method="POST", body=parts + b"--x--\r\n", headers=sent)[0] == 200
        assert levels(found(own, 1000))["server.quota"] is Level.OK
        assert levels(found(own, 100))["server.quota"] is Level.WARN


def test_a_batch_that_waits_for_a_server(own: Home) -> None:
    """Mutant: a server that does not run is never missed."""
    with served(own) as server:
        form = b'--x\r\nContent-Disposition: form-data; name="%s"%s\r\n\r\n%s\r\n'
        line = b'{"custom_id":"a","method":"POST","url":"/v1/completions","body":{"model":"echo","prompt":"x"}}\n'
        parts = form % (b"purpose", b"", b"batch") + form % (b"file", b'; filename="a"', line)
        sent = {"content-type": "multipart/form-data; boundary=x"}
        file = server.json("/v1/files", method="POST", body=parts + b"--x--\r\n", headers=sent)
        wanted = {"input_file_id": file["id"], "endpoint": "/v1/completions", "completion_window": "24h"}
        server.json("/v1/batches", document=wanted)
        server.kill()
    own.run("run-worker", "--engine", "echo", "--drain")  # what was validated; the server writes the files
    finding = found(own)["server.running"]
    assert finding.level is Level.WARN
    assert "1 batch of programs cannot continue" in finding.what
