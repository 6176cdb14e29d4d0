"""What can go wrong while a service is installed."""

from __future__ import annotations

from vbatch.errors import ExitCode, VbatchError


class UnitEdited(VbatchError):
    """The installed unit was changed by hand."""

    code = "unit_edited"


class NotAllowed(VbatchError):
    """This needs another user's rights."""

    code = "not_allowed"
    exit_code = ExitCode.USAGE


class ServiceFailed(VbatchError):
    """The service did not become ready."""

    code = "service_failed"
