"""The command line: ``main`` runs one command and returns its exit code, whatever happens."""

from __future__ import annotations

import copy
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

from vbatch.errors import ExitCode

if TYPE_CHECKING:
    import typer


def main(argv: Sequence[str]) -> int:
    """Run ``vbatch ARGV…`` in this process. Never raises; see ``vbatch.errors.ExitCode``."""
    from vbatch.cli import errors

    try:
        # standalone_mode off: a command's return value is the exit code, and Typer prints no error itself.
        code = int(_program(argv)(args=list(argv), prog_name="vbatch", standalone_mode=False) or 0)
        if code == ExitCode.INTERRUPTED:  # what Typer makes of Ctrl-C
            raise KeyboardInterrupt
        return code
    except SystemExit as stop:  # Typer's way to end --install-completion, TAB and a closed pipe
        if isinstance(stop.__context__, BrokenPipeError):
            return errors.report(stop.__context__, argv)
        return stop.code if isinstance(stop.code, int) else 0
    except BaseException as error:
        return errors.report(error, argv)


def run() -> NoReturn:
    """Run the command line of this process (the console script)."""
    from vbatch.cli import quick

    quick.begin()
    _replace_closed_streams()
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # a locale without UTF-8
    code = main(sys.argv[1:])
    try:
        sys.stdout.flush()
    except OSError as error:
        # The reader (`| head`) has what it wanted, or the disk is full; keep the interpreter from complaining at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            code = code or ExitCode.FAILED
    quick.leave()
    sys.exit(code)


def _program(argv: Sequence[str]) -> typer.Typer:
    """Return the program; where a command is named, with this command alone: to prepare the others takes longer."""
    from vbatch.cli.machine import app

    words = argv or _completed()
    named = [
        command
        for command in app.registered_commands
        if words and words[0] == (command.name or command.callback.__name__.replace("_", "-"))  # type: ignore[union-attr]
    ]
    if not named:
        return app
    program = copy.copy(app)
    program.registered_commands, program.registered_groups = named, []
    return program


def _completed() -> Sequence[str]:
    """Return the words after ``vbatch`` of a line on which TAB was pressed, as the script of the shell has them."""
    line = os.environ.get("_TYPER_COMPLETE_ARGS") or os.environ.get("COMP_WORDS", "")
    return line.split()[1:]


def _replace_closed_streams() -> None:
    """Open /dev/null for streams that the shell closed (``>&-``).

    Else the first file that is opened, such as the store, gets the number of stdout or stderr, and what is printed
    is written into it. ``sys.stdin`` stays None: there is nothing to read.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is not None:
            continue
        handle = os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free: this one
        os.set_inheritable(handle, True)
        if number > 0:
            setattr(sys, name, os.fdopen(handle, "w"))
