"""The leased requests that wait to start, in order: the first of them with their bodies, the rest without."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from itertools import takewhile

from vbatch.store.bodies import READ_BYTES, fits
from vbatch.store.records import Lease, LeaseKey, Request, Unread


@dataclass(frozen=True, slots=True)
class Page:
    """Requests of one lease whose bodies are to be read now."""

    lease: Lease
    unread: tuple[Unread, ...]


class Pending:
    """A queue that holds no more than ``READ_BYTES`` of bodies, or one larger body."""

    def __init__(self) -> None:
        self._read: deque[tuple[Lease, Request]] = deque()
        self._unread: deque[tuple[Lease, Unread]] = deque()
        self._read_bytes = 0
        self._unread_bytes = 0

    def __len__(self) -> int:
        return len(self._read) + len(self._unread)

    @property
    def enough(self) -> bool:
        """Whether more bytes wait than can be read ahead: what is leased beyond that is kept from other workers."""
        return self._read_bytes + self._unread_bytes >= READ_BYTES

    @property
    def room(self) -> int:
        """How many bytes of bodies a claim may bring along."""
        return 0 if self._unread else max(0, READ_BYTES - self._read_bytes)

    @property
    def next(self) -> tuple[Lease, Request] | None:
        """What is to start next; None where nothing waits with its body."""
        return self._read[0] if self._read else None

    def add(self, lease: Lease) -> None:
        """Append the requests of a lease."""
        self._read.extend((lease, request) for request in lease.requests)
        self._unread.extend((lease, unread) for unread in lease.unread)
        self._read_bytes += sum(len(request.body) for request in lease.requests)
        self._unread_bytes += sum(unread.size for unread in lease.unread)

    def pop(self) -> tuple[Lease, Request]:
        """Take the next request that has its body."""
        lease, request = self._read.popleft()
        self._read_bytes -= len(request.body)
        return lease, request

    def page(self, *, free: int) -> Page | None:
        """Return what to read now: what fits beside what was read, or one larger body that ``free`` bytes are for."""
        if not self._unread or self._read_bytes > READ_BYTES // 2:  # a page is worth its round trip
            return None
        lease = self._unread[0][0]
        waiting = [unread for _, unread in takewhile(lambda entry: entry[0] is lease, self._unread)]
        count = fits(waiting, READ_BYTES - self._read_bytes)
        if count == 0 and not self._read and waiting[0].size <= free:
            count = 1
        return Page(lease, tuple(waiting[:count])) if count else None

    def fill(self, page: Page, requests: Sequence[Request]) -> None:
        """Take the bodies of a page. What is not pending any more is dropped, and so is what was not found."""
        bodies = {request.seq: request for request in requests}
        asked = set(page.unread)
        while self._unread and self._unread[0][0] is page.lease and self._unread[0][1] in asked:
            lease, unread = self._unread.popleft()
            self._unread_bytes -= unread.size
            if (request := bodies.get(unread.seq)) is not None:
                self._read.append((lease, request))
                self._read_bytes += len(request.body)

    def forget(self, leases: AbstractSet[LeaseKey]) -> None:
        """Drop the requests of these leases."""
        self._read = deque(entry for entry in self._read if entry[0].key not in leases)
        self._unread = deque(entry for entry in self._unread if entry[0].key not in leases)
        self._read_bytes = sum(len(request.body) for _, request in self._read)
        self._unread_bytes = sum(unread.size for _, unread in self._unread)

    def clear(self) -> None:
        """Drop everything."""
        self._read.clear()
        self._unread.clear()
        self._read_bytes = self._unread_bytes = 0
