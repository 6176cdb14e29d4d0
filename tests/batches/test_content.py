"""Lines that are checked together are taken, and refused, as one by one."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.rigs.lines import line
from vbatch.batches import content
from vbatch.batches.input_file import InputFile
from vbatch.jsonl import LineReader

CHAT = "/v1/chat/completions"
HI = [{"role": "user", "content": "hi"}]
PLAIN = [
    line("a"),
    line("b", body={"model": "other", "messages": HI}),
    line("c", url="/v1/completions", body={"model": "m", "prompt": "Once upon a time"}),
    line("d", url="/v1/embeddings", body={"model": "m", "input": ["x", "y"]}),
    line("e", body={"model": "m", "messages": HI, "tools": [{"type": "function"}], "temperature": 0}),
    line("f", body={"model": "m", "messages": [{"role": "system", "content": "x" * 5000}, *HI]}),
    json.dumps(
        {"custom_id": "ü", "method": "POST", "url": CHAT, "body": {"model": "ü"}}, ensure_ascii=False
    ).encode()
    + b"\n",
]
ODD = [
    b"\n",
    b"  \t\n",
    line("crlf").replace(b"\n", b"\r\n"),
    b" " + line("spaces"),
    line("one").rstrip() + line("two"),  # two objects on one line
    line("over").replace(b'"method"', b'\n"method"'),  # one object on two lines
    line("three").rstrip() + line("four").replace(b'"method"', b'\n"method"'),  # two objects on two lines
    line("utf8").replace(b"hi", b"\xff"),
    line("bom").replace(b'{"custom', b'\xef\xbb\xbf{"custom'),
    line("nul\0"),
    line(""),
    line("get", method="GET"),
    line("url", url="/v1/chat"),
    line("beside", temperature=0.5, note="mine"),
    line("twice").replace(b'"method": "POST"', b'"method": "GET", "method": "POST"'),
    line("null", body=None),
    line("list", body=[]),
    line("no model", body={"messages": HI}),
    line("number", body={"model": 5}),
    line("no name", body={"model": ""}),
    line("nul", body={"model": "m\0"}),
    line("long", body={"model": "m" * 501}),
    line("escaped").replace(b'"m"', b'"\\u006d"'),
    line("ignored", body={"model": "m", "messages": HI, "guided_choice": ["a"]}),
    line("deep", body={"model": "m", "messages": HI, "response_format": {"type": "text", "strict": True}}),
    line("stream", body={"model": "m", "messages": HI, "stream": True}),
    line("not a stream", body={"model": "m", "messages": HI, "stream": False}),
    line("bytes", url="/v1/embeddings", body={"model": "m", "input": "x", "encoding_format": "bytes"}),
    line("audio", url="/v1/audio/transcriptions", body={"model": "m", "file_url": "https://host/a.wav"}),
    line("no audio", url="/v1/audio/transcriptions", body={"model": "m"}),
    line("cut off")[:-9],
    b"nonsense\n",
    b"x" * 70 + b"\n",
]


def taken(data: bytes, *, together: bool, **options: Any) -> tuple[list[Any], Any]:
    """Return the rows that were handed on, in the file's order, and what was found out or why it was refused."""
    rows: list[Any] = []

    def add(some: Any, model: str, url: str) -> None:
        rows.extend((row[1], model, url, row) for row in some)

    with pytest.MonkeyPatch.context() as patch:
        if not together:
            patch.setattr(content._Reading, "together", lambda *_: None)
        try:
            found = content.read(
                InputFile.of(io.BytesIO(data)), options.pop("model"), add, lambda _: None, **options
            )
        except content.InvalidInput as error:
            return [], (error.total, error.errors, error.shared)
        except content.ForeignFile as error:
            return [], error.message
    return sorted(rows), replace(found, ignored=tuple(sorted(found.ignored, key=lambda each: each.field)))


AUDIO = "/v1/audio/transcriptions"
KNOWN = b"".join(
    line(f"{number} {url}", url=url, body={"model": "m", "file_url": "https://host/a.wav"})
    for number in range(10)
    for url in (CHAT, "/v1/completions", "/v1/embeddings", AUDIO)
)


def compare(lines: list[bytes], **options: Any) -> None:
    """Take lines in one block, from the 41st line on, behind one that makes their endpoints known."""
    data = KNOWN + b"".join(lines)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(content, "LineReader", partial(LineReader, block=len(KNOWN)))
        one_by_one = taken(data, together=False, **options)
        assert taken(data, together=True, **options) == one_by_one


@pytest.mark.parametrize("model", [None, "mine"])
@pytest.mark.parametrize("odd", ODD)
def test_one_odd_line_among_others(odd: bytes, model: str | None) -> None:
    """Mutants: any condition of ``check_all`` left out; ``knows`` that answers True; rows of one model for all."""
    compare([PLAIN[0], odd, *PLAIN[1:5]], model=model)
    compare([odd], model=model, strict=True)
    compare([PLAIN[0], odd, *PLAIN[1:5]], model=model, bad=frozenset({42}))


@given(
    lines=st.lists(st.sampled_from(PLAIN) | st.sampled_from(ODD), max_size=8),
    repeated=st.booleans(),
    model=st.sampled_from([None, "mine"]),
    strict=st.booleans(),
)
def test_any_lines_together_or_one_by_one(
    lines: list[bytes], *, repeated: bool, model: str | None, strict: bool
) -> None:
    if not repeated:
        lines = [
            text.replace(b'"custom_id": "', b'"custom_id": "%d-' % number)
            for number, text in enumerate(lines)
        ]
    compare(lines, model=model, strict=strict)


def test_plain_lines_are_checked_together() -> None:
    """Mutant: a ``check_all`` that always gives up, which costs half of the speed and no test else."""
    seen: list[bool] = []
    together = content._Reading.together

    def noted(self: content._Reading, *arguments: Any) -> Any:
        found = together(self, *arguments)
        seen.append(found is not None)
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(content._Reading, "together", noted)
        data = b"".join(line(f"r-{number}", body=json.loads(PLAIN[4])["body"]) for number in range(20_000))
        taken(data, together=True, model=None)
    assert seen[0] is False
    assert seen[1:]
    assert all(seen[1:])
