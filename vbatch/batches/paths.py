"""Where the files of a batch go, and whether they can go there: asked at submit, not after a night of work."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from vbatch.errors import OutputPathError
from vbatch.jsonl import second_name
from vbatch.protocol import BatchStatus
from vbatch.store import Store, catalog
from vbatch.store.records import Batch


@dataclass(frozen=True, slots=True, kw_only=True)
class Targets:
    """The absolute paths of a batch's output file and error file."""

    output: Path
    errors: Path


def named_file(source: Path | BinaryIO) -> Path | None:
    """Return the file's place, None for what has none: standard input, a pipe of the shell (``<(…)``), a device."""
    if not isinstance(source, Path) or source.is_fifo():
        return None
    place = _settled(source)
    return None if any(place.is_relative_to(folder) for folder in ("/dev", "/proc")) else place


def targets(source: Path | None, *, output: Path | None, error_file: Path | None, batch_id: str) -> Targets:
    """Return where the files go: beside the input, or in the current folder for an input without a name.

    ``prompts.jsonl`` gives ``prompts.output.jsonl`` and ``prompts.errors.jsonl``; a given output
    ``answers.jsonl`` gives ``answers.errors.jsonl``.
    """
    if output is None:
        stem = source.with_suffix("") if source is not None else Path(batch_id)
        return Targets(
            output=_settled(_sibling(stem, "output")),
            errors=_settled(error_file or _sibling(stem, "errors")),
        )
    return targets_of(output, error_file=error_file)


def targets_of(output: Path, *, error_file: Path | None = None) -> Targets:
    """Return an output file that was asked for, and its error file. Raises OutputPathError for a folder."""
    _check_no_folder(output, "-o")
    return Targets(
        output=_settled(output), errors=_settled(error_file or _sibling(output.with_suffix(""), "errors"))
    )


def check_targets(store: Store | None, chosen: Targets, *, source: Path | None, batch_id: str) -> None:
    """Refuse targets that cannot be written, or that would overwrite something. Raises OutputPathError."""
    if chosen.output == chosen.errors:
        raise OutputPathError(
            f"Output file and error file are the same: {chosen.output}.", hint="--error-file PATH"
        )
    for path, option in ((chosen.output, "-o"), (chosen.errors, "--error-file")):
        if source is not None and path == _settled(source):
            raise OutputPathError(f"{path} is the input file itself.", hint=f"{option} PATH")
        check_target(path, option, batch_id=batch_id)
    if store is not None:
        _refuse_in_use(store, chosen.output, chosen.errors)


def check_copy(store: Store, path: Path, *, batch_id: str) -> Path:
    """Return where a copy of finished lines goes. Raises OutputPathError as for a batch's own files."""
    settled = _settled(path)
    check_target(settled, "-o", batch_id=batch_id)
    _refuse_in_use(store, settled)
    return settled


def _refuse_in_use(store: Store, *paths: Path) -> None:
    for taken, other in catalog.paths_in_use(store, paths=[str(path) for path in paths]).items():
        if other.status is BatchStatus.VALIDATING:
            raise OutputPathError(
                f"Another submit is reading its file now, and its batch will write {taken}.",
                hint="wait for it, or choose another path with -o",
            )
        raise OutputPathError(
            f"{other.id}, which is not finished yet, will write {taken}.",
            hint=f"vbatch status {other.id}, or choose another path with -o",
        )


def check_target(path: Path, option: str, *, batch_id: str) -> None:
    """Refuse a file that cannot be made, or is there already. Raises OutputPathError."""
    _check_folder(path.parent, option)
    _check_name(path, option, batch_id)
    _check_no_folder(path, option)
    if os.path.lexists(path):
        raise OutputPathError(
            f"{path} exists already, and vbatch overwrites nothing.",
            hint=f"{option} another path, or move the file away",
        )


def in_use(store: Store, chosen: Targets) -> dict[str, Batch]:
    """Return which of the two an unfinished batch will write, with that batch."""
    return catalog.paths_in_use(store, paths=[str(chosen.output), str(chosen.errors)])


def _settled(path: Path) -> Path:
    """Return the one spelling of a path: without links and ``..`` in its folder. A link as the name itself stays."""
    return Path(os.path.realpath(path.parent), path.name)


def _sibling(stem: Path, kind: str) -> Path:
    return stem.with_name(f"{stem.name}.{kind}.jsonl")


def _check_folder(folder: Path, option: str) -> None:
    if not _is_folder(folder):
        raise OutputPathError(f"There is no folder {folder}.", hint=f"mkdir -p {folder}")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputPathError(
            f"The folder {folder} is not writable.", hint=f"{option} a path in another folder"
        )


def _check_no_folder(path: Path, option: str) -> None:
    if _is_folder(path):
        raise OutputPathError(f"{path} is a folder.", hint=f"{option} {path / 'output.jsonl'}")


def _is_folder(path: Path) -> bool:
    """Whether it is one; a name that is too long for any is none."""
    try:
        return path.is_dir()
    except OSError:
        return False


def _check_name(path: Path, option: str, batch_id: str) -> None:
    """Refuse a name that leaves no room for the batch's id, with which it appears when the name is taken by then."""
    limit = os.pathconf(path.parent, "PC_NAME_MAX")
    room = limit - len(os.fsencode(second_name(path, batch_id).name)) + len(os.fsencode(path.name))
    if len(os.fsencode(path.name)) > room:
        raise OutputPathError(
            f"The name of {path} has {len(os.fsencode(path.name))} bytes; there is room for {room}.",
            hint=f"{option} a shorter name",
        )
