"""``submit``: check a file, store it, print the id; with --wait, follow it to its end."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from vbatch import batches
from vbatch.batches import Checked, InputFile, Store, SubmitOptions, Submitted, documents
from vbatch.cli import screens
from vbatch.cli.at_work import missing_worker
from vbatch.cli.batch import status_result
from vbatch.cli.dry_run import dry_run_result, dry_run_results
from vbatch.cli.output import Mode, Output, Result
from vbatch.cli.startup import open_store, settings
from vbatch.cli.troubles import IGNORED_SHOWN, ignored
from vbatch.cli.watch import clean, follow
from vbatch.errors import ExitCode, InputUnreadable, Interrupted, UsageError, VbatchError
from vbatch.text import ago, count, one_line

BIG = 20 << 20  # bytes; a smaller file is read in a moment


def submit(
    files: Sequence[str],
    options: SubmitOptions,
    *,
    wait: bool,
    blocked_limit: timedelta,
    dry_run: bool,
    json: bool,
    quiet: bool,
) -> int:
    """Submit a file or stdin and return the exit code."""
    if wait and dry_run:
        raise UsageError("--dry-run stores nothing that --wait could wait for")
    if options.reuse is not None and dry_run:
        raise UsageError("--dry-run stores nothing that --reuse could answer")
    output = Output.of(json=json, quiet=quiet)
    options = replace(options, notify=_notified(output, options.notify))
    sources = [input_file(file) for file in files]
    limit = blocked_limit if wait else None
    if len(sources) > 1:
        return _several(output, sources, options, dry_run=dry_run, blocked_limit=limit)
    (source,) = sources
    if dry_run:
        known = settings(output)
        checked = _check(output, source, options)
        output.show(dry_run_result(known, checked))
        if output.mode is Mode.HUMAN:
            for sentence in ignored(map(asdict, checked.ignored[:IGNORED_SHOWN])):
                output.warn(sentence)
            for sentence in batches.not_here(known, checked.seen.models):
                output.warn(sentence)
        return ExitCode.DONE
    with open_store(output) as store:
        with _bar(output, source) as on_read:
            done = batches.submit(store, source, options, on_read=on_read)
        if done.batch.status.final:
            batches.notify_at_once(store, settings(output), done.batch)
        with batches.name_batch_in_errors(done.batch.id):
            return _after(output, store, options, done, blocked_limit=limit)


def _notified(output: Output, target: str | None) -> str | None:
    """Return who is notified: as asked for, else as configured. Raises UsageError for one that cannot be."""
    known = settings(output)
    target = target if target is not None else known.notify_default
    return None if target is None else batches.check_target(known, target)


def _check(output: Output, source: InputFile, options: SubmitOptions) -> Checked:
    with _bar(output, source) as on_read:
        return batches.check(source, options, on_read=on_read)


def _several(
    output: Output,
    sources: Sequence[InputFile],
    options: SubmitOptions,
    *,
    dry_run: bool,
    blocked_limit: timedelta | None,
) -> int:
    """Make a batch of each file: all are checked before the first is stored."""
    if options.output is not None or options.error_file is not None:
        raise UsageError("-o and --error-file name the files of one batch", hint="submit each file by itself")
    checked = [
        (source.name, _check(output, source, options))
        for source in sources
        if dry_run or source.size is not None  # what can be read only once is checked as it is stored
    ]
    if dry_run:
        output.show(dry_run_results(settings(output), checked))
        return ExitCode.DONE
    made: list[Submitted] = []
    with open_store(output) as store:
        batches.check_together(store, checked)
        for source in sources:
            with _accepted_named(made):
                with _bar(output, source) as on_read:
                    made.append(batches.submit(store, source, options, on_read=on_read))
                if made[-1].batch.status.final:
                    batches.notify_at_once(store, settings(output), made[-1].batch)
                if output.mode is Mode.HUMAN:
                    output.show(Result(ids=[], document=dict, screen=lambda: made[-1].batch.id))
                    _explain(output, store, options, made[-1])
        if output.mode is Mode.QUIET or (output.mode is Mode.JSON and blocked_limit is None):
            output.show(_all_accepted(output, store, made))
        if blocked_limit is None:
            return ExitCode.DONE
        ended = []
        for done in made:
            with batches.name_batch_in_errors(done.batch.id):
                ended.append(follow(output, store, done.batch.id, blocked_limit=blocked_limit))
    if output.mode is Mode.JSON:
        output.document(_list([documents.status_document(status) for status in ended]))
    elif output.mode is Mode.HUMAN:
        for status in ended:
            output.stderr.print(screens.ending(status))
    return ExitCode.DONE if all(clean(status.batch) for status in ended) else ExitCode.INCOMPLETE


@contextmanager
def _accepted_named(made: Sequence[Submitted]) -> Iterator[None]:
    """Name the batches of the files before in what ends the command at a later one."""
    try:
        yield
    except KeyboardInterrupt:
        if not made:
            raise
        raise Interrupted(f"interrupted; {_accepted(made)}", hint="vbatch list") from None
    except VbatchError as error:
        if made:
            error.message += f"; {_accepted(made)}"
        raise


def _accepted(made: Sequence[Submitted]) -> str:
    return f"accepted before it: {', '.join(done.batch.id for done in made)}"


def _all_accepted(output: Output, store: Store, made: Sequence[Submitted]) -> Result:
    return Result(
        ids=[done.batch.id for done in made],
        document=lambda: _list([_document(output, store, done) for done in made]),
        screen=lambda: None,
    )


def _list(found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {"object": "list", "data": found}


def _document(output: Output, store: Store, done: Submitted) -> dict[str, Any]:
    """Return the new batch with what is to be said of its models."""
    warnings = batches.missing_models(store, settings(output), done.batch)
    return documents.batch_document(done.batch) | {"warnings": warnings}


def _after(
    output: Output,
    store: Store,
    options: SubmitOptions,
    done: Submitted,
    *,
    blocked_limit: timedelta | None,
) -> ExitCode:
    """Show the new batch and, where there is a limit, follow it to its end."""
    wait = blocked_limit is not None
    as_document = output.mode is Mode.JSON
    if not (wait and as_document):
        output.show(
            Result(
                ids=[done.batch.id],
                document=lambda: _document(output, store, done),
                screen=lambda: done.batch.id,
            )
        )
    if output.mode is Mode.HUMAN:
        _explain(output, store, options, done)
    if not wait:
        return ExitCode.DONE
    ended = follow(output, store, done.batch.id, blocked_limit=blocked_limit)
    if as_document:
        output.show(status_result(ended))
    elif output.mode is Mode.HUMAN:
        output.stderr.print(screens.ending(ended))
    return ExitCode.DONE if clean(ended.batch) else ExitCode.INCOMPLETE


@contextmanager
def _bar(output: Output, source: InputFile) -> Iterator[Callable[[int], None]]:
    """Show on a terminal how much of a big file is read."""
    big = source.size is not None and source.size >= BIG
    if not big or output.mode is not Mode.HUMAN or not output.stderr.is_terminal:
        yield lambda _size: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=output.stderr, transient=True) as progress:
        task = progress.add_task(one_line(f"reading {source.name}", limit=60), total=source.size)
        yield lambda read: progress.update(task, completed=read)


def input_file(
    file: str, *, what: str = "requests", example: str = "vbatch submit - < prompts.jsonl"
) -> InputFile:
    """Return the input that a command names; ``-`` is stdin, of ``what``. Raises InputUnreadable."""
    if file != "-":
        return InputFile.at(Path(file))
    if sys.stdin is None:
        raise InputUnreadable("standard input is closed", hint=example)
    if sys.stdin.isatty():
        sys.stderr.write(f"reading {what} from the terminal, one per line; Ctrl-D ends them\n")
    return InputFile.of(sys.stdin.buffer)


def _explain(output: Output, store: Store, options: SubmitOptions, done: Submitted) -> None:
    """Show a person what happens next, on stderr."""
    batch = done.batch
    output.note(screens.accepted(batch))
    for sentence in ignored(batch.ignored[:IGNORED_SHOWN]):
        output.warn(sentence)
    if len(batch.ignored) > IGNORED_SHOWN:
        output.warn(f"and {count(len(batch.ignored) - IGNORED_SHOWN, 'other field')}: vbatch status --json")
    if done.invalid is not None:
        output.warn(f"{count(batch.skipped, 'line')} not valid, left out and written to {done.invalid}")
    if done.duplicates:
        same = count(done.duplicates, "request")
        output.note(f"{same} identical to others: they do not run, and get the same outcomes at the end")
    if options.reuse is not None:
        output.note(_reused(done))
    elif done.repeats:
        first = done.repeats[0]
        output.warn(
            f"the same file was submitted {ago(first.created_at)} as {first.id} ({first.status.replace('_', ' ')})"
        )
    if not batch.status.final and (hint := missing_worker(batches.at_work(store, batch))) is not None:
        output.note(hint)
    for sentence in batches.missing_models(store, settings(output), batch):
        output.warn(sentence)


def _reused(done: Submitted) -> str:
    if done.reused_from is None:
        return "no earlier batch was made of this file; every request runs"
    taken = f"{count(done.batch.reused, 'answer')} taken from {done.reused_from.id}"
    return f"{taken}; {count(done.batch.counts.total - done.batch.reused, 'request')} to run"
