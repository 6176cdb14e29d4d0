"""Read and check what an input holds: every line, and whether it holds lines of requests at all."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from vbatch import config
from vbatch.batches.dedupe import Add
from vbatch.batches.input_file import InputFile, InputStream
from vbatch.batches.prefix_order import Row
from vbatch.engine import fields, kinds
from vbatch.engine.ignored import BESIDE, Ignored, IgnoredField, hint
from vbatch.errors import ExitCode, VbatchError
from vbatch.jsonl import (
    Defects,
    Fields,
    ForeignInput,
    LineReader,
    Overlong,
    Validator,
    kind_of,
    numbered,
    prefixes,
)
from vbatch.protocol import BatchError, with_model
from vbatch.store.records import SEVERAL
from vbatch.text import count

Found = dict[tuple[str, str], list[Row]]  # requests by model and url
OnRead = Callable[[int], None]  # called now and then with how many bytes of the input were read


class ForeignFile(VbatchError):
    """The input is a file of another kind; nothing was stored."""

    code = "foreign_format"
    exit_code = ExitCode.INVALID_INPUT


class InvalidInput(VbatchError):
    """The input file is not valid; nothing was stored."""

    code = "invalid_input"
    exit_code = ExitCode.INVALID_INPUT

    def __init__(self, defects: Defects, *, source: str, command_name: str) -> None:
        self.errors: tuple[BatchError, ...] = tuple(defects.shown)
        self.total = defects.total
        self.shared = defects.shared
        self.alone = tuple(bad for bad in self.errors if (bad.code, kind_of(bad.message)) not in self.shared)
        super().__init__(
            f"{source} has {count(self.total, 'problem')}; nothing was stored",
            hint=_corrected_urls(self.errors, command_name),
        )

    def __str__(self) -> str:
        """Return the message with the first problem, for a program: the command line lists them itself."""
        if not self.errors:
            return self.message
        first = self.errors[0]
        where = "" if first.line is None else f"line {first.line:,}: "
        return f"{self.message}: {where}{first.message}"


def _corrected_urls(errors: Iterable[BatchError], command_name: str) -> str | None:
    """Return the command that corrects the urls whose right one is known."""
    changes = []
    for message in dict.fromkeys(error.message for error in errors if error.code == "invalid_url"):
        meant = re.search(r"There is no endpoint '(.*)'; did you mean '(.*)'\?", message)
        if meant is not None:
            wrong = re.sub(r"([][\\.*^$+?(){}|#])", r"\\\1", meant[1])
            changes.append(shlex.quote(f's#("url" *: *)"{wrong}"#\\1"{meant[2]}"#'))
    if not changes:
        return None
    return f"sed -E {' '.join(f'-e {change}' for change in changes)} {command_name} > corrected.jsonl"


def command_name(source: InputFile, stream: InputStream) -> str:
    """Return what a command calls the text of the input: of a compressed one, in words of the shell."""
    name = shlex.quote(source.name) if source.path is not None else "FILE"
    return name if stream.packed is None else f"<({stream.packed} -dc {name})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """What was read: the number of valid requests, their endpoint, the digest and size of the bytes.

    ``ignored`` are the fields that the engine will ignore.
    """

    requests: int
    endpoint: str
    sha256: str
    size: int
    ignored: tuple[IgnoredField, ...]


def read(
    source: InputFile,
    model: str | None,
    add: Add,
    on_read: OnRead,
    *,
    bad: frozenset[int] = frozenset(),
    strict: bool = False,
) -> Content:
    """Validate every line but the ``bad`` ones; ``add`` takes the requests, with their prefixes, until one is bad.

    With ``strict``, a field that the engine ignores makes a line bad.
    Raises InvalidInput, InputUnreadable, ForeignFile.
    """
    validator = Validator(model=model)
    defects = validator.defects
    reading = _Reading(validator, strict=strict, replace=model is not None)
    requests = 0
    with source.open() as stream, foreign_files_named(source, stream):
        reader = LineReader(
            stream, on_read=lambda _size: on_read(stream.consumed), ahead=source.size is not None
        )
        for first, lines in reader.blocks():
            numbers = range(first, first + len(lines))
            found = reading.together(first, lines) if bad.isdisjoint(numbers) else None
            if found is None:
                found = reading.one_by_one(each for each in numbered(first, lines) if each[0] not in bad)
            if defects.total:
                continue
            for (named, url), rows in found.items():
                add(rows, named, url)
                requests += len(rows)
        validator.finish(cut_off=reader.cut_off)
        if defects.total:
            raise InvalidInput(defects, source=source.name, command_name=command_name(source, stream))
        stream.check_unchanged()
    endpoint = next(iter(validator.urls)) if len(validator.urls) == 1 else SEVERAL
    return Content(
        requests=requests,
        endpoint=endpoint,
        sha256=reader.sha256,
        size=reader.size,
        ignored=tuple(reading.ignored.fields),
    )


class _Reading:
    """Turns lines into requests, by model and url. ``replace``: the model of a body is not the one that it names."""

    def __init__(self, validator: Validator, *, strict: bool, replace: bool) -> None:
        self._validator = validator
        self._strict = strict
        self._replace = replace
        self._serves: dict[str, bool] = {}  # whether vLLM serves the model: the echo engine takes any field
        self.ignored = Ignored(fields.table(fields.newest(config.load().state_dir)))

    def together(self, first: int, lines: Sequence[bytes | Overlong]) -> Found | None:
        """Take good lines; None where one may be bad: nothing was done then."""
        checked = self._validator.check_all(first, lines)
        if checked is None:
            return None
        models, urls, bodies = checked.models, checked.urls, checked.bodies
        numbers = range(first, first + len(bodies))
        if not all(self.ignored.knows(url, checked.shapes) for url in set(urls)):
            for each in zip(numbers, models, urls, checked.fields, strict=True):
                self._look(*each)
        if self._replace:
            bodies = list(map(with_model, bodies, models))
        begin = prefixes.of_all(checked.fields, checked.shapes)
        rows = list(zip(begin, numbers, checked.ids, bodies, strict=True))
        of_kind = list(zip(models, urls, strict=True))
        if len(set(of_kind)) == 1:
            return {of_kind[0]: rows}
        found: Found = {}
        for kind, row in zip(of_kind, rows, strict=True):
            found.setdefault(kind, []).append(row)
        return found

    def one_by_one(self, lines: Iterable[tuple[int, bytes | Overlong]]) -> Found:
        """Take lines of which any may be bad: those are among the defects."""
        found: Found = {}
        for number, line in lines:
            checked = self._validator.check(number, line)
            if checked is None:
                continue
            request, model, of_body = checked
            self._look(number, model, request.url, of_body, self._validator.beside)
            body = bytes(request.body)
            sent = with_model(body, model) if self._replace else body
            row = prefixes.of(of_body), number, request.custom_id, sent
            found.setdefault((model, request.url), []).append(row)
        return found

    def _look(self, number: int, model: str, url: str, of_body: Fields, beside: Sequence[str] = ()) -> None:
        """Count what the engine ignores."""
        looks = self._serves.get(model)
        if looks is None:
            looks = self._serves[model] = kinds.for_model(model).needs_files
        if not looks:
            return
        for path in self.ignored.look(url, of_body):
            if self._strict:
                remedy = hint(path, self.ignored.tables[url], url)
                self._refuse(number, path, remedy, param=f"body.{path}")
        for name in self.ignored.look_beside(url, beside) if beside else ():
            if self._strict:
                self._refuse(number, name, BESIDE, param=name)

    def _refuse(self, line: int, name: str, remedy: str | None, *, param: str) -> None:
        message = f"The engine ignores {name!r}" + (f": {remedy}." if remedy else ".")
        self._validator.defects.add("ignored_parameter", message, line=line, param=param)


@contextmanager
def foreign_files_named(source: InputFile, stream: InputStream) -> Iterator[None]:
    """Report a file of another kind by the name of the input, with the command that converts it."""
    try:
        yield
    except ForeignInput as error:
        raise ForeignFile(
            f"{source.name} is {error.found.what}; nothing was stored",
            hint=error.found.hint.replace("FILE", command_name(source, stream)),
        ) from None
