"""The keys that open the server: where they are, how the first one is made, how they are compared."""

from __future__ import annotations

import hmac
import os
import secrets
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path

from vbatch.config import Settings
from vbatch.config.serve import KEY_VARIABLE
from vbatch.errors import ConfigError
from vbatch.system.files import open_plain, replace_text

_SHORTEST = 16  # characters
_LONGEST = 4096


class Keys:
    """The keys of a server; without any, everything is open."""

    def __init__(self, keys: Sequence[str]) -> None:
        self._keys = [key.encode() for key in keys]

    @property
    def demanded(self) -> bool:
        """Whether a request needs a key."""
        return bool(self._keys)

    def fits(self, given: str) -> bool:
        """Return whether this is one of them. Takes as long whichever it is, and wherever it differs."""
        candidate = given.encode(errors="surrogateescape")
        return sum(hmac.compare_digest(candidate, key) for key in self._keys) > 0


def key_file(settings: Settings) -> Path:
    """Return where the key that the first start makes is."""
    return settings.data_dir / "api-key"


def load(settings: Settings, environ: Mapping[str, str] = os.environ) -> list[str]:
    """Return the keys: of the environment, of the configuration, else of the key file, which the first start makes.

    Raises ConfigError for a key that is too short, and for a file that others can read.
    """
    if given := environ.get(KEY_VARIABLE):
        if len(given) < _SHORTEST:
            raise ConfigError(f"{KEY_VARIABLE} is shorter than {_SHORTEST} characters", hint=_make())
        return [given]
    if configured := settings.serve.api_keys:
        return [key.get_secret_value() for key in configured]
    path = key_file(settings)
    try:
        return [_read(path)]
    except FileNotFoundError:
        key = f"vbatch-{secrets.token_urlsafe(32)}"
        replace_text(path, f"{key}\n", mode=0o600)
        return [key]
    except OSError as error:
        raise ConfigError(
            f"the key file {path} cannot be read: {error.strerror}", hint=f"ls -l {path}"
        ) from None


def _read(path: Path) -> str:
    with open_plain(path) as stream:
        status = os.fstat(stream.fileno())
        if status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) & 0o077:
            raise ConfigError(
                f"other users can read the key file {path}, or it is not yours", hint=f"chmod 600 {path}"
            )
        key = stream.read(_LONGEST).decode(errors="replace").strip()
    if len(key) < _SHORTEST:
        raise ConfigError(f"the key in {path} is shorter than {_SHORTEST} characters", hint=f"rm {path}")
    return key


def _make() -> str:
    return f'export {KEY_VARIABLE}="vbatch-$(openssl rand -base64 32)"'
