"""Bring back what people annotated in Label Studio: corrections by custom_id, in pages, whole or not at all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vbatch.batches.paths import check_file, settled
from vbatch.errors import OutputPathError
from vbatch.outbound.label_studio import LabelStudio
from vbatch.protocol import encode, unbroken
from vbatch.system.files import atomic_file
from vbatch.tabular.corrections import CorrectionFormat, correction_of, preference_of, training_of
from vbatch.tabular.writers import Write

OnTask = Callable[[int], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pulled:
    """What was written. ``left_out`` annotated tasks are not vbatch's, or have nothing for this format."""

    path: Path | None
    lines: int
    left_out: int


def pull(
    server: LabelStudio,
    project: int,
    write: Write,
    form: CorrectionFormat = CorrectionFormat.CORRECTED,
    *,
    on_task: OnTask = lambda _seen: None,
) -> Pulled:
    """Write one line for each annotated task of a project, the oldest first.

    Raises LabelStudioError, ConfigError for the token.
    """
    server.project(project)  # an empty list would hide a wrong number
    lines, seen = 0, 0
    for seen, task in enumerate(server.annotated(project), 1):
        on_task(seen)
        correction = correction_of(task)
        if correction is None:
            continue
        document = correction
        if form is CorrectionFormat.SFT:
            document = training_of(correction) or {}
        elif form is CorrectionFormat.PREFERENCE:
            document = preference_of(task, correction) or {}
        if document:
            write(unbroken(encode(document)) + b"\n")
            lines += 1
    return Pulled(path=None, lines=lines, left_out=seen - lines)


def save_pulled(
    server: LabelStudio,
    project: int,
    path: Path,
    form: CorrectionFormat = CorrectionFormat.CORRECTED,
    *,
    on_task: OnTask = lambda _seen: None,
) -> Pulled:
    """Write these lines to a file, whole or not at all. Raises OutputPathError too."""
    chosen, tag = settled(path), f"project-{project}"
    check_file(chosen, "-o", batch_id=tag)
    try:
        with atomic_file(chosen, tag=tag) as file:
            pulled = pull(server, project, file.write, form, on_task=on_task)
    except BlockingIOError:
        raise OutputPathError(f"another process is writing {chosen}", hint="-o another path") from None
    return Pulled(path=file.path, lines=pulled.lines, left_out=pulled.left_out)
