"""Settings: a flag wins over a ``VBATCH_*`` variable, that over config.toml, that over the default.

Imported only where a command runs, never for ``--help``: pydantic-settings takes its time to load.
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
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from vbatch.errors import ConfigError, UsageError, VbatchError
from vbatch.text import harmless, parse_duration

PREFIX = "VBATCH_"
SYSTEM_FILE = Path("/etc/vbatch/config.toml")
FILE_VARIABLE = "VBATCH_CONFIG"

# Variables of vbatch that are not settings: which file to read, and tracebacks for a bug report.
OTHER_VARIABLES = frozenset({FILE_VARIABLE, "VBATCH_DEBUG"})

# Tables of config.toml; a variable could only hold them as JSON, so there is none.
TABLES = frozenset({"models", "defaults", "doctor"})


def _duration(value: object) -> object:
    return parse_duration(value) if isinstance(value, str) else value


def _duration_or_never(value: object) -> object:
    return None if value == "never" else _duration(value)


def _home(value: object) -> object:
    return Path(value).expanduser() if isinstance(value, str) else value


_Positive = Annotated[timedelta, Field(gt=timedelta())]
Duration = Annotated[_Positive, BeforeValidator(_duration)]
DurationOrNever = Annotated[_Positive | None, BeforeValidator(_duration_or_never)]
Folder = Annotated[Path, BeforeValidator(_home)]


class ModelSettings(BaseModel):
    """``[models."NAME"]``: where a model's files are, and vLLM's flags for it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    args: tuple[str, ...] = ()
    path: str | None = None


class DefaultSettings(BaseModel):
    """``[defaults]``: vLLM's flags for every model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    args: tuple[str, ...] = ()


class DoctorSettings(BaseModel):
    """``[doctor]``: in ``[doctor.neighbours]`` the services whose health doctor looks at, each with its URL."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    neighbours: Mapping[str, str] = Field(default_factory=dict)


class Settings(BaseSettings):
    """Everything that can be set. ``gpu`` is ``VBATCH_GPU`` in the environment, ``gpu`` in the file.

    Durations are written ``90s`` or ``15m``. ``database_url`` may hold a password: it is never printed.
    """

    model_config = SettingsConfigDict(frozen=True, extra="forbid", env_prefix=PREFIX, env_ignore_empty=True)

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
    engine: Literal["vllm", "echo"] = Field("vllm", description="what answers the requests")
    gpu: int | None = Field(None, ge=0, description="the number of the GPU to use; default: the first")
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
    lease: Duration = Field(
        timedelta(seconds=90), description="a worker on another machine that is silent for this time is dead"
    )
    echo_latency_ms: int = Field(0, ge=0, description="how long the echo engine takes for an answer")
    metrics_port: int | None = Field(
        None, ge=0, le=65000, description="a loopback port for /metrics and /health; GPU N adds N to it"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="the least important event that run-worker logs"
    )
    defaults: DefaultSettings = DefaultSettings()
    models: Mapping[str, ModelSettings] = Field(default_factory=dict)
    doctor: DoctorSettings = DoctorSettings()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Return where settings come from, strongest first."""
        return init_settings, _Environment(settings_cls), InitSettingsSource(settings_cls, _read_file()[1])

    @property
    def echo_latency(self) -> timedelta:
        """``echo_latency_ms`` as a duration; it may be zero."""
        return timedelta(milliseconds=self.echo_latency_ms)

    @property
    def store_url(self) -> str:
        """The store's URL, password included: for the store only, never printed."""
        if self.database_url is not None:
            return self.database_url.get_secret_value()
        return f"sqlite:///{quote(str(self.data_dir / 'vbatch.db'))}"

    def model_path(self, model: str) -> str:
        """Where vLLM finds this model: the configured path, a folder of the cache, or the name itself."""
        configured = self.models[model].path if model in self.models else None
        if configured is not None:
            return str(Path(configured).expanduser())
        cached = self.cache_dir / "models" / model
        return str(cached) if cached.is_dir() else model

    def engine_args(self, model: str) -> tuple[str, ...]:
        """All of vLLM's flags for this model."""
        return (*self.defaults.args, *(self.models[model].args if model in self.models else ()))


class _Environment(EnvSettingsSource):
    """The ``VBATCH_*`` variables; there is none for a table of the file."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        return (
            (None, field_name, False) if field_name in TABLES else super().get_field_value(field, field_name)
        )


def load(**flags: Any) -> Settings:
    """Return the settings that hold for one command; a flag that is None was not given.

    Raises UsageError for a wrong flag, else ConfigError, which names the variable, or the file and its key.
    """
    given = {name: value for name, value in flags.items() if value is not None}
    try:
        return Settings(**given)
    except ValidationError as error:
        raise _describe(error.errors(include_url=False)[0], given) from None
    except RuntimeError as error:  # of pathlib and platformdirs: no HOME, and no entry for this user
        raise ConfigError(
            f"there is no home directory: {error}", hint="export HOME=/var/lib/vbatch"
        ) from None


def variables() -> frozenset[str]:
    """Return the name of every environment variable that vbatch reads."""
    return OTHER_VARIABLES | {PREFIX + name.upper() for name in Settings.model_fields if name not in TABLES}


def misspelt_variables(environ: Mapping[str, str]) -> list[str]:
    """Return one sentence for each ``VBATCH_*`` variable that sets nothing; pydantic-settings is silent."""
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
            return path, tomllib.loads(path.read_text(encoding="utf-8"))
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
    message = detail["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
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
    match location:
        case ["models", _, _]:
            return ModelSettings.model_fields
        case ["defaults", _]:
            return DefaultSettings.model_fields
        case ["doctor", _]:
            return DoctorSettings.model_fields
        case _:
            return Settings.model_fields


def _key(location: list[str]) -> str:
    """Write a key as the file would: ``models."some/model".args``."""
    return ".".join(part if part.replace("_", "").isalnum() else f'"{harmless(part)}"' for part in location)


def _suggestion(name: str, known: Collection[str], *, prefix: str = "") -> str:
    candidates = [candidate.removeprefix(prefix) for candidate in known]
    nearest = difflib.get_close_matches(name.removeprefix(prefix), candidates, n=1)
    return f"; did you mean {prefix}{nearest[0]}?" if nearest else ""
