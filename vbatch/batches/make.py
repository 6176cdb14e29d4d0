"""Make requests of the rows of a table, one line per row, in flat memory: what ``submit`` then takes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from vbatch.batches.content import command_name
from vbatch.batches.images import image_url
from vbatch.batches.input_file import InputFile, InputStream
from vbatch.batches.request_bodies import Body, body_of, check_fields
from vbatch.errors import InputUnreadable, TableError, UsageError
from vbatch.jsonl.duplicates import SeenIds
from vbatch.protocol import request_line
from vbatch.tabular.read import Format, Row, Table, read_table
from vbatch.tabular.templates import NoSuchColumn, Template, no_such_column, shown

NAMED = 3  # rows with an id that was used before, in a message


@dataclass(frozen=True, slots=True, kw_only=True)
class MakeOptions:
    """What ``make`` is asked for.

    ``prompt`` and ``system`` are templates, ``id``, ``image`` names of columns. ``schema`` is a file with a JSON
    schema that answers follow; ``body`` are further fields of every body, which win over all others. ``kind`` and
    ``separator`` are those of the table where its name and its first line do not show them.
    """

    prompt: str
    system: str | None = None
    id: str | None = None
    model: str | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    schema: Path | None = None
    body: Mapping[str, Any] = field(default_factory=dict)
    image: str | None = None
    url: str = "/v1/chat/completions"
    kind: Format | None = None
    separator: str | None = None


def make(source: InputFile, options: MakeOptions) -> Iterator[bytes]:
    """Yield the line of each row's request, in the order of the table.

    Raises UsageError for options that do not go together, at once; TableError, InputUnreadable and ConfigError also
    after some lines. Then the lines so far are not the whole table.
    """
    prompt = Template.of(_text(options.prompt, "--prompt"), "--prompt")
    system = None if options.system is None else Template.of(_text(options.system, "--system"), "--system")
    if options.separator is not None and (len(options.separator) != 1 or options.separator in '"\r\n'):
        raise UsageError(
            f"--separator takes one character, not {options.separator!r}", hint="--separator ';'"
        )
    if options.model is not None and not options.model.strip():
        raise UsageError("-m names no model", hint="-m MODEL")
    fixed = body_of(
        options.url,
        model=options.model,
        max_tokens=options.max_tokens,
        temperature=options.temperature,
        schema=None if options.schema is None else _schema(options.schema),
        more=options.body,
    )
    check_fields(fixed, system=system is not None, image=options.image is not None)
    return _lines(source, options, prompt, system, fixed)


def _lines(
    source: InputFile, options: MakeOptions, prompt: Template, system: Template | None, fixed: Body
) -> Iterator[bytes]:
    folder = Path.cwd() if source.path is None else source.path.parent
    seen = SeenIds()
    number = 0
    with ExitStack() as stack:
        stream = stack.enter_context(source.open())
        stack.enter_context(_named_in_hints(source, stream))
        plain = source.size is not None and stream.packed is None
        again = nullcontext(stack.enter_context(source.source())) if plain else None
        table = read_table(
            stream, source.name, kind=options.kind, separator=options.separator, seekable=again
        )
        if table.columns is not None:
            _check_columns(table.name, table.columns, options, prompt, system)
        for number, row in enumerate(table.rows, 1):
            custom_id = str(number) if options.id is None else _id(table, row, options.id)
            if options.id is not None:
                seen.add_all([custom_id], row.line)
            question = _filled(table, row, prompt, "--prompt")
            rules = None if system is None else _filled(table, row, system, "--system")
            image = None if options.image is None else _image(table, row, options.image, folder)
            yield request_line(custom_id, fixed.url, fixed.of(question, system=rules, image=image))
        _check_unique(table, seen, options.id)
        stream.check_unchanged()
        if number == 0:
            raise TableError(f"{source.name} has no rows", hint="head FILE")


@contextmanager
def _named_in_hints(source: InputFile, stream: InputStream) -> Iterator[None]:
    try:
        yield
    except TableError as error:
        if error.hint is not None:
            error.hint = error.hint.replace("FILE", command_name(source, stream))
        raise


def _check_columns(
    name: str, columns: Sequence[str], options: MakeOptions, prompt: Template, system: Template | None
) -> None:
    """Raise TableError for a column that is asked for and not there, before a row is read."""
    wanted: list[tuple[str, Iterable[str]]] = [
        ("--prompt", prompt.columns),
        ("--system", system.columns if system is not None else ()),
        ("--id", filter(None, [options.id])),
        ("--image", filter(None, [options.image])),
    ]
    for option, asked in wanted:
        for column in asked:
            if column not in columns:
                raise no_such_column(column, columns, option=option, where=name)


def _filled(table: Table, row: Row, template: Template, option: str) -> str:
    try:
        return template.fill(row.cells)
    except NoSuchColumn as error:
        raise no_such_column(
            error.column, row.cells, option=option, where=f"{table.name}, {table.unit} {row.line:,},"
        ) from None
    except TypeError as error:
        raise table.bad(row.line, f"a column of {option} cannot be used: {error}") from None


def _cell(table: Table, row: Row, column: str, option: str) -> Any:
    try:
        return row.cells[column]
    except KeyError:
        where = f"{table.name}, {table.unit} {row.line:,},"
        raise no_such_column(column, row.cells, option=option, where=where) from None


def _id(table: Table, row: Row, column: str) -> str:
    value = _cell(table, row, column, "--id")
    custom_id = "" if value is None or isinstance(value, bytes) else shown(value)
    if not custom_id.strip():
        raise table.bad(
            row.line, f"the column {column!r} is empty", hint="fill it, or leave --id out: rows are numbered"
        )
    return custom_id


def _check_unique(table: Table, seen: SeenIds, column: str | None) -> None:
    doubled = sorted(seen.duplicates())
    seen.close()
    if doubled:
        named = ", ".join(f"{line:,} (as on {earlier:,})" for line, earlier in islice(doubled, NAMED))
        more = f" and {len(doubled) - NAMED:,} more" if len(doubled) > NAMED else ""
        raise TableError(
            f"{table.name} has ids in {column!r} that are used before, on {table.unit} {named}{more}",
            hint="--id another column, or leave --id out: rows are numbered",
        )


def _image(table: Table, row: Row, column: str, folder: Path) -> str:
    try:
        return image_url(_cell(table, row, column, "--image"), folder)
    except ValueError as error:
        raise table.bad(
            row.line, f"the image of column {column!r}: {error}", hint="a path, https://… or data:…"
        ) from None


def _text(text: str, option: str) -> str:
    """Return a text of the command line: ``@FILE`` is what that file holds, ``@@`` an @ itself."""
    if not text.startswith("@"):
        return text
    return text[1:] if text.startswith("@@") else read_file(Path(text[1:]), option)


def read_file(path: Path, option: str) -> str:
    """Return the text of a file that an option names. Raises InputUnreadable."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        hint = f"ls -l {path}" if option == "--schema" else f"ls -l {path}; a text that begins with @ is @@…"
        raise InputUnreadable(f"{option}: {path} cannot be read: {error.strerror}", hint=hint) from None
    except UnicodeDecodeError:
        raise InputUnreadable(f"{option}: {path} is not UTF-8", hint=f"file {path}") from None


def _schema(path: Path) -> dict[str, Any]:
    """Return the schema of a file with its name, as OpenAI has it. Raises UsageError, InputUnreadable."""
    try:
        document = json.loads(read_file(path, "--schema"))
    except ValueError as error:
        raise UsageError(f"--schema: {path} is not JSON: {error}", hint=f"jq . {path}") from None
    if not isinstance(document, dict):
        raise UsageError(f"--schema: {path} holds no object", hint='{"type": "object", "properties": …}')
    if document.get("type") == "json_schema" and isinstance(document.get("json_schema"), dict):
        document = document["json_schema"]  # a whole response_format
    named = document if isinstance(document.get("schema"), dict) else {"schema": document}
    return {"name": _name(path), "strict": True, **named}


def _name(path: Path) -> str:
    """Return a name for a schema, of the characters that OpenAI allows."""
    letters = (
        letter if letter.isascii() and (letter.isalnum() or letter in "-_") else "_" for letter in path.stem
    )
    return "".join(letters)[:64] or "answer"
