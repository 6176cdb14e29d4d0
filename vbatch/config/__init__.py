"""Settings: a flag wins over a ``VBATCH_*`` variable, that over config.toml, that over the default.

Imported only where a command runs, never for ``--help``: pydantic takes its time to load.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Collection, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import quote

import platformdirs
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, ValidationError
from pydantic_core import ErrorDetails

from vbatch.config import gpu_setting, writers
from vbatch.config.chat import ChatSettings
from vbatch.config.endpoints import EndpointSettings
from vbatch.config.pause_hours import PauseHours
from vbatch.config.serve import KEY_VARIABLE, ServeSettings
from vbatch.config.tables import (
    PLAIN,
    DefaultSettings,
    DoctorSettings,
    Folder,
    ModelSettings,
    NotifySettings,
    WebhookSecret,
    names_once,
)
from vbatch.errors import ConfigError, StoreMisconfigured, UsageError, VbatchError
from vbatch.text import harmless, parse_duration, required

PREFIX = "VBATCH_"
SYSTEM_FILE = Path("/etc/vbatch/config.toml")
FILE_VARIABLE = "VBATCH_CONFIG"

# Variables of vbatch that are not settings: which file to read, the key of `serve`, tracebacks for a bug report.
OTHER_VARIABLES = frozenset({FILE_VARIABLE, KEY_VARIABLE, "VBATCH_DEBUG"})

# Tables of config.toml; a variable could only hold them as JSON, so there is none.
TABLES: Mapping[str, type[BaseModel]] = {
    "models": ModelSettings,
    "notify": NotifySettings,
    "endpoints": EndpointSettings,
    "defaults": DefaultSettings,
    "doctor": DoctorSettings,
    "serve": ServeSettings,
}


def _duration(value: object) -> object:
    return parse_duration(value) if isinstance(value, str) else value


def _duration_or_never(value: object) -> object:
    return None if value == "never" else _duration(value)


_Positive = Annotated[timedelta, Field(gt=timedelta())]
Duration = Annotated[_Positive, BeforeValidator(_duration)]
DurationOrNever = Annotated[_Positive | None, BeforeValidator(_duration_or_never)]
GpuSetting = Annotated[str | None, BeforeValidator(gpu_setting.normalised)]


class Settings(ChatSettings):
    """Everything that can be set. ``gpu`` is ``VBATCH_GPU`` in the environment, ``gpu`` in the file.

    Durations are written ``90s`` or ``15m``. ``database_url`` may hold a password: it is never printed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    database_url: SecretStr | None = Field(None, description="where the store is; default: a SQLite file")
    data_dir: Folder = Field(
        default_factory=lambda: platformdirs.user_data_path("vbatch"),
        description="the folder of the SQLite file",
    )
    cache_dir: Folder = Field(
        default_factory=lambda: platformdirs.user_cache_path("vbatch"),
        description="the folder of models and of the demo",
    )
    state_dir: Folder = Field(
        default_factory=lambda: platformdirs.user_state_path("vbatch"),
        description="the folder of the engines' logs",
    )
    engine: Literal["vllm", "echo", "endpoint"] = Field("vllm", description="what answers the requests")
    gpu: GpuSetting = Field(
        None, description="GPU N, or N,N for one engine, or all; default: see docs/models.md"
    )
    max_inflight: int | None = Field(
        None, ge=1, description="requests given to the engine at once; default: what keeps it busy"
    )
    preload: str | None = Field(None, description="a model to load before there is work for it")
    flush_interval: Duration = Field(
        timedelta(seconds=1), description="answers are saved at least this often"
    )
    request_timeout: DurationOrNever = Field(None, description="the longest that one request may run")
    idle_unload: DurationOrNever = Field(
        timedelta(minutes=15), description="the engine is unloaded after this time without work"
    )
    engine_stall: Duration = Field(
        timedelta(minutes=10), description="an engine without progress for this time is restarted"
    )
    drain_limit: Duration = Field(
        timedelta(minutes=5), description="at a stop, running requests may take this long to finish"
    )
    pause_hours: PauseHours = Field((), description="hours in which workers rest: `Mon-Fri 08:00-18:00`")
    lease: Duration = Field(
        timedelta(seconds=90), description="a worker on another machine that is silent for this time is dead"
    )
    echo_latency_ms: int = Field(0, ge=0, description="how long the echo engine takes for an answer")
    metrics_port: int | None = Field(
        None, ge=0, le=65000, description="a loopback port for /metrics and /health; GPU N adds N to it"
    )
    notify_default: str | None = Field(
        None, description="who is notified of the end of a batch without --notify: a name or a URL"
    )
    notify_private: bool = Field(False, description="whether webhooks may go to private addresses")
    notify_secret: WebhookSecret = Field(None, description="the key that signs webhooks: whsec_ and base64")
    audio_private: bool = Field(
        False, description="whether the `file_url` of a request may name plain http and private addresses"
    )
    audio_limit: int = Field(512, ge=1, le=16384, description="the largest audio file of a request, in MiB")
    audio_timeout: Duration = Field(
        timedelta(minutes=5), description="the longest that fetching the audio of a request may take"
    )
    label_studio_url: str | None = Field(None, description="where Label Studio is, for `vbatch label`")
    label_studio_token: SecretStr | None = Field(
        None, description="the token for Label Studio: a legacy one, or a personal access token"
    )
    label_studio_token_file: Folder | None = Field(
        None, description="a file with this token, which only you may read (mode 0600)"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="the least important event that run-worker logs"
    )
    defaults: DefaultSettings = DefaultSettings()
    models: Annotated[Mapping[str, ModelSettings], AfterValidator(names_once)] = Field(default_factory=dict)
    notify: Mapping[str, NotifySettings] = Field(default_factory=dict)
    endpoints: Mapping[str, EndpointSettings] = Field(default_factory=dict)
    doctor: DoctorSettings = DoctorSettings()
    serve: ServeSettings = ServeSettings()

    @property
    def echo_latency(self) -> timedelta:
        """``echo_latency_ms`` as a duration; it may be zero."""
        return timedelta(milliseconds=self.echo_latency_ms)

    @property
    def store_url(self) -> str:
        """The store's URL, password included: for the store only, never printed."""
        if self.database_url is not None:
            return self.database_url.get_secret_value()
        try:
            return f"sqlite:///{quote(str(self.data_dir / 'vbatch.db'))}"
        except UnicodeEncodeError:
            raise StoreMisconfigured(
                f"the name of the data folder is not UTF-8: {self.data_dir}",
                hint="export VBATCH_DATA_DIR=/var/tmp/vbatch",
            ) from None

    def model_path(self, model: str) -> str:
        """Where vLLM finds this model: the configured path, a folder of the cache, or the name itself."""
        configured = self.models[model].path if model in self.models else None
        if configured is not None:
            return str(Path(configured).expanduser())
        cached = self.cache_dir / "models" / model
        return str(cached) if os.path.isdir(cached) else model  # noqa: PTH112  (Path's raises for a long name)

    def engine_args(self, model: str) -> tuple[str, ...]:
        """All of vLLM's flags for this model."""
        return (*self.defaults.args, *(self.models[model].args if model in self.models else ()))


