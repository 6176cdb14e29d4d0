"""Every way in which a line can be wrong: its code, its number, and words that say what to fix."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.rigs.lines import checked, codes, line
from vbatch.jsonl import ForeignInput, LineReader, Validator
from vbatch.jsonl.defects import SHOWN_DEFECTS
from vbatch.jsonl.formats import recognise
from vbatch.protocol import AUDIO_ENDPOINTS, ENDPOINTS

GOOD = line("first")


@pytest.mark.parametrize(
    ("bad", "code", "words"),
    [
        (b"nonsense\n", "invalid_json_line", "not JSON"),
        (b"[1, 2]\n", "invalid_json_line", "not an object"),
        (line("c").strip() + b" ,\n", "invalid_json_line", "A comma follows the object"),
        (b"{'custom_id': 'c', 'body': {'n': None}}\n", "invalid_json_line", "a Python dictionary"),
        (b'"text"\n', "invalid_json_line", "not an object"),
        (b"{} {}\n", "invalid_json_line", ""),
        (b"\xef\xbb\xbf" + line(), "invalid_json_line", "byte order mark"),
        (line().replace(b"hi", b"h\0i"), "invalid_json_line", "NUL byte (at byte"),
        (line().replace(b"hi", b"caf\xe9"), "invalid_json_line", "not UTF-8 (at byte"),
        (b'{"a": ' * 5000 + b"1" + b"}" * 5000 + b"\n", "invalid_json_line", "nested"),
        (line(custom_id=None), "missing_required_parameter", "'custom_id' is missing"),
        (line(method=None), "missing_required_parameter", "'method' is missing"),
        (line(url=None), "missing_required_parameter", "'url' is missing"),
        (line(body=None), "missing_required_parameter", "'body' is missing"),
        (line(""), "missing_required_parameter", "'custom_id' is empty"),
        (line(custom_id=7), "invalid_type", "'custom_id' must be a string"),
        (line(custom_id=7, body={"model": None}), "invalid_type", "'custom_id' must be a string"),
        (line(custom_id="a\0b"), "invalid_type", "NUL"),
        (line(method=["POST"]), "invalid_type", "'method' must be a string"),
        (line(url=1), "invalid_type", "'url' must be a string"),
        (line(body="{}"), "invalid_type", "'body' must be an object"),
        (line(body={"model": 7}), "invalid_type", "'body.model' must be a string"),
        (line(body={"model": "m", "stream": "yes"}), "invalid_type", "'body.stream'"),
        (line(method="GET"), "invalid_method", "it must be POST"),
        (line(method="post"), "invalid_method", "it must be POST"),
        (line(url="/v1/chat/completion"), "invalid_url", "/v1/chat/completions"),
        (line(body={"model": "m", "stream": True}), "unsupported_parameter", "remove 'stream'"),
        (line(body={"messages": []}), "model_not_found", "give one with -m"),
        (line(body={"model": "", "messages": []}), "model_not_found", "give one with -m"),
        (line(body={"model": None, "messages": []}), "model_not_found", "give one with -m"),
        (line("first"), "duplicate_custom_id", "already used on line 1"),
    ],
)  # fmt: skip
def test_a_bad_line(bad: bytes, code: str, words: str) -> None:
    bodies, (defect,) = checked(GOOD + b"\n" + bad + line("last"))
    assert (defect.line, defect.code) == (3, code)
    assert words in defect.message
    assert len(bodies) == (3 if code == "duplicate_custom_id" else 2)


def test_several_faults_of_a_line_are_all_told() -> None:
    bad = line(method="GET", url="/nowhere", body={"stream": True})
    assert codes(bad) == [
        (1, "invalid_method"),
        (1, "invalid_url"),
        (1, "unsupported_parameter"),
        (1, "model_not_found"),
    ]


@pytest.mark.parametrize("data", [b"", b"\n\n  \n\r\n"])
def test_an_empty_file(data: bytes) -> None:
    assert codes(data) == [(None, "empty_file")]


def test_what_is_allowed() -> None:
    """Blank lines, CRLF, no line break at the end, unknown fields, white space around a line."""
    data = b"\n  \n" + line("a").replace(b"\n", b"\r\n") + b"\t" + line("b", extra=1) + line("c").rstrip()
    bodies, defects = checked(data)
    assert defects == []
    assert len(bodies) == 3


def test_a_cut_off_line_is_called_that() -> None:
    _, (defect,) = checked(GOOD + line("second")[:40])
    assert (defect.line, defect.code) == (2, "invalid_json_line")
    assert defect.message.startswith("The last line is cut off: the file may be incomplete.")


def test_a_line_beyond_the_limit_is_skipped_and_told() -> None:
    data = GOOD + b" " * 300 + line("long", body={"model": "m", "prompt": "x" * 500}) + line("after")
    assert codes(data, limit=400, block=64) == [(2, "line_too_long")]
    assert codes(data, limit=400) == [(2, "line_too_long")]
    assert codes(line("only", body={"model": "m", "prompt": "x" * 500}).rstrip(), limit=400, block=64)[0] == (
        1,
        "line_too_long",
    )


def test_a_model_for_all_lines_makes_up_for_missing_ones() -> None:
    assert codes(line("a", body={"messages": []}) + line("b", body={"model": None}), model="mine") == []


def test_the_first_hundred_are_shown_and_all_are_counted() -> None:
    validator = Validator(model=None)
    for number in range(1, 251):
        validator.check(number, b"nonsense")
    validator.finish(cut_off=None)
    assert len(validator.defects.shown) == SHOWN_DEFECTS
    assert validator.defects.total == 250


def test_the_first_hundred_are_shown_whatever_is_found_last() -> None:
    """Mutant: the first hundred that were found; repeated ids are found at the end, by their hash."""
    lines = [
        line(f"id-{number // 2}") for number in range(1000)
    ]  # each second line repeats the one before it
    lines[600:] = [b"nonsense\n"] * 400
    _, shown = checked(b"".join(lines))
    assert [(defect.line, defect.code) for defect in shown] == [
        (number, "duplicate_custom_id") for number in range(2, 202, 2)
    ]


def test_a_file_without_line_feeds_is_called_that() -> None:
    """Mutant: 'The last line is cut off', of a file that is whole."""
    data = (line("a") + line("b") + line("c")).replace(b"\n", b"\r")
    _, (defect,) = checked(data)
    assert (defect.line, defect.code) == (1, "invalid_json_line")
    assert defect.message == (
        "The line holds carriage returns, but no line feed ends it, as on an old Mac: "
        "convert the file with tr '\\r' '\\n'."
    )


def test_bad_lines_are_told_in_the_order_of_the_file() -> None:
    data = line("a") + line("a") + b"nonsense\n" + line("a")
    assert codes(data) == [
        (2, "duplicate_custom_id"),
        (3, "invalid_json_line"),
        (4, "duplicate_custom_id"),
    ]


@pytest.mark.parametrize("url", ENDPOINTS)
def test_every_endpoint_is_accepted(url: str) -> None:
    named = {"file_url": "https://host/a.wav"} if url in AUDIO_ENDPOINTS else {}
    assert codes(line(url=url, body={"model": "m"} | named)) == []


@pytest.mark.parametrize("url", sorted(AUDIO_ENDPOINTS))
@pytest.mark.parametrize(
    ("named", "code", "words"),
    [
        ({}, "missing_required_parameter", "'body.file_url' is missing"),
        ({"file_url": None}, "invalid_type", "'body.file_url' must be a string"),
        ({"file_url": ["https://host/a"]}, "invalid_type", "'body.file_url' must be a string"),
        ({"file_url": "/home/me/a.wav"}, "invalid_value", "must begin with https:// or data:"),
        ({"file_url": "data:audio/wav;base64,A"}, "invalid_value", "not valid base64"),
        ({"file": "@a.wav"}, "unsupported_parameter", "name it in 'file_url'"),
        ({"file_url": "https://host/a", "stream": True}, "unsupported_parameter", "remove 'stream'"),
    ],
)
def test_audio_that_cannot_be_fetched(url: str, named: dict[str, object], code: str, words: str) -> None:
    """Found at ``submit``, where nothing is fetched. Mutant: the check of ``file_url`` left out."""
    good = line("good", url=url, body={"model": "m", "file_url": "https://host/a.wav"})
    _, (defect,) = checked(good + line(url=url, body={"model": "m"} | named))
    assert defect.line == 2
    assert (defect.code, words in defect.message) == (code, True), defect


def test_other_endpoints_may_have_any_file_url() -> None:
    assert codes(line(body={"model": "m", "messages": [], "file_url": 7, "file": None})) == []


def test_a_file_url_whose_slashes_are_escaped() -> None:
    """As PHP writes JSON. Mutant: the bytes are looked at, not the text."""
    good = line(url="/v1/audio/translations", body={"model": "m", "file_url": "https://host/a.wav"})
    assert codes(good.replace(b"https://host/", rb"https:\/\/host\/")) == []


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(
    bodies=st.lists(st.dictionaries(st.text(), json_values, max_size=4), min_size=1, max_size=5),
    indent=st.booleans(),
    ascii_only=st.booleans(),
    block=st.integers(1, 400),
)
def test_bodies_keep_their_bytes(
    bodies: list[dict[str, Any]], *, indent: bool, ascii_only: bool, block: int
) -> None:
    """Whatever a body holds, and wherever a block ends: what is stored is what was written."""
    separators = (" , ", " :  ") if indent else (",", ":")
    written = []
    for body in bodies:
        text = json.dumps(
            body | {"model": "m", "stream": False}, ensure_ascii=ascii_only, separators=separators
        )
        written.append(text.encode("utf-8", "surrogatepass"))
    if any(b"\xed" in text and _has_surrogate(text) for text in written):
        return
    data = b"".join(
        b'{"custom_id":"%d","method":"POST","url":"/v1/completions","body":%s}\n' % (number, text)
        for number, text in enumerate(written)
    )
    found, defects = checked(data, block=block)
    assert defects == []
    assert found == written


def _has_surrogate(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return True
    return False


@given(data=st.binary(max_size=300), position=st.integers(0, 150), block=st.integers(1, 50))
def test_no_input_is_too_strange(data: bytes, position: int, block: int) -> None:
    """Whatever bytes come: lines are accepted or reported, nothing is raised, nothing is passed over in silence."""
    mixed = GOOD[:position] + data + GOOD[position:]
    reader = LineReader(io.BytesIO(mixed), block=block)
    validator = Validator(model=None)
    accepted = 0
    if recognise(mixed[:block]) is not None:
        with pytest.raises(ForeignInput):
            list(reader)
        return
    for number, text in reader:
        known = validator.defects.total
        good = validator.check(number, text) is not None
        accepted += good
        assert good or validator.defects.total > known
    validator.finish(cut_off=reader.cut_off)
    assert accepted or validator.defects.total
    assert reader.size == len(mixed)


def test_a_model_that_is_no_name_is_refused_also_where_another_one_takes_its_place() -> None:
    """Mutant: the body's model is not read where ``-m`` names one."""
    assert codes(line(body={"model": 5, "messages": []}), model="m") == [(1, "invalid_type")]
