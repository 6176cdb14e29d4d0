"""Fields that the engine ignores are named, with what to use in their place; the table says what vLLM itself says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.rigs.commands import Home, chat
from vbatch.engine import fields
from vbatch.engine.ignored import Ignored


@pytest.fixture
def database_url(tmp_path: Path) -> str:
    """A file alone: what differs between databases is tested in tests/store."""
    return f"sqlite:///{tmp_path / 'vbatch.db'}"


CHAT = "/v1/chat/completions"
BODY = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}

# What a body has beside model and messages, and which of it is ignored with which words.
BODIES: dict[str, tuple[dict[str, Any], dict[str, str | None]]] = {
    "nothing": ({}, {}),
    "all known": (
        {"max_tokens": 5, "temperature": 0, "seed": 1, "structured_outputs": {"choice": ["a"]}},
        {},
    ),
    "misspelt": ({"presense_penalty": 1}, {"presense_penalty": "did you mean presence_penalty?"}),
    "removed": ({"guided_choice": ["a"]}, {"guided_choice": 'use "structured_outputs": {"choice": […]}'}),
    "of the client": (
        {"extra_body": {"top_k": 5}},
        {"extra_body": "put its fields at the top of the body: only OpenAI's client unpacks it"},
    ),
    "older": ({"best_of": 3}, {"best_of": 'use "n"'}),
    "streaming": ({"stream_options": {}}, {"stream_options": "a batch does not stream: remove it"}),
    "without effect here": (
        {"use_beam_search": True},
        {"use_beam_search": "beam search works at /v1/completions"},
    ),
    "of no kind": ({"foo": 1}, {"foo": None}),
    "nested": (
        {"structured_outputs": {"choice": ["a"], "disable_any_white_space": True}},
        {"structured_outputs.disable_any_white_space": "did you mean disable_any_whitespace?"},
    ),
}


def found(bodies: list[dict[str, Any]], url: str = CHAT) -> dict[str, tuple[int, str | None]]:
    ignored = Ignored(fields.table(fields.newest()))
    for body in bodies:
        ignored.look(url, {name: msgspec.Raw(json.dumps(value).encode()) for name, value in body.items()})
    return {each.field: (each.lines, each.hint) for each in ignored.fields}


@pytest.mark.parametrize(("more", "expected"), BODIES.values(), ids=BODIES)
def test_what_is_ignored_is_named_with_the_remedy(
    more: dict[str, Any], expected: dict[str, str | None]
) -> None:
    assert found([BODY | more]) == {path: (1, words) for path, words in expected.items()}


def test_lines_are_counted_once_for_each_field() -> None:
    """Mutant: a memory of shapes that counts a shape once."""
    assert found([BODY | {"foo": 1}] * 3 + [BODY] * 4)["foo"] == (3, None)


def test_a_field_of_another_endpoint_is_unknown_here() -> None:
    assert "messages" in found([BODY], "/v1/completions")
    assert found([{"model": "m", "prompt": "x", "use_beam_search": True}], "/v1/completions") == {}
    assert found([{"model": "m", "input": "x", "dimensions": 3}], "/v1/embeddings") == {}
    assert found([{"what": 1}], "/an/endpoint/of/another/version") == {}


def test_random_names_do_not_fill_the_memory() -> None:
    assert len(found([BODY | {f"name-{number}": 1} for number in range(500)])) == 100


def test_submit_names_them_and_strict_refuses_them(home: Home) -> None:
    """Mutants: no warning; --strict that only warns; the echo engine judged by vLLM's table."""
    lines = [chat(f"r-{number}", "x", model="m") for number in range(3)]
    for line in lines[:2]:
        line["body"] |= {"guided_choice": ["a", "b"]}  # type: ignore[operator]  # a document
    source = home.write("prompts", lines)
    done = home.run("submit", source)
    assert "warning: guided_choice is ignored by the engine, in 2 lines: use" in done.stderr
    document = home.batch(done.stdout.strip())
    assert document["ignored"] == [
        {"field": "guided_choice", "lines": 2, "hint": 'use "structured_outputs": {"choice": […]}'}
    ]
    assert "guided_choice is ignored" in home.run("status", "last").stdout
    refused = home.run("submit", source, "-o", "other.jsonl", "--strict", check=False)
    assert refused.returncode == 3
    assert "'guided_choice'" in refused.stderr
    assert len(home.run("list", "-q").stdout.split()) == 1
    assert "ignored" not in home.run("submit", home.write("echo", [chat("a", "x", echo="slow")])).stderr


def test_a_field_beside_the_body_is_named(home: Home) -> None:
    """A person's own notes there are not. Mutant: fields beside the body that are not looked at."""
    lines = [chat(f"r-{number}", "x", model="m") for number in range(3)]
    for line in lines[:2]:
        line |= {"max_tokens": 5, "note": "mine"}
    source = home.write("prompts", lines)
    done = home.run("submit", source)
    assert 'warning: max_tokens is ignored by the engine, in 2 lines: put it into "body"' in done.stderr
    assert home.batch(done.stdout.strip())["ignored"] == [
        {"field": "max_tokens", "lines": 2, "hint": 'put it into "body"'}
    ]
    refused = home.run("submit", source, "-o", "other.jsonl", "--strict", "--json", check=False)
    assert refused.returncode == 3
    errors = json.loads(refused.stdout)["error"]["errors"]
    assert [(each["line"], each["param"]) for each in errors["data"]] == [
        (1, "max_tokens"),
        (2, "max_tokens"),
    ]


def test_a_table_of_a_newer_version_is_used(home: Home) -> None:
    """Which a worker has written after a load."""
    home.state_dir.mkdir(parents=True)
    table = {"vllm": "9.9.9", "endpoints": {CHAT: {"model": None, "messages": None, "brand_new": None}}}
    (home.state_dir / "vllm-9.9.9.json").write_text(json.dumps(table))
    line = chat("a", "x", model="m")
    line["body"] |= {"brand_new": 1, "max_tokens": 3}  # type: ignore[operator]  # a document
    home.run("submit", home.write("prompts", [line]))
    assert [each["field"] for each in home.batch("last")["ignored"]] == ["max_tokens"]  # type: ignore[attr-defined]


@pytest.mark.vllm
def test_the_table_says_what_vllm_says() -> None:
    """Each body is validated by vLLM's own model, which keeps what it does not know apart."""
    bodies = [BODY | more for more, _ in BODIES.values() if "stream_options" not in more]
    code = (
        "import json, sys\n"
        "from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest as Request\n"
        "print(json.dumps([sorted(Request(**body).model_extra or ()) for body in json.load(sys.stdin)]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], input=json.dumps(bodies), capture_output=True, text=True, check=True
    )
    told = json.loads(done.stdout.splitlines()[-1])
    known_without_effect = {"use_beam_search"}
    for body, extra in zip(bodies, told, strict=True):
        top = {path for path in found([body]) if "." not in path} - known_without_effect
        assert sorted(top) == extra, body
    assert sum(map(bool, told)) >= 5


@pytest.mark.vllm
def test_the_table_is_that_of_the_installed_vllm() -> None:
    """Mutant: a table that was written by hand, or by an earlier version."""
    code = "import json; from vbatch.engine.fields import write; print(json.dumps([write.version(), write.trees()]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    version, trees = json.loads(done.stdout.splitlines()[-1])
    assert fields.table(fields.path_of(version)) == trees
