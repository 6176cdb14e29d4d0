"""What vbatch reads of an answer, and the lines that it writes of it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vbatch.answers import CUT_OFF, Facts, facts_of
from vbatch.protocol import answer_line, no_answer_line


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


@given(text=st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from('\u2028\u2029\x85\\"u')))
def test_no_reader_cuts_a_line_and_its_value_stays(text: str) -> None:
    """Mutant: one of the three left as it is; one escaped twice."""
    body = json.dumps({text: [text]}, ensure_ascii=False).encode()
    lines = [
        answer_line(line_id="l", custom_id=text, status_code=200, request_id="r", body=body),
        no_answer_line(line_id="l", custom_id=text, code="c", message=text),
    ]
    for line in lines:
        (only,) = line.decode().splitlines()
        assert json.loads(only)["custom_id"] == text
    assert json.loads(lines[0])["response"]["body"] == {text: [text]}
    assert json.loads(lines[1])["error"]["message"] == text
