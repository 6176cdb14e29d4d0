"""What a failed command prints: ``error: …`` and ``hint: …`` on stderr, with --json one document on stdout."""

from __future__ import annotations

import os
import traceback
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import typer

from vbatch.cli.output import Failure, Mode, Output
from vbatch.errors import ExitCode, VbatchError


def report(error: BaseException, argv: Sequence[str]) -> int:
    """Print what went wrong and return the exit code."""
    if isinstance(error, BrokenPipeError):
        return ExitCode.DONE  # `vbatch results … | head`: the reader has what it wanted
    if os.environ.get("VBATCH_DEBUG"):
        traceback.print_exception(error)
    failure = describe(error, argv)
    options = argv[: argv.index("--")] if "--" in argv else argv
    output = Output(Mode.JSON if "--json" in options else Mode.HUMAN)
    with suppress(OSError):  # a full disk, a closed pipe: then the exit code has to be enough
        output.failure(failure)
    return failure.exit_code


def describe(error: BaseException, argv: Sequence[str]) -> Failure:
    """Put an exception into words."""
    match error:
        case VbatchError():
            return Failure(
                code=error.code,
                message=error.message,
                hint=error.hint,
                exit_code=int(error.exit_code),
                **_particulars(error),
            )
        case typer.TyperException():
            return Failure(
                code="usage",
                message=_lower_case(error.format_message()),
                hint=_usage_hint(error, argv),
                exit_code=int(ExitCode.USAGE),
            )
        case KeyboardInterrupt() | typer.Abort():
            return Failure(
                code="interrupted", message="interrupted", hint=None, exit_code=int(ExitCode.INTERRUPTED)
            )
        case UnicodeEncodeError(reason="surrogates not allowed"):
            shown = os.fsencode(error.object).decode(errors="replace")
            return Failure(
                code="usage",
                message=f"this name is not UTF-8: {shown}",
                hint="rename the file or folder",
                exit_code=int(ExitCode.USAGE),
            )
        case OSError() if error.strerror is not None:
            where = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
            return Failure(
                code="os_error", message=f"{where}{error.strerror}", hint=None, exit_code=int(ExitCode.FAILED)
            )
        case _:
            return Failure(
                code="internal",
                message=f"unexpected {type(error).__name__}: {error}",
                hint=f"VBATCH_DEBUG=1 vbatch {' '.join(argv[:1])} … shows where; please report it",
                exit_code=int(ExitCode.FAILED),
            )


def _lower_case(message: str) -> str:
    """Return a message of Typer's in vbatch's style: no capital (but in a name), no full stop."""
    message = message.strip().removesuffix(".")
    return message[:1].lower() + message[1:] if message.partition(" ")[0][1:].islower() else message


def _particulars(error: VbatchError) -> dict[str, Any]:
    """Return what else is shown: every bad line of an input file."""
    if error.code != "invalid_input":
        return {}
    from vbatch.batches import InvalidInput, documents

    assert isinstance(error, InvalidInput)
    lines = [
        f"  line {bad.line}: {bad.message} ({bad.code})" if bad.line else f"  {bad.message} ({bad.code})"
        for bad in error.errors
    ]
    if error.total > len(lines):
        lines.append(f"  … and {error.total - len(lines):,} more")
    return {"lines": lines, "extra": documents.defects_document(error)}


def _usage_hint(error: typer.TyperException, argv: Sequence[str]) -> str:
    context: typer.Context | None = getattr(error, "ctx", None)
    if context is not None:
        return f"{context.command_path} --help"
    return "vbatch --help" if not argv or argv[0].startswith("-") else f"vbatch {argv[0]} --help"
