"""The order of work on the real vLLM: how many tokens of the prompts its prefix cache serves.

Twelve prefixes with three questions each, shuffled; some six prefixes fit into the KV cache. The load of the machine
changes none of the figures.
"""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from tests.rigs.commands import Home, chat
from tests.rigs.model import ENGINE_ARGS, small_model  # noqa: F401  (a fixture)
from vbatch.engine import smollm

pytestmark = pytest.mark.vllm

MODEL = smollm.NAME
PREFIXES, QUESTIONS = 12, 3
# float32 alone, so that a length of 256 and 38 blocks of 32 tokens hold what is described above on any CPU
ENGINE = (*ENGINE_ARGS, "--dtype", "float32", "--max-model-len", "256", "--block-size", "32",
          "--num-gpu-blocks-override", "38", "--max-num-seqs", "4", "--enable-prompt-tokens-details")  # fmt: skip


def shuffled(salt: str) -> list[dict[str, Any]]:
    """Questions about documents of some 200 tokens; those of another salt share nothing with them."""
    documents = [
        f"{salt} {number}: "
        + " ".join(random.Random(f"{salt}{number}").choices(["red", "blue", "old"], k=184))
        for number in range(PREFIXES)
    ]
    lines: list[dict[str, Any]] = [
        chat(f"{salt}-{place}-{question}", f"What is {question}?", model=MODEL)
        for place in range(PREFIXES)
        for question in range(QUESTIONS)
    ]
    for line in lines:
        document = documents[int(line["custom_id"].split("-")[1])]
        line["body"]["max_tokens"] = 1
        line["body"]["messages"].insert(0, {"role": "system", "content": document})
    random.Random(1).shuffle(lines)
    return lines


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_the_order_of_work_doubles_what_the_cache_serves(home: Home, small_model: str) -> None:  # noqa: F811
    """Mutants: ``PrefixOrder.finish`` that hands the rows on as they came; ``--order`` is not handed on."""
    home.extra |= smollm.ENVIRONMENT
    configured = home.path / "config" / "vbatch"
    configured.mkdir(parents=True)
    (configured / "config.toml").write_text(
        f'[models."{MODEL}"]\npath = "{small_model}"\nargs = {json.dumps(ENGINE)}\n'
    )
    ids = {order: submitted(home, order) for order in ("prefix", "file")}
    home.run("run-worker", "--drain", "--max-inflight", "5")
    share = {order: cached(home, batch) for order, batch in ids.items()}
    assert share["prefix"] >= 0.55, share
    assert share["file"] <= 0.35, share


def submitted(home: Home, order: str) -> str:
    source = home.path / f"{order}.jsonl"
    source.write_text("".join(json.dumps(line) + "\n" for line in shuffled(order)))
    return home.run("submit", source.name, "--order", order).stdout.strip()


def cached(home: Home, batch: str) -> float:
    """The share of the prompts' tokens that the cache served, by the answers themselves."""
    answers = [json.loads(line) for line in home.run("results", batch).stdout.splitlines()]
    assert len(answers) == PREFIXES * QUESTIONS
    usages = [answer["response"]["body"]["usage"] for answer in answers]
    hits = sum((usage["prompt_tokens_details"] or {}).get("cached_tokens", 0) for usage in usages)
    return float(hits / sum(usage["prompt_tokens"] for usage in usages))
