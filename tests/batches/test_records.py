"""The flat record of a finished request, on both databases, and of answers as engines give them."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from tests.rigs.commands import chat, chats
from tests.rigs.docs import DOCS, between
from tests.rigs.queued import queued
from tests.rigs.workers import drain
from vbatch import batches
from vbatch.batches import Record, RecordStatus
from vbatch.store import Store
from vbatch.tabular.answers import Said, error_of, said
from vbatch.tabular.prompts import messages_of, prompt_of, schema_of


def test_records_of_two_models_in_file_order(store: Store, tmp_path: Path) -> None:
    """With what was asked of each; one that was cancelled too. Mutant: results joined to the request beside them."""
    lines = [*chats(600), chat("bad", "no", echo="error400")]
    batch = queued(store, tmp_path, lines)
    drain(batch.url, tmp_path)
    found = list(batches.records(store, batch.id))
    assert [record.custom_id for record in found] == [*(f"r-{n}" for n in range(600)), "bad"]
    assert all(record.prompt == record.answer == record.custom_id for record in found[:-1])
    assert [record.line for record in found] == list(range(1, 602))
    assert (found[-1].status, found[-1].error_code, found[-1].model) == (
        RecordStatus.FAILED,
        "http_400",
        "echo",
    )
    waiting = queued(store, tmp_path, chats(3, prefix="w"), name="waiting")
    assert list(batches.records(store, waiting.id)) == []
    batches.cancel(store, waiting.id)
    (first, *_) = batches.records(store, waiting.id)
    assert (first.prompt, first.error_code, first.attempts) == ("w-0", "batch_cancelled", 0)


def test_the_record_is_documented() -> None:
    """Every field once, in the order of the columns."""
    rows = between((DOCS / "tables.md").read_text(), "record").splitlines()
    named = [row.split("`")[1] for row in rows if row.startswith("| `")]
    assert named == [field.name for field in fields(Record)]


ASKED = {"role": "user", "content": "a"}
TEXT = {"type": "text", "text": "a"}
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}


@pytest.mark.parametrize(
    ("url", "answer", "expected"),
    [
        (
            "/v1/chat/completions",
            {"choices": [{"message": {"content": "a", "reasoning": "b"}, "finish_reason": "stop"}]},
            Said(text="a", reasoning="b", finish_reason="stop"),
        ),
        (
            "/v1/chat/completions",
            {"choices": [{"message": {"content": None, "tool_calls": [CALL]}, "finish_reason": "tool_calls"}]},
            Said(tool_calls=json.dumps([CALL], separators=(",", ":")), finish_reason="tool_calls"),
        ),
        (
            "/v1/chat/completions",
            {"choices": [{"message": {"content": text}, "finish_reason": "stop"} for text in ("a", None)]},
            Said(text='["a",null]', finish_reason="stop"),
        ),
        (
            "/v1/responses",
            {
                "output": [
                    {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "hm"}]},
                    {"type": "message", "content": [{"type": "output_text", "text": "yes"}]},
                ],
                "status": "incomplete",
                "incomplete_details": {"reason": "max_output_tokens"},
            },
            Said(text="yes", reasoning="hm", finish_reason="max_output_tokens"),
        ),
        (
            "/v1/messages",
            {
                "content": [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "yes"}],
                "stop_reason": "end_turn",
            },
            Said(text="yes", reasoning="hm", finish_reason="end_turn"),
        ),
        ("/classify", {"data": [{"label": "good", "probs": [0.1, 0.9]}]}, Said(text="good")),
        ("/v1/audio/transcriptions", {"text": "hello", "usage": {}}, Said(text="hello")),
        ("/v2/embed", {"embeddings": {"float": [[1.0, 2.0]]}}, Said(embedding=[1.0, 2.0])),
        ("/v1/embeddings", {"data": [{"embedding": "AACAPw=="}]}, Said(text="AACAPw==")),
        ("/pooling", {"data": [{"data": [[1]]}]}, Said(text='{"data":[{"data":[[1]]}]}')),
        ("/tokenize", {"count": 2, "tokens": [1, 2]}, Said(text='{"count":2,"tokens":[1,2]}')),
    ],
)  # fmt: skip
def test_what_answers_say(url: str, answer: Any, expected: Said) -> None:
    assert said(url, json.dumps(answer).encode()) == expected


def test_half_a_surrogate_pair_becomes_a_question_mark() -> None:
    """JSON may hold one, a file of UTF-8 may not. Mutant: an answer of a broken emoji ends the whole table."""
    body = rb'{"choices":[{"message":{"content":"a\ud83d"},"finish_reason":"stop"}]}'
    assert said("/v1/chat/completions", body).text == "a?"


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"error": {"code": 400, "message": "no"}}, (None, "no")),
        ({"error": {"code": "bad_request", "message": "no"}}, ("bad_request", "no")),
        ({"error": "no"}, (None, "no")),
        ({"detail": [1]}, (None, '{"detail":[1]}')),
        (None, (None, None)),
    ],
)
def test_what_errors_say(body: Any, expected: tuple[str | None, str | None]) -> None:
    assert error_of(json.dumps(body).encode()) == expected


@pytest.mark.parametrize(
    ("body", "prompt", "roles"),
    [
        ({"messages": [ASKED, {"role": "assistant", "content": "b"}]}, "a", "user assistant"),
        ({"messages": [{"role": "user", "content": [TEXT, {"type": "image_url"}]}]}, "a", "user"),
        ({"system": "s", "messages": [ASKED]}, "a", "system user"),
        ({"instructions": "s", "input": "a"}, "a", "system user"),
        ({"input": [ASKED]}, "a", "user"),
        ({"prompt": [1, 2]}, "[1,2]", None),
        ({"query": "a", "documents": ["b"]}, "a", None),
        ({"file_url": "https://x"}, "https://x", None),
        ({}, None, None),
    ],
)  # fmt: skip
def test_what_was_asked(body: Any, prompt: str | None, roles: str | None) -> None:
    encoded = json.dumps(body).encode()
    messages = messages_of(encoded)
    assert prompt_of(encoded) == prompt
    assert (None if messages is None else " ".join(each["role"] for each in messages)) == roles


@pytest.mark.parametrize(
    "body",
    [
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "x", "schema": {"type": "object"}},
            }
        },
        {"text": {"format": {"type": "json_schema", "schema": {"type": "object"}}}},
        {"structured_outputs": {"json": {"type": "object"}}},
    ],
)
def test_the_schema_of_a_request(body: Any) -> None:
    assert json.loads(schema_of(json.dumps(body).encode()) or b"null") == {"type": "object"}
    assert schema_of(b'{"response_format": {"type": "text"}}') is None
    assert schema_of(b'{"response_format": 7}') is None
