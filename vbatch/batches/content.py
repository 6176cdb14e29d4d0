"""Read and check what an input holds: every line, and whether it holds lines of requests at all."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from vbatch import config
from vbatch.batches.input_file import InputFile, InputStream
from vbatch.engine import fields, kinds
from vbatch.engine.ignored import BESIDE, Ignored, IgnoredField, hint
from vbatch.errors import ExitCode, VbatchError
from vbatch.jsonl import Defects, ForeignInput, LineReader, Validator, kind_of, prefixes
from vbatch.protocol import BatchError, with_model
from vbatch.store.records import SEVERAL
from vbatch.text import count

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
    add: Callable[[int, str, str, bytes, str, bytes], None],
    on_read: OnRead,
    *,
    bad: frozenset[int] = frozenset(),
    strict: bool = False,
) -> Content:
    """Validate every line but the ``bad`` ones; ``add`` takes the requests, and the prefix of each, until one is bad.

    With ``strict``, a field that the engine ignores makes a line bad.
    Raises InvalidInput, InputUnreadable, ForeignFile.
    """
    validator = Validator(model=model)
    check_line, defects = validator.check, validator.defects
    replace, prefix = model is not None, prefixes.of
    requests = 0
    ignored = Ignored(fields.table(fields.newest(config.load().state_dir)))
    serves: dict[str, bool] = {}  # whether vLLM serves the model: the echo engine takes any field
    with source.open() as stream, foreign_files_named(source, stream):
        lines = LineReader(
            stream, on_read=lambda _size: on_read(stream.consumed), ahead=source.size is not None
        )
        for number, line in lines:
            if number in bad:
                continue
            checked = check_line(number, line)
            if checked is None or (defects.total and not strict):
                continue
            request, named, of_body = checked
            body = bytes(request.body)
            looks = serves.get(named)
            if looks is None:
                looks = serves[named] = kinds.for_model(named).needs_files
            if looks and (unknown := ignored.look(request.url, of_body)) and strict:
                for path in unknown:
                    remedy = hint(path, ignored.tables[request.url], request.url)
                    _refuse(defects, number, path, remedy, param=f"body.{path}")
            if looks and validator.beside:
                misplaced = ignored.look_beside(request.url, validator.beside)
                for name in misplaced if strict else ():
                    _refuse(defects, number, name, BESIDE, param=name)
            if defects.total:
                continue
            sent = with_model(body, named) if replace else body
            add(number, request.custom_id, named, sent, request.url, prefix(of_body))
            requests += 1
        validator.finish(cut_off=lines.cut_off)
        if defects.total:
            raise InvalidInput(defects, source=source.name, command_name=command_name(source, stream))
        stream.check_unchanged()
    endpoint = next(iter(validator.urls)) if len(validator.urls) == 1 else SEVERAL
    return Content(
        requests=requests,
        endpoint=endpoint,
        sha256=lines.sha256,
        size=lines.size,
        ignored=tuple(ignored.fields),
    )


def _refuse(defects: Defects, line: int, name: str, remedy: str | None, *, param: str) -> None:
    message = f"The engine ignores {name!r}" + (f": {remedy}." if remedy else ".")
    defects.add("ignored_parameter", message, line=line, param=param)


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
