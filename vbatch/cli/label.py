"""Label Studio: ``results --to label-studio``, and ``label push`` and ``label pull``, which talk to a server."""

from __future__ import annotations

import sys
from collections.abc import Mapping

from vbatch.batches import Selection
from vbatch.batches.label import LabelOptions, save_tasks
from vbatch.batches.label_pull import Pulled, pull, save_pulled
from vbatch.batches.label_push import Pushed, push
from vbatch.batches.label_server import label_server
from vbatch.cli.arguments import output_file
from vbatch.cli.output import Output, Result
from vbatch.cli.startup import open_store, settings
from vbatch.cli.table_options import names
from vbatch.errors import OutputPathError, UsageError
from vbatch.tabular.corrections import CorrectionFormat
from vbatch.tabular.label_config import Template
from vbatch.text import count

NEW = "new"
_SHOWN_EVERY = 100  # tasks


def label_options(template: str | None, against: str | None, fields: str | None) -> LabelOptions:
    """Read what people are to do with the answers. Raises UsageError."""
    given = names(fields)
    if len(given) > 1:
        raise UsageError("--template classify corrects one field", hint=f"--fields {given[0]}")
    return LabelOptions(
        template=Template(template or Template.CORRECT), against=against, field=given[0] if given else None
    )


def label_results(
    reference: str,
    selection: Selection,
    to: str | None,
    options: LabelOptions,
    given: Mapping[str, object],
    *,
    output_path: str | None,
) -> None:
    """Write a folder of tasks to import by hand."""
    output = Output.of()
    if to != "label-studio":
        raise UsageError("--template and --against are for Label Studio", hint="--to label-studio -o FOLDER")
    alone = next((option for option, value in given.items() if value), None)
    if alone is not None:
        raise UsageError(f"{alone} is not for --to label-studio", hint="--to csv")
    if output_path is None:
        raise UsageError("--to label-studio writes a folder", hint="-o tasks")
    folder = output_file(output_path.rstrip("/") or "/", "-o")
    if folder is None:
        raise OutputPathError("-o names no folder", hint="-o tasks")
    with open_store(output, reads=True) as store:
        saved = save_tasks(store, reference, folder, options, selection)
    output.note(f"{count(saved.tasks, 'task')} and their labeling configuration written to {saved.path}")
    _report(output, saved.left_out, saved.unfinished)


def push_batch(
    reference: str,
    options: LabelOptions,
    *,
    url: str | None,
    project: str,
    retries: bool,
    json: bool,
    quiet: bool,
) -> None:
    """Push the answers of a batch into a project of Label Studio."""
    output = Output.of(json=json, quiet=quiet)
    number = None if project == NEW else _number(project)
    server = label_server(settings(output), url)
    with open_store(output, reads=True) as store:
        pushed = push(
            store,
            reference,
            server,
            project=number,
            options=options,
            selection=Selection(retries=retries),
            on_page=lambda added: output.transient(f"{count(added, 'task')} pushed"),
        )
    output.show(
        Result(
            ids=[str(pushed.project.id)],
            document=lambda: _pushed_document(pushed),
            screen=lambda: None,
        )
    )
    where = f"project {pushed.project.id}, {pushed.project.title!r}"
    there = f"; {pushed.present:,} were there already" if pushed.present else ""
    output.note(f"{count(pushed.added, 'task')} pushed to {where}{there}")
    if pushed.doubled:
        output.note(f"{count(pushed.doubled, 'task')} that were there twice removed")
    _report(output, pushed.left_out, pushed.unfinished)


def pull_project(project: str, *, url: str | None, form: str | None, output_path: str | None) -> None:
    """Write what people annotated in a project."""
    output = Output.of()
    number = _number(project)
    chosen = output_file(output_path, "-o", hint="leave out -o to print")
    server = label_server(settings(output), url)
    kind = CorrectionFormat(form or CorrectionFormat.CORRECTED)

    def on_task(seen: int) -> None:
        if seen % _SHOWN_EVERY == 0:
            output.transient(f"{count(seen, 'task')} read")

    if chosen is None:
        pulled = pull(server, number, sys.stdout.buffer.write, kind, on_task=on_task)
        sys.stdout.buffer.flush()
    else:
        pulled = save_pulled(server, number, chosen, kind, on_task=on_task)
    _report_pulled(output, pulled, kind)


def _report_pulled(output: Output, pulled: Pulled, kind: CorrectionFormat) -> None:
    output.clear()
    if pulled.path is not None:
        output.note(f"{count(pulled.lines, 'line')} written to {pulled.path}")
    if pulled.left_out:
        why = (
            "not vbatch's, or skipped"
            if kind is CorrectionFormat.CORRECTED
            else f"nothing for {kind} in them"
        )
        output.note(f"{count(pulled.left_out, 'annotated task')} left out: {why}")


def _number(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise UsageError(
            f"--project {text} is not the number of a project",
            hint="--project 7: the number in the project's address in Label Studio",
        )
    return int(text)


def _report(output: Output, left_out: int, unfinished: int) -> None:
    if left_out:
        output.note(f"{count(left_out, 'request')} left out: failed, or without an answer in text")
    if unfinished:
        output.note(f"{count(unfinished, 'request')} not finished yet: the same command adds them later")


def _pushed_document(pushed: Pushed) -> dict[str, object]:
    return {
        "object": "label.push",
        "project": pushed.project.id,
        "title": pushed.project.title,
        "created": pushed.created,
        "added": pushed.added,
        "present": pushed.present,
        "doubled": pushed.doubled,
        "left_out": pushed.left_out,
        "unfinished": pushed.unfinished,
    }
