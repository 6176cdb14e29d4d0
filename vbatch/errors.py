"""Every error that a user can meet: its message, its hint and the exit code of the command."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import ClassVar


class ExitCode(IntEnum):
    """What a command's exit status means (sysexits.h where a number exists there)."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    INVALID_INPUT = 3
    NO_SUCH_BATCH = 4
    INCOMPLETE = 5
    ENGINE_UNAVAILABLE = 69
    STORE_UNREACHABLE = 75
    MISCONFIGURED = 78
    INTERRUPTED = 130


class VbatchError(Exception):
    """Something went wrong."""

    code: ClassVar[str] = "error"
    exit_code: ClassVar[ExitCode] = ExitCode.FAILED

    def __init__(self, message: str | None = None, *, hint: str | None = None) -> None:
        self.message = message or _first_line_of_docstring(type(self))
        self.hint = hint
        super().__init__(self.message)


def _first_line_of_docstring(error: type[VbatchError]) -> str:
    """Return the docstring's first line in the style of a message: lower case, no full stop."""
    line = (error.__doc__ or "").strip().splitlines()[0].removesuffix(".")
    return line[:1].lower() + line[1:]


class ConfigError(VbatchError):
    """The configuration is wrong, and only a person can fix it."""

    code = "misconfigured"
    exit_code = ExitCode.MISCONFIGURED


class UsageError(VbatchError):
    """The command was called wrongly."""

    code = "usage"
    exit_code = ExitCode.USAGE


class NotAllowed(VbatchError):
    """This needs another user's rights."""

    code = "not_allowed"
    exit_code = ExitCode.USAGE


class InputUnreadable(VbatchError):
    """The input file cannot be read."""

    code = "input_unreadable"
    exit_code = ExitCode.USAGE


class TableError(VbatchError):
    """The table cannot be read, or requests cannot be made of it.

    A command in the hint calls the table FILE until it is known what the shell calls it.
    """

    code = "invalid_table"
    exit_code = ExitCode.INVALID_INPUT


class LabelStudioError(VbatchError):
    """Label Studio cannot be reached, or refused what was asked."""

    code = "label_studio"


class NoSuchBatch(VbatchError):
    """No batch has this id."""

    code = "no_such_batch"
    exit_code = ExitCode.NO_SUCH_BATCH


class AmbiguousBatch(NoSuchBatch):
    """Several batches have ids like this."""

    code = "ambiguous_batch"


class WrongStatus(VbatchError):
    """The batch is not in a status that allows this."""

    code = "wrong_status"


class NoSuchRequest(VbatchError):
    """There is no request with this custom_id in the batch."""

    code = "no_such_request"
    exit_code = ExitCode.NO_SUCH_BATCH


class OutputPathError(VbatchError):
    """The output cannot be written there."""

    code = "output_path"
    exit_code = ExitCode.USAGE


class StoreUnreachable(VbatchError):
    """The job store cannot be reached at the moment.

    ``fault`` is one of ``vbatch.store.database.backends.protocol.Fault``.
    """

    code = "store_unreachable"
    exit_code = ExitCode.STORE_UNREACHABLE

    def __init__(self, message: str | None = None, *, hint: str | None = None, fault: str = "away") -> None:
        super().__init__(message, hint=hint)
        self.fault = fault


class StoreReplaced(StoreUnreachable):
    """The job store was replaced by another one, or by older contents of its own, while vbatch used it."""

    code = "store_replaced"

    def __init__(self, message: str | None = None, *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint or "vbatch list", fault="replaced")


class StoreMisconfigured(ConfigError):
    """The job store refuses vbatch, and waiting will not help.

    ``fault`` says why, as in StoreUnreachable.
    """

    code = "store_misconfigured"

    def __init__(self, message: str | None = None, *, hint: str | None = None, fault: str = "url") -> None:
        super().__init__(message, hint=hint)
        self.fault = fault


class StoreDefect(Exception):
    """An error of the database that only a defect of vbatch explains. Its text holds nothing of a request."""


class EngineUnavailable(VbatchError):
    """The engine could not be started."""

    code = "engine_unavailable"
    exit_code = ExitCode.ENGINE_UNAVAILABLE


class OnlyBlocked(EngineUnavailable):
    """Nothing is left but requests for models that cannot be loaded.

    ``causes`` are the name, the reason and the hint of each.
    """

    def __init__(self, message: str, *, causes: Sequence[tuple[str, str, str | None]]) -> None:
        several = len(causes) > 1
        named = "; ".join(
            (reason if reason.startswith(name) else f"{name}: {reason}")
            + (f" ({hint})" if hint and several else "")
            for name, reason, hint in causes
        )
        hint = next((hint for _name, _reason, hint in causes if not several), None)
        super().__init__(f"{message}: {named}", hint=hint or "vbatch doctor queue.blocked")


class FilesElsewhere(VbatchError):
    """Nothing is left of the batch but its files, which another host is to write."""

    code = "files_elsewhere"
    exit_code = ExitCode.ENGINE_UNAVAILABLE


class Interrupted(VbatchError):
    """Interrupted."""

    code = "interrupted"
    exit_code = ExitCode.INTERRUPTED
