"""Recognise what a person brings in place of a Batch file, and name the command or the line that is right.

A file is judged by its first block, a line by its fields. A sentence here is worth more than a hundred bad lines.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

BOM = b"\xef\xbb\xbf"
_UTF16 = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}
_MAGIC = {
    b"PAR1": (
        "a Parquet file",
        "vbatch make FILE --prompt '{COLUMN}' -m MODEL | vbatch submit -",
    ),
    b"SQLite format 3": ("a SQLite database", None),
    b"%PDF": ("a PDF file", None),
    b"version https://git-lfs": ("a pointer of Git LFS in place of the file", "git lfs pull"),
    b"BZh": ("compressed with bzip2", "bunzip2 FILE"),
    b"\xfd7zXZ": ("compressed with xz", "unxz FILE"),
}
_RIGHT = (
    '{"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", '
    '"body": {"model": "MODEL", "messages": [{"role": "user", "content": "…"}]}}'
)
_COLUMNS = ("prompt", "text", "instruction", "question", "input")


@dataclass(frozen=True, slots=True, kw_only=True)
class Foreign:
    """A file of another kind: what it is, and the command that converts it, or the line that would be right."""

    what: str
    hint: str


def recognise(block: bytes) -> Foreign | None:  # noqa: PLR0911  (one for each kind)
    """Return what the beginning of a file shows it to be, None for what may be lines of JSON objects."""
    for magic, (what, command) in _MAGIC.items():
        if block.startswith(magic):
            return Foreign(what=what, hint=command or f"a line is: {_RIGHT}")
    if block.startswith(b"PK\x03\x04"):
        what = "an Excel file (xlsx)" if b"xl/" in block or b"[Content_Types]" in block else "a zip archive"
        hint = (
            "save it as CSV, then: vbatch make FILE.csv --prompt '{COLUMN}' -m MODEL | vbatch submit -"
            if "xlsx" in what
            else "unzip FILE"
        )
        return Foreign(what=what, hint=hint)
    if (encoding := _utf16(block)) is not None:
        return Foreign(what=f"a text in {encoding}", hint=f"iconv -f {encoding} -t UTF-8 FILE > utf8.jsonl")
    text = block.removeprefix(BOM).lstrip()
    if text.startswith(b"["):
        return _of_array(text)
    first, _, rest = text.partition(b"\n")
    if rest.strip() and (first.strip() == b"{" or _continues(first, text)):
        return Foreign(
            what="pretty-printed JSON, a request on several lines", hint="jq -c . FILE > lines.jsonl"
        )
    if re.match(rb"<(!doctype )?html\b", text, re.IGNORECASE):
        return Foreign(
            what="an HTML page", hint="download the file again: a page of the server is in its place"
        )
    if text and not text.startswith(b"{"):
        return _of_table(first) or _of_prose(text)
    return _of_fields(first)


def _continues(first: bytes, text: bytes) -> bool:
    """Return whether a first line is the beginning of an object that ends on a later one."""
    if _loads(first) is not None or not text.startswith(b"{"):
        return False
    try:
        _, end = json.JSONDecoder().raw_decode(text.decode(errors="ignore"))
    except (ValueError, RecursionError):
        return False
    return end > len(first.decode(errors="ignore"))


def _utf16(block: bytes) -> str | None:
    if block[:2] in _UTF16:
        return _UTF16[block[:2]]
    for encoding, high, low in (
        ("UTF-16LE", slice(1, 8, 2), slice(0, 8, 2)),
        ("UTF-16BE", slice(0, 8, 2), slice(1, 8, 2)),
    ):
        # without a mark: its first characters are of ASCII, as those of JSON and of a header are
        if block[high] == bytes(4) and not block[low].count(0) and block[low].isascii():
            return encoding
    return None


def _of_array(text: bytes) -> Foreign | None:
    """Return what a file that begins with ``[`` is: an array of requests, or a list of messages on each line."""
    first = _loads(text.partition(b"\n")[0])
    if isinstance(first, list) and first and isinstance(first[0], dict) and "role" in first[0]:
        body = '{model: "MODEL", messages: .}'
        return Foreign(what="a list of messages on each line", hint=_jq(body))
    return Foreign(what="a JSON array, not one request per line", hint="jq -c '.[]' FILE > lines.jsonl")


def _of_table(first: bytes) -> Foreign | None:
    """Return what a first line that is no JSON shows: a header of columns."""
    try:
        header = first.decode().strip()
    except UnicodeDecodeError:
        return None
    for separator, kind in (("\t", "TSV"), (",", "CSV"), (";", "CSV")):
        columns = header.split(separator)
        if len(columns) > 1 and all(re.fullmatch(r'\s*"?[\w .-]{1,60}"?\s*', column) for column in columns):
            names = [column.strip(' "') for column in columns]
            asked = next((name for name in names if name.lower() in _COLUMNS), names[-1])
            what = f"a table ({kind}) with the columns {', '.join(names[:5])}"
            return Foreign(what=what, hint=_make(asked))
    if header.strip('"').lower() in _COLUMNS:
        return Foreign(what=f"a table (CSV) with the column {header}", hint=_make(header.strip('"')))
    return None


def _of_prose(text: bytes) -> Foreign | None:
    """Return whether the lines are texts, each a prompt: several, of words, none of which begins like JSON."""
    lines = [line for line in text.split(b"\n") if line.strip()]
    wordy = all(re.match(rb"\s*[\w\xc2-\xf4]", line) and b" " in line.strip() for line in lines)
    if len(lines) < 2 or not wordy or b"\0" in text:
        return None
    return Foreign(what="lines of text, not requests", hint=_make("line", "--format text "))


def _make(column: str, options: str = "") -> str:
    """Return the command that submits a request for each row of a table."""
    return f"vbatch make FILE {options}--prompt '{{{column}}}' -m MODEL | vbatch submit -"


def _of_fields(first: bytes) -> Foreign | None:  # noqa: PLR0911  (one for each kind)
    """Return what the fields of a first line show: requests of another kind, or a bare part of a request."""
    document = _loads(first)
    if not isinstance(document, dict) or not {"url", "method"}.isdisjoint(document):
        return None
    match document:
        case {"custom_id": _, "response": _, "error": _}:
            what = "an output file of a batch: it holds answers, not requests"
            return Foreign(
                what=what, hint="submit the batch's input file; vbatch retry ID runs failed requests again"
            )
        case {"custom_id": _, "params": dict()}:
            what = "a batch for Anthropic's Message Batches"
            return Foreign(what=what, hint=_jq(".params", keep_id=True, url="/v1/messages"))
        case {"contents": list()} | {"request": {"contents": list()}}:
            return Foreign(what="a batch for Gemini", hint=f"a line is: {_RIGHT}")
        case {"recordId": _, "modelInput": _}:
            return Foreign(what="a batch for Amazon Bedrock", hint=f"a line is: {_RIGHT}")
        case {"custom_id": _, "body": dict()}:
            what = "a batch without url and method, as Mistral has it"
            return Foreign(what=what, hint=_jq(".body", keep_id=True))
        case {"messages": list(messages)} if _is_training(messages):
            what = "a fine-tuning set: its messages end with the answer"
            return Foreign(what=what, hint=_jq('{model: "MODEL", messages: .messages[:-1]}'))
        case {"custom_id": str(), "messages": list()}:
            what = "bare messages, without method, url and body"
            return Foreign(what=what, hint=_jq('({model: "MODEL"} + del(.custom_id))', keep_id=True))
        case {"messages": list()}:
            body = '({model: "MODEL"} + .)'
            return Foreign(what="bare messages, without custom_id, method, url and body", hint=_jq(body))
        case {"prompt": _} | {"text": _} | {"instruction": _} | {"question": _} | {"input": _}:
            key = next(name for name in _COLUMNS if name in document)
            body = f'{{model: "MODEL", messages: [{{role: "user", content: .{key}}}]}}'
            return Foreign(what=f"lines with the field {key!r}, not requests", hint=_jq(body))
        case _:
            return None


def _is_training(messages: list[Any]) -> bool:
    return bool(messages) and isinstance(messages[-1], dict) and messages[-1].get("role") == "assistant"


def _jq(body: str, *, keep_id: bool = False, url: str = "/v1/chat/completions") -> str:
    """Return the command that makes requests of lines; it counts them, whether or not a line break ends the last."""
    rest = f'method: "POST", url: "{url}", body: '
    if keep_id:
        return f"jq -c '{{custom_id, {rest}{body}}}' FILE > requests.jsonl"
    request = f'{{custom_id: "\\(.)", {rest}($line | {body})}}'
    return f"jq -nc 'foreach inputs as $line (0; . + 1; {request})' FILE > requests.jsonl"


def _loads(text: bytes) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
