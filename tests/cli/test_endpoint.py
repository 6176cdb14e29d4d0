"""``run-worker --url``, and ``[endpoints.NAME]``: what is refused, and in which words."""

from __future__ import annotations

import pytest

from tests.rigs.commands import Home, chats
from tests.rigs.hostile import Hostile


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_what_is_wrong_is_named(home: Home) -> None:
    """Mutants: --url that an --engine vllm ignores; a key in the file."""
    cases = {
        ("--engine", "vllm", "--url", "http://a"): (2, "--url is for the engine endpoint, not for vllm"),
        ("--url", "ftp://a"): (2, "--url: it must begin with http:// or https:// and name a host"),
        ("--url", "http://me:word@a"): (2, "--url: it must hold no password"),
        ("--engine", "endpoint"): (78, "no endpoint is configured"),
        ("--url", "http://a", "--preload", "m"): (78, "the endpoint engine loads no model"),
    }
    for options, (code, words) in cases.items():
        done = home.run("run-worker", *options, check=False)
        assert (done.returncode, words in done.stderr) == (code, True), done.stderr
    config = home.path / "config" / "vbatch" / "config.toml"
    config.parent.mkdir(parents=True, exist_ok=True)
    config.write_text('[endpoints.a]\nurl = "http://a"\napi_key = "secret"\n')
    done = home.run("list", check=False)
    assert done.returncode == 78
    assert "endpoints.a.api_key is not a setting; did you mean api_key_env?" in done.stderr
    assert "secret" not in done.stderr


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_drain_through_a_url(home: Home) -> None:
    """From the command to the file. Mutant: a service or worker that needs a table in the configuration for it."""
    lines = chats(20, model="m")
    with Hostile("m") as server:
        batch_id = home.submit(lines)
        home.run("run-worker", "--url", f"{server.url}/v1", "--drain")
    assert home.batch(batch_id)["status"] == "completed"
