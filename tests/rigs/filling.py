"""Put batches, workers and results into a store without a file, a command or an engine."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from itertools import count as count_from
from itertools import islice
from typing import Any

from sqlalchemy import Connection, text, update

from vbatch.store import Store, ingest, queue, registry
from vbatch.store.records import (
    Answer,
    Batch,
    ChunkState,
    Lease,
    LeaseKey,
    NewBatch,
    Outcome,
    Request,
    Result,
)
from vbatch.store.tables import CHUNK
from vbatch.system import processes
from vbatch.system.processes import ProcessIdentity

ENDPOINT = "/v1/chat/completions"
NOBODY = ProcessIdentity(host="elsewhere", boot_id="another-boot", pid_namespace=1, pid=2, start_ticks=3)


def new_batch(**fields: Any) -> NewBatch:
    """Describe a batch as ``submit`` would."""
    batch_id = fields.pop("id", f"batch_{secrets.token_hex(12)}")
    described: dict[str, Any] = {
        "id": batch_id,
        "endpoint": "",
        "name": None,
        "priority": 0,
        "metadata": {},
        "input_path": None,
        "output_path": f"/nowhere/{batch_id}.output.jsonl",
        "error_path": f"/nowhere/{batch_id}.errors.jsonl",
        "expires_at": None,
        "created_at": datetime.now(UTC),
    }
    return NewBatch(**described | fields)


def take_in(store: Store, models: int | Iterable[str] = 1, *, body: bytes = b"{}", **fields: Any) -> Batch:
    """Store a batch: so many requests of one model ``m``, or one request for each model named."""
    names = ["m"] * models if isinstance(models, int) else list(models)
    with ingest.ingest(store, new=new_batch(**fields), submitter=processes.current()) as storing:
        for line, model in enumerate(names, start=1):
            storing.add(line, f"r-{line}", model, body)
        return storing.accept(endpoint=ENDPOINT, input_sha256=f"sha-{secrets.token_hex(4)}")


def take_in_groups(store: Store, groups: Sequence[int | None], *, each: int = 2, **fields: Any) -> Batch:
    """Store a batch with a chunk of ``each`` requests for each of these groups; None is one that begins anyhow."""
    with ingest.ingest(store, new=new_batch(**fields), submitter=processes.current()) as storing:
        lines = count_from(1)
        for alike in groups:
            storing.begin_window("m", "")
            storing.begin_group("m", "", alike=alike, fewest=1)
            for line in islice(lines, each):
                storing.add(line, f"r-{line}", "m", b"{}", grouped=True)
        return storing.accept(endpoint=ENDPOINT, input_sha256=f"sha-{secrets.token_hex(4)}")


def fail_waiting(store: Store, *, model: str, message: str) -> None:
    """Fail what waits for a model, as vbatch 0.1 did where it could not be loaded: such stores are read well."""

    def work(connection: Connection) -> None:
        connection.execute(
            update(CHUNK)
            .where(CHUNK.c.state == ChunkState.READY, CHUNK.c.model == model)
            .values(
                state=ChunkState.FAILED,
                failed=CHUNK.c.total - CHUNK.c.completed,
                error_code="model_not_loaded",
                error_message=message,
            )
        )

    store.write(work)


def worker(store: Store, *, pid: int = 1, identity: ProcessIdentity | None = None) -> str:
    """Register a worker; each pid is one of its own."""
    who = identity or ProcessIdentity(
        host="here", boot_id="this-boot", pid_namespace=1, pid=pid, start_ticks=pid
    )
    return registry.register(store, identity=who, engine="echo")


def claim(
    store: Store,
    who: str,
    *,
    model: str = "m",
    chunks: int = 1,
    held: Iterable[LeaseKey] = (),
    room: int = 1 << 40,
) -> list[Lease]:
    """Claim chunks, with all bodies unless there is less room."""
    return queue.claim(store, worker=who, models=[model], chunks=chunks, held=frozenset(held), room=room)


def answer(lease: Lease, request: Request, *, status: int = 200, text: str | None = None) -> Result:
    """Answer one leased request; the body names its line unless ``text`` is given."""
    return Result(
        key=lease.key,
        seq=request.seq,
        outcome=Outcome(
            status_code=status,
            request_id=f"req-{request.line}",
            body=b'"%s"' % (text or str(request.line)).encode(),
            prompt_tokens=2,
            completion_tokens=3,
        ),
    )


def code_of(answer: Answer) -> str | None:
    """Return the code of a request that ended without an answer."""
    return answer.outcome.error_code if answer.outcome is not None else None


def answers_to(lease: Lease, requests: Sequence[Request] | None = None, **how: Any) -> list[Result]:
    """Answer the requests of a lease, all of them unless some are given."""
    return [answer(lease, request, **how) for request in (lease.requests if requests is None else requests)]


def rows(store: Store, query: str, **values: Any) -> list[tuple[Any, ...]]:
    """Look into the tables, behind the store's back."""
    return store.read(
        lambda connection: [tuple(row) for row in connection.execute(text(query), values).fetchall()]
    )


def count(store: Store, table: str) -> int:
    """Count the rows of a table."""
    return int(rows(store, f"SELECT count(*) FROM {table}")[0][0])
