"""What a dry run estimates: counted, and marked as estimated."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import update

from tests.cli.conftest import Cli, cli
from tests.rigs.commands import chat, chats
from vbatch import batches, config
from vbatch.batches.estimate import ModelEstimate, Sampler
from vbatch.engine import tokens
from vbatch.store.pace import Pace
from vbatch.store.tables import BATCH

__all__ = ["cli"]


def line(number: int, text: str, **fields: object) -> dict[str, object]:
    made = chat(f"r-{number}", text, model="small")
    made["body"] = {**made["body"], **fields}  # type: ignore[dict-item]
    return made


def test_the_sample_is_bounded_and_fair(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutant: the first requests are the sample."""
    monkeypatch.setitem(Sampler.add_all.__globals__, "SAMPLE_BYTES", 50_000)
    seen = Sampler()
    for number in range(3000):
        body = json.dumps({"n": 1, "at": number}).encode() + b" " * 1000
        seen.add_all([(b"", number, "", body)], "m", "/v1/completions")
    sampled = [json.loads(body)["at"] for body, _ in seen.by_model()["m"].sampled]
    assert 10 <= len(sampled) <= 50
    assert max(sampled) > 1500
    assert (seen.requests, seen.models["m"].unlimited) == (3000, 3000)


def test_with_the_model_s_own_tokenizer(cli: Cli) -> None:
    """Mutants: the template's own tokens are left out; a request that does not fit is not seen."""
    tokenizers = pytest.importorskip("tokenizers")
    folder = cli.folder / "small"
    folder.mkdir()
    words = {word: number for number, word in enumerate(["[UNK]", "one", "two"])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text('{"max_position_embeddings": 100}')
    lines = [line(1, "one two"), line(2, "one", max_tokens=20, n=2), line(3, "two " * 99, max_tokens=1)]
    for each in lines:
        each["body"]["model"] = str(folder)  # type: ignore[index]
    done = cli("submit", cli.file("p.jsonl", lines), "--dry-run", "--json")
    (found,) = done.document["estimate"]["models"]
    assert found["own_tokenizer"] is True
    assert (found["tokens_in"], found["counted"]) == (2 + 1 + 99 + 3 * 5, 3)
    assert (found["context"], found["beyond_context"]) == (100, 1)
    assert found["most_tokens_out"] == 20 * 2 + 1 + (100 - 117 // 3)
    assert found["seconds"] is None
    shown = cli("submit", "p.jsonl", "--dry-run").out
    assert "117 tokens in (its tokenizer), at most 102 out" in shown
    assert "1 request beyond its context of 100 tokens" in shown


def test_without_one_by_bytes_and_at_the_pace_that_was_measured(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is stored, and no store is made. Mutant: the time that a batch waited counts as its own."""
    file = cli.file("p.jsonl", chats(40))
    shown = cli("submit", file, "--dry-run").out.splitlines()
    assert shown[0] == "40 requests, all valid; nothing was stored"
    assert shown[1] == f"estimated for echo: {40 * 5 + 40 * 1} tokens in (by bytes), no limit of tokens out"
    assert shown[2].startswith("estimated for store and output files: ")
    assert not list(cli.folder.parent.rglob("*.db")) + list(cli.folder.parent.rglob("*.sqlite*"))
    monkeypatch.setenv("VBATCH_ECHO_LATENCY_MS", "20")
    monkeypatch.setattr("vbatch.store.pace.SHORTEST", 0.01)
    cli.submit("first.jsonl", chats(10))
    cli.drain()
    waited = dict.fromkeys(("created_at", "in_progress_at"), datetime.now(UTC) - timedelta(hours=1))
    with batches.open_store(config.load().store_url) as store:
        store.write(lambda connection: connection.execute(update(BATCH).values(waited)))
    again = cli("submit", file, "--dry-run", "--json").document["estimate"]["models"][0]
    assert again["requests_per_second"] > 1
    assert again["seconds"] == pytest.approx(40 / again["requests_per_second"])
    assert " requests/s as batch_" in cli("submit", file, "--dry-run").out


def test_texts_of_all_endpoints_are_counted() -> None:
    how = tokens.Measure(tokenizer=None, context=None)
    bodies: list[dict[str, object]] = [
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "x" * 40}, {"type": "image_url"}]}
            ]
        },
        {"prompt": "x" * 40},
        {"prompt": [1, 2, 3]},
        {"input": ["x" * 20, "y" * 19]},
        {"query": "x" * 4, "documents": ["x" * 3]},
    ]
    assert tokens.count(how, bodies) == [15, 10, 3, 10, 2]
    taken = ModelEstimate(
        model="m", requests=10, counted=1, own_tokenizer=False, tokens_in=1, most_out=None, context=None, beyond=0,
        pace=Pace(requests_per_second=2, source="worker"),
    ).duration  # fmt: skip
    assert taken is not None
    assert taken > timedelta(0)


def test_several_files(cli: Cli, tmp_path: Path) -> None:
    first, second = cli.file("a.jsonl", chats(2)), cli.file("b.jsonl", chats(3))
    shown = cli("submit", first, second, "--dry-run").out
    assert f"{first}: 2 requests, all valid\n  estimated for echo" in shown
    assert len(cli("submit", first, second, "--dry-run", "--json").document["data"]) == 2
