"""Read the settings as the service will: in its account, with its environment, in a process of its own.

The person at the terminal may be root, or have variables set that a boot does not know; asking in this
process would answer for the wrong one.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from vbatch.errors import ConfigError, ExitCode, NotAllowed
from vbatch.service.accounts import Account

if TYPE_CHECKING:
    from vbatch.config import Settings

LIMIT = timedelta(seconds=60)


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """The settings that the unit depends on. ``store_url`` may hold a password.

    ``folders`` are where the worker finds its models and leaves its logs.
    """

    store_url: str
    folders: tuple[str, ...]
    drain_seconds: float
    misconfigured: str | None = None


def look(
    account: Account, *, home: str, python: str, search_path: str, environment: Mapping[str, str]
) -> Seen:
    """Return the settings that hold in this account with this home.

    Raises ConfigError for settings that are wrong, NotAllowed where the account cannot run this Python.
    """
    as_account = account.uid != os.geteuid()
    try:
        done = subprocess.run(
            [python, "-P", "-m", __name__],
            env={"HOME": home, "PATH": search_path, "LANG": "C.UTF-8", **environment},
            cwd="/",
            user=account.uid if as_account else None,
            group=account.gid if as_account else None,
            extra_groups=os.getgrouplist(account.name, account.gid) if as_account else None,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=LIMIT.total_seconds(),
            check=False,
        )
    except OSError as error:
        raise _cannot_run(account, python, error.strerror or str(error)) from None
    except subprocess.TimeoutExpired:
        raise _cannot_run(account, python, f"no answer within {LIMIT.total_seconds():g} s") from None
    if done.returncode != 0:
        raise _cannot_run(account, python, (done.stderr.strip() or "no reason given").splitlines()[-1])
    seen = msgspec.json.decode(done.stdout, type=Seen)
    if seen.misconfigured is not None:
        raise ConfigError(seen.misconfigured)
    return seen


def _cannot_run(account: Account, python: str, reason: str) -> NotAllowed:
    return NotAllowed(
        f"user {account.name} cannot run vbatch with {python}: {reason}",
        hint="install vbatch where that user can read it, or name another user with --run-as",
    )


def _folders(settings: Settings) -> Iterator[Path]:
    """Yield the folders that may be mounts of their own. A model may also be a name, which is no path."""
    yield from (settings.cache_dir, settings.state_dir)
    for model in settings.models.values():
        if model.path is not None and (path := Path(model.path).expanduser()).is_absolute():
            yield path


def main() -> int:
    """Print the settings of this process as JSON."""
    from vbatch import config

    try:
        settings = config.load()
    except ConfigError as error:
        seen = Seen(store_url="", folders=(), drain_seconds=0, misconfigured=error.message)
    else:
        seen = Seen(
            store_url=settings.store_url,
            folders=tuple(map(str, _folders(settings))),
            drain_seconds=settings.drain_limit.total_seconds(),
        )
    sys.stdout.buffer.write(msgspec.json.encode(seen))
    return ExitCode.DONE


if __name__ == "__main__":
    sys.exit(main())
