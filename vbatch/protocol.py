"""The wire types of the OpenAI Batch API: what a line of a file and a batch object look like."""

from __future__ import annotations

from enum import StrEnum


class BatchStatus(StrEnum):
    """The eight statuses of the Batch API. Failed *requests* live in a ``completed`` batch."""

    VALIDATING = "validating"  # submit is still reading the input; invisible to everybody else
    FAILED = "failed"  # refused at validation
    IN_PROGRESS = "in_progress"  # accepted; its chunks are ready or running
    FINALIZING = "finalizing"  # every request has its result; the files are being written
    COMPLETED = "completed"
    EXPIRED = "expired"
    CANCELLING = "cancelling"  # no new request starts; running ones are being stopped
    CANCELLED = "cancelled"

    @property
    def final(self) -> bool:
        """Whether the batch will never change again."""
        return self in _FINAL


_FINAL = frozenset({BatchStatus.FAILED, BatchStatus.COMPLETED, BatchStatus.EXPIRED, BatchStatus.CANCELLED})