def load(**flags: Any) -> Settings:
    """Return the settings that hold for one command; a flag that is None was not given.

    Raises UsageError for a wrong flag, else ConfigError, which names the variable, or the file and its key.
    """
    given = {name: value for name, value in flags.items() if value is not None}
    try:
        return Settings(**{**_read_file()[1], **_environment(), **given})
    except ValidationError as error:
        raise _describe(error.errors(include_url=False)[0], given) from None
    except RuntimeError as error:  # of pathlib and platformdirs: no HOME, and no entry for this user
        raise ConfigError(
            f"there is no home directory: {error}", hint="export HOME=/var/lib/vbatch"
        ) from None


def _environment() -> dict[str, str]:
    """Return the settings that ``VBATCH_*`` variables give, in capitals or not; an empty one gives none."""
    given = {name.upper(): value for name, value in os.environ.items() if value}
    names = (name for name in Settings.model_fields if name not in TABLES)
    return {name: given[variable] for name in names if (variable := PREFIX + name.upper()) in given}


def with_present_models(settings: Settings) -> Settings:
    """Return settings with the models as the configuration file has them now; one that is not valid changes nothing."""
    try:
        return settings.model_copy(update={"models": load().models}) if _read_file()[0] else settings
    except VbatchError:
        return settings


def variables() -> frozenset[str]:
    """Return the name of every environment variable that vbatch reads."""
    return OTHER_VARIABLES | {PREFIX + name.upper() for name in Settings.model_fields if name not in TABLES}


