"""A batch behind chat: the flags of the engine, the bodies that it gets, the sequences that stay free."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.rigs.parrot import parrot
from tests.rigs.workers import settings_in
from vbatch.engine import courtesy

CHAT = "/v1/chat/completions"


def test_the_policy_is_added_where_none_is_named() -> None:
    """In any spelling. Mutant: it is added in any case, and the user's own, or its absence, is overruled."""
    few = ("--max-num-seqs", "4")
    assert courtesy.flags(few, chat=True) == ("--scheduling-policy", "priority", *few)
    assert courtesy.flags(few, chat=False) == few
    for own in (
        ("--scheduling-policy", "fcfs"),
        ("--scheduling_policy=fcfs",),
        ("--scheduling-pol", "priority"),
    ):
        assert courtesy.flags(own, chat=True) == own


@pytest.mark.parametrize(
    ("body", "priority"),
    [
        (b'{"model":"m","x":1.50}', 1000),
        (b' { "model" : "m" }', 1000),
        (b"{}", 1000),
        (b'{"model":"m","priority":-3}', 997),
        (b'{"model":"m","priority":-5000}', 1),
        (b'{"model":"m","service_tier":"priority","metadata":{"priority":"high"}}', 1000),
    ],
)
def test_bodies_get_a_priority_behind_chat(body: bytes, priority: int) -> None:
    """All else is as it was. Mutants: a second ``priority`` beside the user's; its order is lost."""
    pairs = json.loads(courtesy.behind(CHAT, body), object_pairs_hook=list)
    assert [name for name, _ in pairs].count("priority") == 1
    assert dict(pairs)["priority"] == priority
    own = json.loads(body)
    changed = json.loads(courtesy.behind(CHAT, body))
    assert {**own, "priority": priority} == changed


def test_what_has_no_such_field_is_left_alone() -> None:
    """And what is no valid body: the engine says so in its own words."""
    for url, body in (
        (CHAT, b"[1]"),
        (CHAT, b'{"priority":"high"}'),
        ("/v1/messages", b"{}"),
        ("/v2/embed", b"{}"),
    ):
        assert courtesy.behind(url, body) == body


@pytest.mark.parametrize(
    ("sequences", "settings", "limit"),
    [
        (256, {"chat": True}, 252),
        (4, {"chat": True}, 3),
        (1, {"chat": True}, 1),
        (4, {"chat": True, "chat_reserve": 3}, 1),
        (4, {"chat": True, "chat_reserve": 9}, 1),
        (4, {"chat": True, "chat_reserve": 0}, 5),
        (4, {"chat": True, "max_inflight": 2}, 2),
        (4, {"chat": True, "max_inflight": 100}, 3),
        (4, {"chat": False, "chat_reserve": 3}, 5),
    ],
)
def test_how_much_of_a_batch_runs_at_once(
    tmp_path: Path, *, sequences: int, settings: dict[str, Any], limit: int
) -> None:
    engine = parrot("m")
    engine.sequences, engine.max_inflight = sequences, sequences * 5 // 4
    assert courtesy.inflight_limit(engine, settings_in(tmp_path, **settings)) == limit
