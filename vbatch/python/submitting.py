"""Submit a file, rows, or prompts of chat from a program: streamed, and accepted whole or refused whole."""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from itertools import count
from os import PathLike
from pathlib import Path
from typing import Any, BinaryIO, cast

from vbatch import batches
from vbatch.batches import InputFile, SubmitOptions
from vbatch.batches.request_bodies import CHAT, body_of
from vbatch.errors import UsageError
from vbatch.protocol import encode_exactly, request_line
from vbatch.python.handle import Batch
from vbatch.python.opening import open_store

Messages = Sequence[Mapping[str, Any]]
_MISSING = ("None", "nan", "NaN", "<NA>", "NaT")  # an empty cell of pandas
_ROW = "{'custom_id': …, 'method': 'POST', 'url': '/v1/chat/completions', 'body': {…}}"


def submit(
    requests: str | PathLike[str] | Iterable[Mapping[str, Any]],
    *,
    model: str | None = None,
    output: str | PathLike[str] | None = None,
    name: str | None = None,
    priority: int = 0,
    metadata: Mapping[str, str] | None = None,
    expires_in: timedelta | None = None,
    reuse: str | None = None,
    skip_invalid: bool = False,
    strict: bool = False,
    notify: str | None = None,
    dedupe: bool = False,
) -> Batch:
    """Submit a file, or rows, and return the batch.

    A row is a request of OpenAI's Batch API: custom_id, method, url, body. Rows are streamed from any iterable. The
    options are those of ``vbatch submit``. The answers go to a file too: beside the input, for rows into the current
    folder, or to ``output``. Raises InvalidInput with every bad line, and stores nothing then.
    """
    if isinstance(requests, str | PathLike):
        source = InputFile.at(Path(requests))
    elif isinstance(requests, Mapping) or not isinstance(requests, Iterable):
        raise UsageError(
            f"submit takes a path or rows, not {type(requests).__name__}", hint="vbatch.submit([request, …])"
        )
    else:
        source = _of_rows(_row(number, row) for number, row in enumerate(requests, 1))
    if not isinstance(priority, int):
        raise UsageError(f"priority is {_kind(priority)}, not a whole number")
    options = SubmitOptions(
        model=model,
        output=None if output is None else Path(output),
        name=name,
        priority=priority,
        metadata=metadata,
        expires_in=expires_in,
        reuse=reuse,
        skip_invalid=skip_invalid,
        strict=strict,
        notify=notify,
        dedupe=dedupe,
    )
    return _submit(source, options)


def chat(
    prompts: Iterable[str | Messages],
    *,
    model: str,
    system: str | None = None,
    ids: Iterable[object] | None = None,
    max_tokens: int | None = None,
    temperature: float | None = None,
    schema: Mapping[str, Any] | None = None,
    body: Mapping[str, Any] | None = None,
    output: str | PathLike[str] | None = None,
    name: str | None = None,
    priority: int = 0,
) -> Batch:
    """Submit prompts, texts or lists of messages, as a batch of chat requests, and return it.

    ``ids`` are their custom_ids, by default 1, 2, …; ``schema`` is a JSON schema that every answer follows; ``body``
    has further fields of each request. Raises UsageError where there are more or fewer ids than prompts.
    """
    if isinstance(prompts, str):
        raise UsageError("chat takes several prompts, not one text", hint="vbatch.chat([prompt], model=…)")
    for option, value in (("schema", schema), ("body", body)):
        if not isinstance(value, Mapping | None):
            raise UsageError(f"{option} is {_kind(value)}, not a dictionary")
    fixed = body_of(
        CHAT,
        model=model,
        max_tokens=max_tokens,
        temperature=temperature,
        schema=None if schema is None else {"name": "answer", "strict": True, "schema": dict(schema)},
        more=body or {},
    )

    def lines() -> Iterator[bytes]:
        for number, (custom_id, prompt) in enumerate(_named(prompts, ids), 1):
            if isinstance(prompt, str):
                made = fixed.of(prompt, system=system, image=None)
            else:
                made = fixed.of("", system=system, image=None)
                made["messages"] = [*made["messages"][:-1], *_messages(number, prompt)]
            with _in_json("prompt", number):
                line = request_line(custom_id, CHAT, made)
            yield line

    options = SubmitOptions(output=None if output is None else Path(output), name=name, priority=priority)
    return _submit(_of_rows(lines()), options)


