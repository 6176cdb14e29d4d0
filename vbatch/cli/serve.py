"""``serve``: the HTTP server, in the foreground until a signal."""

from __future__ import annotations

import importlib.util
import os
import sys

from vbatch import logs
from vbatch.cli.output import Output, continue_without_terminal
from vbatch.cli.startup import settings as load_settings
from vbatch.config import Settings
from vbatch.config.serve import KEY_VARIABLE
from vbatch.errors import ConfigError, UsageError

_NEEDED = ("starlette", "uvicorn", "h11", "python_multipart")


def serve(*, host: str | None, port: int | None, no_key: bool, print_key: bool) -> None:
    """Serve until a signal, or print the key."""
    output = Output()
    settings = _settings(output, host=host, port=port)
    _check_extra()
    from vbatch.server import keys

    if print_key:
        if no_key:
            raise UsageError("--print-key prints a key, and --no-key uses none")
        sys.stdout.write(f"{keys.load(settings)[0]}\n")
        return
    _serve(output, settings, no_key=no_key)


def _serve(output: Output, settings: Settings, *, no_key: bool) -> None:
    from vbatch.server import keys, running

    chosen = bool(os.environ.get(KEY_VARIABLE) or settings.serve.api_keys)
    running.check_address(settings, no_key=no_key, key_is_chosen=chosen)
    accepted = [] if no_key else keys.load(settings)
    continue_without_terminal()
    with running.listen(settings) as listener:
        logs.configure(settings.log_level)
        if sys.stderr.isatty():
            output.note(f"OpenAI's API at {running.address(listener)}/v1   (Ctrl-C stops it)")
            if not no_key and not chosen:
                output.note("its key: vbatch serve --print-key")
        running.serve(settings, listener, accepted)


def _settings(output: Output, *, host: str | None, port: int | None) -> Settings:
    settings = load_settings(output)
    given = {name: value for name, value in (("host", host), ("port", port)) if value is not None}
    return settings.model_copy(update={"serve": settings.serve.model_copy(update=given)})


def _check_extra() -> None:
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"vbatch serve needs what is not installed: {', '.join(missing)}",
            hint=f"{sys.executable} -m pip install 'vbatch[serve]'",
        )