def misspelt_variables(environ: Mapping[str, str]) -> list[str]:
    """Return one sentence for each ``VBATCH_*`` variable that sets nothing."""
    known = variables()
    return [
        f"{harmless(name)} is not a setting of vbatch{_suggestion(name, known, prefix=PREFIX)}"
        for name in sorted(environ)
        if name.startswith(PREFIX) and name.upper() not in known
    ]


def _read_file() -> tuple[Path | None, dict[str, Any]]:
    """Find and read the configuration file: the one that VBATCH_CONFIG names, the user's, the system's."""
    named = os.environ.get(FILE_VARIABLE)
    candidates = [Path(named).expanduser()] if named else [user_file(), SYSTEM_FILE]
    for path in candidates:
        try:
            with path.open("rb") as file:
                found = tomllib.load(file)
                writers.check(path, os.fstat(file.fileno()), found)
                return path, found
        except FileNotFoundError:
            continue
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path} is not valid TOML: {error}") from None
        except OSError as error:
            raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    if named:
        raise ConfigError(
            f"the configuration file {named} does not exist",
            hint=f"unset {FILE_VARIABLE}, or create the file",
        )
    return None, {}


def user_file() -> Path:
    """Return where a person's own configuration file would be."""
    return platformdirs.user_config_path("vbatch") / "config.toml"


def _describe(detail: ErrorDetails, flags: Collection[str]) -> VbatchError:
    """Name the source of the wrong value. The value itself may be a secret: it is left out."""
    location = [str(part) for part in detail["loc"]]
    name = location[0]
    message = required(detail["msg"].removeprefix("Value error, "))
    message = PLAIN.get(detail["type"]) or message[:1].lower() + message[1:]
    if name in flags:
        return UsageError(f"--{name.replace('_', '-')}: {message}")
    variable = PREFIX + name.upper()
    if name not in TABLES and os.environ.get(variable):
        return ConfigError(f"{variable}: {message}")
    where = f"{_read_file()[0]}: {_key(location)}"
    if detail["type"] == "extra_forbidden":
        return ConfigError(f"{where} is not a setting{_suggestion(location[-1], _known_keys(location))}")
    return ConfigError(f"{where}: {message}")


def _known_keys(location: list[str]) -> Collection[str]:
    table = TABLES.get(location[0]) if len(location) > 1 else None
    return (table or Settings).model_fields


def _key(location: list[str]) -> str:
    """Write a key as the file would: ``models."some/model".args``."""
    return ".".join(part if part.replace("_", "").isalnum() else f'"{harmless(part)}"' for part in location)


def _suggestion(name: str, known: Collection[str], *, prefix: str = "") -> str:
    candidates = [candidate.removeprefix(prefix) for candidate in known]
    nearest = difflib.get_close_matches(name.removeprefix(prefix), candidates, n=1)
    return f"; did you mean {prefix}{nearest[0]}?" if nearest else ""
