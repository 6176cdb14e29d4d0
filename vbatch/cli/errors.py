"""What a failed command prints: ``error: …`` and ``hint: …`` on stderr, with --json one document on stdout."""

from __future__ import annotations

import os
import shlex
import sys
import traceback
from collections.abc import Sequence
from typing import Any

import typer

from vbatch.cli.output import Failure, Mode, Output
from vbatch.errors import ExitCode, VbatchError
from vbatch.system import limits
from vbatch.text import required


def report(error: BaseException, argv: Sequence[str]) -> int:
    """Print what went wrong and return the exit code."""
    if isinstance(error, BrokenPipeError):
        return ExitCode.DONE  # `vbatch results … | head`: the reader has what it wanted
    if os.environ.get("VBATCH_DEBUG"):
        traceback.print_exception(error)
    failure = describe(error, argv)
    options = argv[: argv.index("--")] if "--" in argv else argv
    output = Output(Mode.JSON if "--json" in options else Mode.HUMAN)
    try:
        output.failure(failure)
    except (
        OSError,
        SystemExit,
    ):  # a full disk, a closed pipe (of which Rich makes SystemExit): the code is enough
        pass
    except (MemoryError, SystemError):  # not even for a coloured line
        os.write(2, f"error: {failure.message}\nhint: {failure.hint}\n".encode(errors="replace"))
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
                message=_lower_case(error.format_message()).replace(": Value error, ", ": ", 1),
                hint=_usage_hint(error, argv),
                exit_code=int(ExitCode.USAGE),
            )
        case KeyboardInterrupt() | typer.Abort():
            return Failure(
                code="interrupted", message="interrupted", hint=None, exit_code=int(ExitCode.INTERRUPTED)
            )
        case UnicodeEncodeError(reason="surrogates not allowed"):
            shown = error.object.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
            return Failure(
                code="usage",
                message=f"this name is not UTF-8: {shown}",
                hint="rename the file or folder"
                if os.sep in error.object or os.path.lexists(error.object)
                else "write it in UTF-8",
                exit_code=int(ExitCode.USAGE),
            )
    return _of_the_machine(error) or Failure(
        code="internal",
        message=f"unexpected {type(error).__name__}: {error}",
        hint=f"VBATCH_DEBUG=1 vbatch {' '.join(argv[:1])} … shows where; please report it",
        exit_code=int(ExitCode.FAILED),
    )


def _of_the_machine(error: BaseException) -> Failure | None:
    """Put a limit that was reached, or what the operating system refused, into words."""
    if (limit := limits.reached(error)) is not None:
        sys.unraisablehook = lambda _args: None  # what the interpreter could not clean up for the same reason
        hint: str | None = limit.hint
        code, message = limit.code, limit.message
    elif isinstance(error, OSError) and error.strerror is not None:
        where = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
        code, message, hint = "os_error", f"{where}{error.strerror}", None
    else:
        return None
    return Failure(code=code, message=message, hint=hint, exit_code=int(ExitCode.FAILED))


def _lower_case(message: str) -> str:
    """Return a message of Typer's in vbatch's style: no capital (but in a name), no full stop."""
    message = required(message.strip().removesuffix(".")).replace(". Did you mean ", "; did you mean ")
    return message[:1].lower() + message[1:] if message.partition(" ")[0][1:].islower() else message


def _particulars(error: VbatchError) -> dict[str, Any]:
    """Return what else is shown: every bad line of an input file."""
    if error.code != "invalid_input":
        return {}
    from vbatch.batches import InvalidInput, documents

    assert isinstance(error, InvalidInput)
    lines = [
        f"  {many:,} lines ({', '.join(map(str, first))}, …): {message} ({code})"
        for (code, message), (many, first) in error.shared.items()
    ]
    lines += [
        f"  line {bad.line}: {bad.message} ({bad.code})" if bad.line else f"  {bad.message} ({bad.code})"
        for bad in error.alone
    ]
    shown = len(error.alone) + sum(many for many, _ in error.shared.values())
    if error.total > shown:
        lines.append(f"  … and {error.total - shown:,} more")
    return {"lines": lines, "extra": documents.defects_document(error)}


def _usage_hint(error: typer.TyperException, argv: Sequence[str]) -> str:
    unknown = getattr(error, "option_name", None)
    if type(error).__name__ == "NoSuchOption" and argv[:1] == ["run-worker"] and "--" not in argv:
        place = next((at for at, word in enumerate(argv) if word.partition("=")[0] == unknown), 1)
        own = shlex.join(["vbatch", *argv[:place]])
        return f"{own} -- {shlex.join(argv[place:])}   # flags of vLLM stand after a double dash"
    context: typer.Context | None = getattr(error, "ctx", None)
    if context is not None:
        return f"{context.command_path} --help"
    return "vbatch --help" if not argv or argv[0].startswith("-") else f"vbatch {argv[0]} --help"
