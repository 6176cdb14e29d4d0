"""Whether the workers of this account rest: by ``vbatch pause``, by root's ``vbatch pause --all``, by their hours.

A pause is a small file: one in the state folder for the workers of an account, one of root's for those of every
account. It needs no store, is there after a reboot, and whoever asks reads it. A file that is not as vbatch writes it
is a pause too: it was cut short while a person asked for one.
"""

from __future__ import annotations

import json
import os
import pwd
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

from vbatch.config import Settings, pause_hours
from vbatch.errors import NotAllowed, VbatchError
from vbatch.system import files
from vbatch.text import one_line

NAME = "paused.json"
MACHINE_FILE = Path("/etc/vbatch") / NAME


class PauseNotWritten(VbatchError):
    """The file of a pause cannot be written or removed."""

    code = "pause_not_written"


class Paused(VbatchError):
    """The workers of this account rest on this host."""

    code = "paused"


class Reason(StrEnum):
    """What pauses the workers, the strongest first."""

    MACHINE = "machine"  # root, for every account
    ACCOUNT = "account"  # the account itself
    HOURS = "pause_hours"  # the hours of the configuration


@dataclass(frozen=True, slots=True, kw_only=True)
class Pause:
    """Why workers rest. ``since`` is None for hours, ``until`` for the commands; ``by`` is who gave the command.

    ``now``: running requests do not finish, they return to the queue.
    """

    reason: Reason
    now: bool = False
    since: datetime | None = None
    until: datetime | None = None
    by: str | None = None

    @property
    def words(self) -> str:
        """Why, and until when, in one line."""
        if self.until is not None:
            end = self.until.astimezone()
            day = "" if end.date() == datetime.now().astimezone().date() else f"{end:%a} "
            return f"paused until {day}{end:%H:%M} (pause_hours)"
        return f"paused by {self.by}{' for every account' if self.reason is Reason.MACHINE else ''}"

    @property
    def remedy(self) -> str:
        """How work continues."""
        match self.reason:
            case Reason.MACHINE:
                return "sudo vbatch resume --all"
            case Reason.ACCOUNT:
                return "vbatch resume"
            case Reason.HOURS:
                return "pause_hours in the configuration"


def active(settings: Settings, *, now: datetime | None = None) -> Pause | None:
    """Return what pauses the workers of these settings on this host; None where nothing does.

    Raises OSError where a file is there and cannot be read.
    """
    everyone = _read(MACHINE_FILE, Reason.MACHINE)
    own = _read(settings.state_dir / NAME, Reason.ACCOUNT)
    for pause in (everyone, own):
        if pause is not None and pause.now:
            return pause
    if everyone is not None or own is not None:
        return everyone or own
    end = pause_hours.until(settings.pause_hours, now or datetime.now(UTC))
    return None if end is None else Pause(reason=Reason.HOURS, until=end)


def shown(settings: Settings) -> Pause | None:
    """Return the same for people; None where it cannot be known."""
    try:
        return active(settings)
    except OSError:
        return None


def require_none(settings: Settings) -> None:
    """Raise Paused where the workers of these settings rest."""
    if (found := shown(settings)) is not None:
        raise Paused(f"no worker works here now: {found.words}", hint=found.remedy)


def pause(settings: Settings, *, everyone: bool, now: bool) -> Path:
    """Pause the workers of this account, or of every account; return the file that says so.

    One that is there keeps its time. Raises NotAllowed, PauseNotWritten.
    """
    file, reason = _file(settings, everyone=everyone)
    earlier = None
    with suppress(OSError):
        earlier = _read(file, reason)
    since = earlier.since if earlier is not None and earlier.since is not None else datetime.now(UTC)
    document = {"since": since.isoformat(timespec="seconds"), "now": now, "by": _user()}
    try:
        files.replace_text(file, json.dumps(document) + "\n", mode=0o644 if everyone else 0o600)
        if everyone:
            file.parent.chmod(file.parent.stat().st_mode | 0o555)  # every account's worker reads it
    except OSError as error:
        raise PauseNotWritten(f"cannot write {file}: {error.strerror or error}") from None
    return file


def resume(settings: Settings, *, everyone: bool) -> bool:
    """End a pause; return whether there was one. Raises NotAllowed, PauseNotWritten."""
    file, _ = _file(settings, everyone=everyone)
    try:
        file.unlink()
        files.sync(file.parent)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise PauseNotWritten(f"cannot remove {file}: {error.strerror or error}") from None
    return True


def document(found: Pause | None) -> dict[str, Any] | None:
    """Return a pause for programs."""
    if found is None:
        return None
    return {
        "reason": found.reason,
        "now": found.now,
        "since": _seconds(found.since),
        "until": _seconds(found.until),
        "by": found.by,
    }


def _seconds(moment: datetime | None) -> int | None:
    return None if moment is None else int(moment.timestamp())


def _file(settings: Settings, *, everyone: bool) -> tuple[Path, Reason]:
    if not everyone:
        return settings.state_dir / NAME, Reason.ACCOUNT
    if os.geteuid() != 0:
        raise NotAllowed(
            "the workers of every account can be paused and resumed by root alone",
            hint="run the same command with sudo, or leave out --all for your own workers",
        )
    return MACHINE_FILE, Reason.MACHINE


def _read(file: Path, reason: Reason) -> Pause | None:
    try:
        text = file.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    now, since, by = False, None, "vbatch pause"
    with suppress(ValueError, TypeError, KeyError, RecursionError):
        written = json.loads(text)
        now, by = written["now"] is True, one_line(str(written["by"]), limit=40)
        since = datetime.fromisoformat(written["since"]).astimezone(UTC)
    return Pause(reason=reason, now=now, since=since, by=by)


def _user() -> str:
    name = os.environ.get("SUDO_USER") if os.geteuid() == 0 else None
    try:
        return name or pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:  # a container's user without an entry
        return f"user {os.geteuid()}"
