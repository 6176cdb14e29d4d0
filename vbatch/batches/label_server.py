"""The Label Studio of the settings: its URL, and the token from a variable or from a file of its owner alone."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

from vbatch.config import Settings
from vbatch.errors import ConfigError, UsageError
from vbatch.outbound.api import Api
from vbatch.outbound.http import Refused, check
from vbatch.outbound.label_studio import LabelStudio

_TOKEN = re.compile(r"[A-Za-z0-9._~+/=-]+")
_HINT = "export VBATCH_LABEL_STUDIO_TOKEN=…, or label_studio_token_file in config.toml"


def label_server(settings: Settings, url: str | None) -> LabelStudio:
    """Return the server at this URL, or that of the settings. Raises UsageError, ConfigError for the token."""
    chosen = url or settings.label_studio_url
    if chosen is None:
        raise UsageError("where is Label Studio? --url is missing", hint="--url http://127.0.0.1:8080")
    try:
        check(chosen)
    except Refused as error:
        raise UsageError(f"--url: {error}", hint="--url http://127.0.0.1:8080") from None
    return LabelStudio(api=Api(url=chosen), token=_token(settings))


def _token(settings: Settings) -> str:
    where, token = "VBATCH_LABEL_STUDIO_TOKEN", ""
    if settings.label_studio_token is not None:
        token = settings.label_studio_token.get_secret_value().strip()
    elif settings.label_studio_token_file is not None:
        path = settings.label_studio_token_file
        where, token = str(path), _read(path)
    if not token:
        raise ConfigError("there is no token for Label Studio", hint=_HINT)
    if not _TOKEN.fullmatch(token):
        raise ConfigError(f"the token in {where} has characters that no token has", hint=_HINT)
    return token


def _read(path: Path) -> str:
    """Return the text of a file that only its owner may read. Raises ConfigError."""
    try:
        with path.open() as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise ConfigError(f"{path} is not a file", hint=_HINT)
            if status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
                raise ConfigError(f"other users can read the token in {path}", hint=f"chmod 600 {path}")
            return file.read(4096).strip()
    except (OSError, UnicodeDecodeError) as error:
        cause = error.strerror if isinstance(error, OSError) else "it is not text"
        raise ConfigError(f"{path} cannot be read: {cause}", hint=_HINT) from None
