"""``[serve]`` of the configuration file: where ``vbatch serve`` listens, who may use it, how much it takes."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ByteSize, ConfigDict, Field, SecretStr

from vbatch.text import GIB, parse_duration

KEY_VARIABLE = "VBATCH_API_KEY"  # a key for `vbatch serve`, in place of those of the file


def _duration(value: object) -> object:
    return parse_duration(value) if isinstance(value, str) else value


_Duration = Annotated[timedelta, Field(gt=timedelta()), BeforeValidator(_duration)]
_Size = Annotated[ByteSize, Field(gt=0)]
_Key = Annotated[SecretStr, Field(min_length=16)]


class ServeSettings(BaseModel):
    """``[serve]``: the HTTP server. Sizes are written ``10GiB``, durations ``30d``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str = Field(
        default="127.0.0.1", description="the address to listen on; any but loopback needs a key"
    )
    port: int = Field(default=8088, ge=0, le=65535, description="the port to listen on; 0 takes a free one")
    allowed_hosts: tuple[str, ...] = Field(
        default=(), description="further names under which the server may be called, as of a reverse proxy"
    )
    api_keys: tuple[_Key, ...] = Field(
        default=(), description="keys in place of the one in `DATA_DIR/api-key`; the file must be yours alone"
    )
    max_upload: _Size = Field(default=ByteSize(10 * GIB), description="the largest file that is taken")
    files_quota: _Size | None = Field(default=None, description="how much all files together may take")
    uploads: int = Field(default=8, ge=1, le=256, description="how many files are taken at the same time")
    connections: int = Field(
        default=512, ge=8, le=10_000, description="how many connections are open at the same time"
    )
    expires_after: _Duration | None = Field(
        default=None, description="files without `expires_after` of their own are removed after this time"
    )
    enforce_window: bool = Field(
        default=False, description='whether `completion_window: "24h"` ends a batch after 24 hours'
    )
