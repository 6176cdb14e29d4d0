"""submit --dedupe: identical requests run once; each has its line, as without it."""

from __future__ import annotations

import json
from typing import Any

from tests.cli.conftest import Cli
from tests.rigs.commands import chat


def test_the_files_are_the_same_as_without(cli: Cli) -> None:
    lines = []
    for number in range(600):
        line = chat(f"r-{number}", f"text {number % 7}", echo="error400" if number % 7 == 3 else None)
        line["body"] = {**line["body"], "temperature": 0}  # type: ignore[dict-item]
        lines.append(line)
    lines.append(chat("warm", "text 0"))
    source = cli.file("p.jsonl", lines)
    checked = cli("submit", source, "--dedupe", "--dry-run").out
    assert "601 requests, all valid, 593 identical to others" in checked
    said = cli("submit", source, "--dedupe", "-o", "once.jsonl").err
    assert "593 requests identical to others" in said
    shown = cli("status", "last")
    assert "593 identical to others" in shown.out
    assert cli("status", "last", "--json").document["duplicates"] == 593
    cli("submit", source, "-o", "all.jsonl", "-q")
    cli.drain()
    for name in ("once.jsonl", "once.errors.jsonl"):
        made = [json.loads(line) for line in (cli.folder / name).read_text().splitlines()]
        plain = [
            json.loads(line) for line in (cli.folder / name.replace("once", "all")).read_text().splitlines()
        ]
        assert [line["custom_id"] for line in made] == [line["custom_id"] for line in plain]
        assert [_text(line) for line in made] == [_text(line) for line in plain]
    assert cli("list", "--json").document["data"][1]["request_counts"] == {
        "total": 601,
        "completed": 515,
        "failed": 86,
    }


def test_metadata_of_the_user_change_nothing(cli: Cli) -> None:
    """Mutant: the key that marks such a batch is one that a user may set."""
    lines = [chat(f"r-{n}", "x") for n in range(2)]
    cli.submit("p.jsonl", lines, "--metadata", "dedupe=true")
    status = cli("status", "last", "--json").document
    assert (status["metadata"], status.get("duplicates")) == ({"dedupe": "true"}, 0)
    refused = cli("submit", "p.jsonl", "--metadata", "vbatch_dedupe=true", "-o", "b.jsonl")
    assert (refused.code, "metadata 'vbatch_dedupe' is set by vbatch itself" in refused.err) == (2, True)


def _text(line: dict[str, Any]) -> object:
    body = line["response"]["body"]
    return body.get("error") or [choice["message"]["content"] for choice in body["choices"]]
