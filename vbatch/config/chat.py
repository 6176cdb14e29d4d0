"""The settings of chat beside the batch; ``vbatch.config.Settings`` has them among its own."""

from __future__ import annotations

from pydantic import BaseModel, Field


class ChatSettings(BaseModel):
    """``chat`` opens a worker's socket for chat; ``chat_reserve`` are the sequences that its batch leaves free."""

    chat: bool = Field(
        False, description="whether a worker also answers chat, which goes before its batch (docs/server.md)"
    )
    chat_reserve: int | None = Field(
        None, ge=0, description="sequences that the batch leaves free for chat; default: 1 of each 64"
    )
