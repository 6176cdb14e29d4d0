"""The self-test on both kinds of store: it really kills, really counts, and leaves nothing behind."""

from __future__ import annotations

import json

import pytest

from tests.rigs.commands import Home
from tests.rigs.stores import mostly_sqlite as database_url  # noqa: F401  (a fixture)
from vbatch.doctor import selftest


@pytest.mark.timeout(1200)
def test_selftest_kills_and_loses_nothing(home: Home) -> None:
    for seconds in (
        6,
        40,
        160,
    ):  # a slow machine's workers need longer to save something, which a kill waits for
        trial = json.loads(home.run("selftest", "--for", f"{seconds}s", "--json").stdout)
        assert trial["passed"] is True
        if trial["kills"]:
            break
    assert trial["kills"] >= 1
    assert (trial["lost"], trial["doubled"], trial["wrong"]) == (0, 0, 0)
    assert not list(home.path.rglob("vbatch-selftest-*"))
    assert home.run("list", "-q").stdout == ""


def test_a_lost_and_a_doubled_request_are_seen(tmp_path) -> None:  # type: ignore[no-untyped-def]
    """Mutant: selftest._count returns zeros."""
    lines = [
        {"custom_id": str(n), "response": {"body": {"choices": [{"message": {"content": f"answer {n}"}}]}}}
        for n in range(selftest.REQUESTS)
    ]
    lines[5] = lines[6]
    lines[7]["response"]["body"]["choices"][0]["message"]["content"] = "answer 8"  # type: ignore[index]
    path = tmp_path / "output.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert selftest._count(path, tmp_path / "none.jsonl") == (1, 1, 1)
