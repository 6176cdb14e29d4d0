"""Where the files of a batch go, and whether they can be written there: checked at submit, not after a night."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from vbatch.batches.unpacking import SUFFIXES
from vbatch.errors import OutputPathError
from vbatch.protocol import BatchStatus
from vbatch.store import Store, catalog
from vbatch.system.files import second_name


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputPaths:
    """The absolute paths of a batch's output file and error file."""

    output: Path
    errors: Path


def choose_paths(
    source: Path | None, *, output: Path | None, error_file: Path | None, batch_id: str
) -> OutputPaths:
    """Return where the files go: beside the input, or in the current folder for an input without a path.

    ``prompts.jsonl`` gives ``prompts.output.jsonl`` and ``prompts.errors.jsonl``; a given output
    ``answers.jsonl`` gives ``answers.errors.jsonl``.
    """
    if output is None:
        name = stem(source, batch_id)
        return OutputPaths(
            output=settled(_sibling(name, "output")),
            errors=settled(error_file or _sibling(name, "errors")),
        )
    return paths_of(output, error_file=error_file)


def paths_of(output: Path, *, error_file: Path | None = None) -> OutputPaths:
    """Return an output file that was asked for, and its error file. Raises OutputPathError for a folder."""
    _check_no_folder(output, "-o")
    return OutputPaths(
        output=settled(output), errors=settled(error_file or _sibling(output.with_suffix(""), "errors"))
    )


def check_paths(chosen: OutputPaths, *, source: Path | None, batch_id: str) -> None:
    """Refuse files that cannot be written, or that would overwrite something. Raises OutputPathError."""
    if chosen.output == chosen.errors:
        raise OutputPathError(
            f"the output file and the error file are the same: {chosen.output}", hint="--error-file PATH"
        )
    for path, option in ((chosen.output, "-o"), (chosen.errors, "--error-file")):
        if source is not None and path == settled(source):
            raise OutputPathError(f"{path} is the input file itself", hint=f"{option} PATH")
        check_file(path, option, batch_id=batch_id)


def check_copy(store: Store, path: Path, *, batch_id: str) -> Path:
    """Return where a copy of finished lines goes. Raises OutputPathError as for a batch's own files."""
    chosen = settled(path)
    check_file(chosen, "-o", batch_id=batch_id)
    refuse_in_use(store, chosen)
    return chosen


def refuse_in_use(store: Store, *paths: Path) -> None:
    """Refuse files that an unfinished batch will write. Raises OutputPathError."""
    for taken, other in catalog.paths_in_use(store, paths=[str(path) for path in paths]).items():
        if other.status is BatchStatus.VALIDATING:
            raise OutputPathError(
                f"another submit is reading its file now, and its batch will write {taken}",
                hint="wait for it, or choose another path with -o",
            )
        raise OutputPathError(
            f"{other.id}, which is not finished yet, will write {taken}",
            hint=f"vbatch status {other.id}, or choose another path with -o",
        )


def check_file(path: Path, option: str, *, batch_id: str) -> None:
    """Refuse a file that cannot be created, or that exists. Raises OutputPathError."""
    _check_folder(path.parent, option)
    _check_name(path, option, batch_id)
    _check_no_folder(path, option)
    if os.path.lexists(path):
        raise OutputPathError(
            f"{path} already exists, and vbatch overwrites no file",
            hint=f"{option} another path; for the failed requests of its batch: vbatch retry ID; for an edited file: "
            f"--reuse last {option} another path",
        )


def settled(path: Path) -> Path:
    """Return the one spelling of a path: no links and no ``..`` in its folder; a link as the name itself stays."""
    return Path(os.path.realpath(path.parent), path.name)


def stem(source: Path | None, batch_id: str) -> Path:
    """Return the path of an input without its suffix, nor that of its compression; the id for one without a path."""
    if source is None:
        return Path(batch_id)
    plain = source.with_suffix("") if source.suffix in SUFFIXES and source.stem else source
    return plain.with_suffix("")


def _sibling(stem: Path, kind: str) -> Path:
    return stem.with_name(f"{stem.name}.{kind}.jsonl")


def _check_folder(folder: Path, option: str) -> None:
    if not _is_folder(folder):
        raise OutputPathError(f"there is no folder {folder}", hint=f"mkdir -p {folder}")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputPathError(
            f"the folder {folder} is not writable", hint=f"{option} a path in another folder"
        )


def _check_no_folder(path: Path, option: str) -> None:
    if _is_folder(path):
        raise OutputPathError(f"{path} is a folder", hint=f"{option} {path / 'output.jsonl'}")


def _is_folder(path: Path) -> bool:
    """Return whether it is one; a name that is too long for a folder is not."""
    try:
        return path.is_dir()
    except OSError:
        return False


def _check_name(path: Path, option: str, batch_id: str) -> None:
    """Refuse a name that the batch's id cannot be added to, which happens when the name is taken by then."""
    limit = os.pathconf(path.parent, "PC_NAME_MAX")
    room = limit - len(os.fsencode(second_name(path, batch_id).name)) + len(os.fsencode(path.name))
    if len(os.fsencode(path.name)) > room:
        raise OutputPathError(
            f"the name of {path} has {len(os.fsencode(path.name))} bytes; at most {room} are possible",
            hint=f"{option} a shorter name",
        )
