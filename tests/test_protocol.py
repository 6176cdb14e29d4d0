"""What vbatch reads of an answer: token counts, and why the engine stopped."""

from __future__ import annotations

import json
from typing import Any

import pytest

from vbatch.protocol import CUT_OFF, Facts, facts_of


@pytest.mark.parametrize(
    ("answer", "facts"),
    [
        (
            {
                "choices": [{"finish_reason": "stop"}],
                "usage": {
                    "prompt_tokens": 9,
                    "completion_tokens": 3,
                    "prompt_tokens_details": {"cached_tokens": 8},
                },
            },
            Facts(prompt_tokens=9, completion_tokens=3, cached_tokens=8, finish="stop"),
        ),
        ({"choices": [{"finish_reason": "stop"}, {"finish_reason": "length"}]}, Facts(finish=CUT_OFF)),
        ({"choices": [{"finish_reason": None}], "usage": {"prompt_tokens_details": None}}, Facts()),
        (
            {"status": "completed", "usage": {"input_tokens": 9, "input_tokens_details": {"cached_tokens": 4}}},
            Facts(prompt_tokens=9, cached_tokens=4, finish="completed"),
        ),
        (
            {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}},
            Facts(finish=CUT_OFF),
        ),
        ({"stop_reason": "max_tokens", "usage": {"output_tokens": 3}}, Facts(completion_tokens=3, finish=CUT_OFF)),
        ({"object": "list", "data": []}, Facts()),
        ([1, 2], Facts()),
        ({"choices": "another shape"}, Facts()),
    ],
)  # fmt: skip
def test_what_an_answer_says_of_itself(answer: Any, facts: Facts) -> None:
    """Of chat completions, responses, messages and what says nothing."""
    assert facts_of(json.dumps(answer).encode()) == facts


def test_what_is_not_json_is_refused() -> None:
    with pytest.raises(ValueError, match="JSON"):
        facts_of(b"\x00\x01")
