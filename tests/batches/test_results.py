"""What a batch gives back is the Batch API's own: objects and lines that the ``openai`` package takes."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from openai.types import Batch, ErrorObject
from openai.types.chat import ChatCompletion

from tests.rigs.commands import Home, chat, chats
from tests.rigs.waiting import until
from vbatch.store import Store, catalog, results

LINE_KEYS = ["id", "custom_id", "response", "error"]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def test_objects_and_lines_are_those_of_the_batch_api(home: Home) -> None:
    asked = [chat("bad-0", "no", echo="error400"), *chats(3), chat("bad-1", "no", echo="error400")]
    submitted = Batch.model_validate_json(
        home.run("submit", home.write("a", asked), "--json").stdout, strict=True
    )
    assert (submitted.status, submitted.object, submitted.endpoint) == (
        "in_progress",
        "batch",
        "/v1/chat/completions",
    )
    assert (submitted.output_file_id, submitted.error_file_id) == (None, None)
    home.run("run-worker", "--engine", "echo", "--drain")

    ended = Batch.model_validate_json(home.run("status", submitted.id, "--json").stdout, strict=True)
    assert ended.status == "completed"
    assert ended.output_file_id is not None
    assert ended.error_file_id is not None
    assert ended.request_counts is not None
    assert ended.request_counts.model_dump() == {"total": 5, "completed": 3, "failed": 2}

    good, errors = lines(home.path / "a.output.jsonl"), lines(home.path / "a.errors.jsonl")
    assert [line["custom_id"] for line in good] == ["r-0", "r-1", "r-2"]
    assert [line["custom_id"] for line in errors] == ["bad-0", "bad-1"]
    for line in (*good, *errors):
        assert list(line) == LINE_KEYS
        assert list(line["response"]) == ["status_code", "request_id", "body"]
        assert line["error"] is None
        assert line["response"]["request_id"]
    assert len({line["id"] for line in (*good, *errors)}) == 5
    for line in good:
        assert line["response"]["status_code"] == 200
        answer = ChatCompletion.model_validate(line["response"]["body"])
        assert answer.choices[0].message.content == line["custom_id"]
    for line in errors:
        assert line["response"]["status_code"] == 400
        fault = line["response"]["body"]["error"]
        ErrorObject.model_validate({**fault, "code": str(fault["code"])})
        assert fault["message"]


def test_what_never_got_an_answer_has_an_error_and_no_response(home: Home) -> None:
    batch_id = home.submit(chats(3), name="a")
    home.run("cancel", batch_id)
    assert Batch.model_validate(home.batch(batch_id)).status == "cancelled"
    for line in lines(home.path / "a.errors.jsonl"):
        assert list(line) == LINE_KEYS
        assert line["response"] is None
        assert line["error"]["code"] == "batch_cancelled"
        assert line["error"]["message"]


def test_an_answer_that_is_not_json_is_an_error_of_its_request_alone(home: Home) -> None:
    """As vLLM answers for embeddings as bytes. Mutant: such a body is recorded, and no file can be written."""
    batch_id = home.submit([chat("odd", "x", echo="bytes"), chat("fine", "x")], name="a")
    home.run("run-worker", "--engine", "echo", "--drain")
    assert Batch.model_validate(home.batch(batch_id)).status == "completed"
    (line,) = lines(home.path / "a.errors.jsonl")
    assert (line["custom_id"], line["error"]["code"]) == ("odd", "answer_not_json")
    assert "3 bytes that are not JSON" in line["error"]["message"]
    (line,) = lines(home.path / "a.output.jsonl")
    assert line["custom_id"] == "fine"


def test_a_retry_is_a_new_batch_of_the_same_bytes(home: Home) -> None:
    odd = b'{"custom_id":"odd","method":"POST","url":"/v1/chat/completions","body":%s}\n'
    body = (
        rb'{ "model" : "echo","metadata":{"vbatch_echo":"error400"},  '
        rb'"messages":[{"role":"user","content":"\u00e9"}]}'
    )
    (home.path / "a.jsonl").write_bytes(odd % body + json.dumps(chat("fine", "x")).encode())
    first = home.run("submit", "a.jsonl", "-q").stdout.strip()
    home.run("run-worker", "--engine", "echo", "--drain")
    again = Batch.model_validate_json(home.run("retry", first, "--json").stdout, strict=True)
    assert again.id != first
    assert again.metadata == {"retry_of": first}
    assert again.request_counts is not None
    assert again.request_counts.total == 1
    home.run("run-worker", "--engine", "echo", "--drain")
    with closing(Store(home.database_url)) as store:
        (stored,) = results.failed_requests(store, pk=catalog.find(store, again.id).pk)
    assert stored.body == body
    (line,) = lines(home.path / "a.errors.retry.jsonl")
    assert line["custom_id"] == "odd"
    assert not (home.path / "a.output.retry.jsonl").exists()


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_results_at_any_time_are_whole_lines_in_file_order(home: Home) -> None:
    asked = [chat(f"r-{n}", "x" * 5000) for n in range(600)] + [chat("last", "x", echo="slow:4")]
    batch_id = home.submit(asked)
    with home.worker("--engine", "echo", "--drain", VBATCH_ECHO_LATENCY_MS="300") as worker:
        until(lambda: home.finished(batch_id) > 0)
        while worker.poll() is None:
            out = home.run("results", batch_id).stdout
            assert out.endswith("\n") or not out
            numbers = [int(json.loads(line)["custom_id"].removeprefix("r-")) for line in out.splitlines()
                       if '"last"' not in line]  # fmt: skip
            assert numbers == sorted(set(numbers))
    assert home.run("results", batch_id).stdout == (home.path / "prompts.output.jsonl").read_text()
