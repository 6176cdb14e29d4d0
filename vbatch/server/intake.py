"""How much may come in: so many files at once, within the quota, and never the last of the disk."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from vbatch.batches import Store
from vbatch.batches.files import Usage, usage
from vbatch.batches.uploads import parts_bytes
from vbatch.config.serve import ServeSettings
from vbatch.server.errors import ApiError
from vbatch.text import GIB

_KEEP = 1 * GIB  # bytes of the disk that stay free, or a twentieth of a small one
_LOOK = 16 << 20  # bytes from one look at the disk to the next
_AGAIN = 10  # seconds


class Intake:
    """The uploads that are running, and the room that they have."""

    def __init__(self, store: Store, folder: Path, limits: ServeSettings) -> None:
        self._store = store
        self._folder = folder
        self._limits = limits
        self._expected: dict[object, int] = {}  # bytes of each file
        self._coming: dict[object, int] = {}  # those of them that are still to be written

    @property
    def running(self) -> int:
        """How many files are coming in."""
        return len(self._expected)

    @contextmanager
    def one(self, announced: int) -> Iterator[Callable[[int], None]]:
        """Take one more. Yields what is to be called, in a thread, with the size of each piece. Raises ApiError."""
        if self.running >= self._limits.uploads:
            raise ApiError(
                429,
                f"{self.running} files are coming in already; try again in a moment.",
                code="too_many_uploads",
                retry_after=_AGAIN,
                close=True,
            )
        token = object()
        self._expected[token] = self._coming[token] = announced
        since = received = 0

        def took(size: int) -> None:
            nonlocal since, received
            since += size
            received += size
            self._expected[token] = max(announced, received)  # a client need not announce anything
            self._coming[token] = max(announced - received, 0)
            if since >= _LOOK:
                since = 0
                self.check()

        try:
            yield took
        finally:
            del self._expected[token], self._coming[token]

    def check(self, more: int = 0) -> None:
        """Refuse where the quota or the disk has no room for what is coming, and ``more``. Raises ApiError."""
        now = usage(self._store, self._folder)
        quota = self._limits.files_quota
        taken = now.files + parts_bytes(self._folder) + sum(self._expected.values())
        if quota is not None and taken + more > quota:
            raise ApiError(
                507,
                f"The files would take more than the quota of {quota:,} bytes: delete some.",
                code="quota_exceeded",
                close=True,
            )
        self._check_disk(now, more)

    def check_copy(self, size: int) -> None:
        """Refuse where the disk has no room for a second copy of what was taken in. Raises ApiError."""
        self._check_disk(usage(self._store, self._folder), size)

    def _check_disk(self, now: Usage, more: int) -> None:
        if now.free - sum(self._coming.values()) - more < min(_KEEP, now.total // 20):
            raise ApiError(507, "The disk of the server is full.", code="disk_full", close=True)


def disk_error(error: OSError) -> ApiError:
    """Return what a disk's refusal is for a client."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ApiError(507, "The disk of the server is full.", code="disk_full", close=True)
    return ApiError(
        500, f"The server cannot write to its disk: {error.strerror}", code="disk_error", close=True
    )
