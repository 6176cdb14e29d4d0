"""The tables of the configuration file, which no variable or flag can give."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, SecretStr


def _at_home(place: str) -> str:
    return str(Path(place).expanduser()) if place.startswith("~") else place


def _home(value: object) -> object:
    return Path(value).expanduser() if isinstance(value, str) else value


Folder = Annotated[Path, BeforeValidator(_home)]


class ModelSettings(BaseModel):
    """``[models."NAME"]``: where a model's files are, vLLM's flags for it, and the other names at which it answers.

    ``gpus``: over how many GPUs it is split, unless the flags say so. ``adapters`` (LoRA) are loaded with it: their
    names, and the folder or the hub's name of each.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    args: tuple[str, ...] = ()
    path: str | None = None
    gpus: Annotated[int, Field(ge=1)] | None = None
    aliases: tuple[str, ...] = ()
    adapters: Mapping[str, Annotated[str, AfterValidator(_at_home)]] = Field(default_factory=dict)


class DefaultSettings(BaseModel):
    """``[defaults]``: vLLM's flags for every model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    args: tuple[str, ...] = ()


class NotifySettings(BaseModel):
    """``[notify.NAME]``: a command that is run when a batch ends, without a shell, the batch on its standard input."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    command: tuple[str, ...] = Field(min_length=1)


class DoctorSettings(BaseModel):
    """``[doctor]``: in ``[doctor.neighbours]`` the services whose health doctor looks at, each with its URL."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    neighbours: Mapping[str, str] = Field(default_factory=dict)


def webhook_key(secret: SecretStr) -> bytes:
    """Return the key in a secret of https://www.standardwebhooks.com; nothing where it is none."""
    prefix, _, encoded = secret.get_secret_value().partition("_")
    try:
        return base64.b64decode(encoded, validate=True) if prefix == "whsec" else b""
    except ValueError:
        return b""


def webhook_secret(value: SecretStr | None) -> SecretStr | None:
    """Return a secret that has a key. Raises ValueError."""
    if value is not None and not webhook_key(value):
        raise ValueError("it must be whsec_ and base64, as of: echo whsec_$(openssl rand -base64 32)")
    return value


WebhookSecret = Annotated[SecretStr | None, AfterValidator(webhook_secret)]


def names_once(models: Mapping[str, ModelSettings]) -> Mapping[str, ModelSettings]:
    """Return tables in which each name belongs to one model. Raises ValueError."""
    owners = {name: name for name in models}
    for model, table in models.items():
        for name in (*table.aliases, *table.adapters):
            if name in owners:
                raise ValueError(
                    f"{name} is an alias or adapter of {model}, and already a name of {owners[name]}"
                )
            owners[name] = model
    return models


# In place of pydantic's words, which name Python's types.
_NEEDED = {
    'a list of texts, such as ["--max-model-len", "4096"]': ("tuple_type",),
    'a table, such as [models."NAME"]': ("dict_type", "mapping_type", "model_type", "model_attributes_type"),
    "a text": ("string_type",),
    "a whole number": ("int_type", "int_parsing", "int_from_float"),
    "a number": ("float_type", "float_parsing"),
    "true or false": ("bool_type", "bool_parsing"),
}
PLAIN = {kind: f"it must be {what}" for what, kinds in _NEEDED.items() for kind in kinds}
