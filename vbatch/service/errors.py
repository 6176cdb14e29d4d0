"""What can go wrong while a service is installed, each with the words and the way out."""

from __future__ import annotations

from vbatch.errors import ExitCode, VbatchError


class NoSystemd(VbatchError):
    """This machine is not run by systemd."""

    code = "no_systemd"


class SystemdRefused(VbatchError):
    """systemd did not do what it was asked to do."""

    code = "systemd_refused"


class UnitInvalid(VbatchError):
    """systemd-analyze does not accept the unit; nothing was written."""

    code = "unit_invalid"


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
