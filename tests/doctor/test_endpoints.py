"""What doctor says of other servers: a real one that answers, refuses the key, lists no models, or is not there."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.rigs.hostile import Hostile
from vbatch import config
from vbatch.doctor.checks import endpoints
from vbatch.doctor.facts import Facts
from vbatch.doctor.findings import Finding, Level


def findings(table: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[Finding]:
    """Look, with this configuration."""
    file = folder / "config.toml"
    file.write_text(table)
    monkeypatch.setenv("VBATCH_CONFIG", str(file))
    return list(endpoints._endpoints(Facts(settings=config.load())))


def test_each_server_gets_its_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutants: a revoked key that is fine as long as the server answers; a key in what is printed."""
    monkeypatch.setenv("KEY", "the-secret")
    with Hostile("m", "n", key="the-secret") as good, Hostile(key="another") as locked, Hostile() as bare:
        bare.no_list = True
        table = f"""engine = "endpoint"
            [endpoints.good]
            url = "{good.url}/v1"
            api_key_env = "KEY"
            [endpoints.locked]
            url = "{locked.url}"
            api_key_env = "KEY"
            [endpoints.bare]
            url = "{bare.url}"
            [endpoints.named]
            url = "{bare.url}"
            models = ["m"]
            [endpoints.away]
            url = "http://127.0.0.1:9"
            [endpoints.keyless]
            url = "{good.url}"
            api_key_env = "NO_SUCH_KEY"
            """
        found = findings(table, tmp_path, monkeypatch)
    seen = [(each.id, each.level) for each in found]
    assert seen == [
        ("endpoint.reachable", Level.OK),
        ("endpoint.blocked", Level.FAIL),
        ("endpoint.blocked", Level.FAIL),
        ("endpoint.reachable", Level.OK),
        ("endpoint.reachable", Level.WARN),
        ("endpoint.blocked", Level.FAIL),
    ]
    assert found[0].what == f"good ({good.url}) answers; it has 2 models"
    assert "refuses the key (HTTP 401)" in found[1].what
    assert found[2].what == f"bare ({bare.url}) has no list of its models (/v1/models)"
    assert found[4].what == "away (http://127.0.0.1:9) cannot be reached: connection refused"
    assert found[4].commands == ("curl -i http://127.0.0.1:9/v1/models",)
    assert found[5].commands == ("export NO_SUCH_KEY=…",)
    assert "the-secret" not in repr(found)


def test_nothing_is_said_where_no_server_is_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutant: a problem for everyone who has no endpoint, or not the extra."""
    (finding,) = findings("", tmp_path, monkeypatch)
    assert finding.level is Level.SKIP
    monkeypatch.setattr("vbatch.engine.endpoint.configured.installed", lambda: False)
    (finding,) = findings('engine = "endpoint"', tmp_path, monkeypatch)
    assert (finding.id, finding.level, finding.exit_code) == ("endpoint.missing", Level.FAIL, 78)
    assert finding.commands == ("pip install 'vbatch[endpoint]'",)