def _named(
    prompts: Iterable[str | Messages], ids: Iterable[object] | None
) -> Iterator[tuple[str, str | Messages]]:
    if ids is None:
        yield from zip(map(str, count(1)), prompts, strict=False)
        return
    try:
        for custom_id, prompt in zip(ids, prompts, strict=True):
            name = str(custom_id)
            if not isinstance(custom_id, str) and name in _MISSING:
                raise UsageError(
                    f"an id is missing (it is {name}); nothing was stored", hint="fill it, or leave ids out"
                )
            yield name, prompt
    except ValueError as error:
        if "zip()" not in str(error):
            raise
        raise UsageError("there are not as many ids as prompts; nothing was stored") from None


def _row(number: int, row: Mapping[str, Any]) -> bytes:
    if not isinstance(row, Mapping):
        raise UsageError(f"row {number:,} is {_kind(row)}, not a request", hint=_ROW)
    with _in_json("row", number):
        return encode_exactly(dict(row)) + b"\n"


def _messages(number: int, prompt: object) -> Messages:
    """Return the messages of a prompt. Raises UsageError for what is none: an empty cell of a table is NaN, say."""
    if isinstance(prompt, Mapping | bytes) or not isinstance(prompt, Sequence):
        raise UsageError(
            f"prompt {number:,} is {_kind(prompt)}, not a text or a list of messages; nothing was stored"
        )
    wrong = [message for message in prompt if not isinstance(message, Mapping)]
    if wrong or not prompt:
        found = f"a list with a message {_kind(wrong[0])}" if wrong else "a list without a message"
        raise UsageError(
            f"prompt {number:,} is {found}; nothing was stored", hint="[{'role': 'user', 'content': …}, …]"
        )
    return prompt


@contextmanager
def _in_json(what: str, number: int) -> Iterator[None]:
    try:
        yield
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise UsageError(
            f"{what} {number:,} cannot be written as JSON: {error}; nothing was stored",
            hint="an empty cell of pandas is NaN: table.astype(object).where(table.notna(), None)"
            if "NaN" in str(error)
            else None,
        ) from None


def _kind(value: object) -> str:
    return f"of the type {type(value).__name__}"


def _submit(source: InputFile, options: SubmitOptions) -> Batch:
    with open_store() as (store, settings):
        target = options.notify or settings.notify_default
        if target is not None:
            options = replace(options, notify=batches.check_target(settings, target))
        done = batches.submit(store, source, options)
        if done.batch.status.final:
            batches.notify_at_once(store, settings, done.batch)
        with batches.name_batch_in_errors(done.batch.id):
            for sentence in batches.missing_models(store, settings, done.batch):
                warnings.warn(sentence, stacklevel=3)
            for each in done.batch.ignored:
                warnings.warn(f"the engine ignores {json.dumps(each.get('field'))}", stacklevel=3)
    return Batch(done.batch.id)


def _of_rows(lines: Iterator[bytes]) -> InputFile:
    return InputFile.of(cast("BinaryIO", _Rows(lines)))


class _Rows(io.RawIOBase):
    """Lines as they come, as a stream that can be read once."""

    def __init__(self, lines: Iterator[bytes]) -> None:
        self._lines = lines
        self._left = bytearray()

    def read(self, size: int = -1) -> bytes:
        """Return up to so many bytes, none at the end."""
        while size < 0 or len(self._left) < size:
            line = next(self._lines, None)
            if line is None:
                size = len(self._left)
                break
            self._left += line
        taken = bytes(self._left[:size])
        del self._left[:size]
        return taken
