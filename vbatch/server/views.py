"""What the pages show of batches, workers and requests, ready for the templates: words, figures, links."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from urllib.parse import quote, urlencode

from vbatch import batches
from vbatch.batches import Batch, Blocks, Status, Worker
from vbatch.batches.browsing import Leaf, Page, Which
from vbatch.protocol import BatchStatus
from vbatch.tabular.record import Record, RecordStatus
from vbatch.text import count, duration, percent, rate

IN_LIST = 1_500  # characters of a prompt or an answer where several are shown
ALONE = 200_000  # where one is shown
_PARTS = 500  # messages of a conversation
_UUID = len("GPU-8f3c21aa")  # of a GPU, as nvidia-smi -L lists them

# How a status looks: its word is beside it always.
_TONES = {
    batches.BLOCKED: "bad",
    batches.QUEUED: "idle",
    "validating": "idle",
    "in progress": "busy",
    "finalizing": "busy",
    "completed": "good",
    "failed": "bad",
}
_RECORD_TONES = {RecordStatus.ANSWERED: "good", RecordStatus.FAILED: "bad"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """A batch in a line: its status as a word and a tone, and how far it is."""

    batch: Batch
    word: str
    tone: str
    done: int
    percent: str
    address: str

    @property
    def title(self) -> str:
        """Its name, or its id."""
        return self.batch.name or self.batch.id


def progress(batch: Batch, blocks: Blocks = Blocks()) -> Progress:  # noqa: B008  (it is frozen)
    """Return a batch in a line."""
    word, counts = batches.status_word(batch, blocked=blocks.entirely), batch.counts
    tone = _TONES.get(word, "warn")
    if batch.status is BatchStatus.COMPLETED and counts.failed:
        tone = "warn" if counts.completed else "bad"
    done = counts.completed + counts.failed
    return Progress(
        batch=batch,
        word=word,
        tone=tone,
        done=done,
        percent=percent(done, counts.total) if counts.total else "-",
        address=address(batch.id),
    )


def address(batch_id: str) -> str:
    """Return where a batch is shown."""
    return f"/batches/{batch_id}"


def figures(status: Status) -> list[tuple[str, str]]:
    """Return the figures of a batch, each with its name."""
    batch, counts = status.batch, status.batch.counts
    running = not batch.status.final
    found = [
        ("answered", f"{counts.completed:,}"),
        ("failed", f"{counts.failed:,}"),
        ("cut off", f"{batch.cut_off:,}" if batch.cut_off else ""),
        ("empty", f"{batch.empty:,}" if batch.empty else ""),
        ("identical to others", f"{status.duplicates:,}" if status.duplicates else ""),
        ("left out", f"{batch.skipped:,}" if batch.skipped else ""),
        ("requests/s", rate(status.requests_per_second) if running and status.requests_per_second else ""),
        ("tokens/s", rate(status.tokens_per_second) if running and status.tokens_per_second else ""),
        ("time left", duration(status.remaining.total_seconds()) if status.remaining and running else ""),
        ("batches before it", str(status.ahead) if status.ahead and not batch.begun else ""),
        ("tokens in", f"{batch.prompt_tokens:,}" if batch.prompt_tokens else ""),
        ("tokens out", f"{batch.completion_tokens:,}" if batch.completion_tokens else ""),
    ]
    return [(name, value) for name, value in found if value]


def facts(batch: Batch) -> list[tuple[str, str | datetime]]:
    """Return what else is known of a batch; times are shown in the server's own zone."""
    ended = batch.completed_at or batch.cancelled_at or batch.failed_at
    ended = ended or (batch.expired_at if batch.status.final else None)
    found: list[tuple[str, str | datetime | None]] = [
        ("id", batch.id),
        ("model", batch.model or ("(several)" if batch.counts.total else None)),
        ("endpoint", batch.endpoint or "(several)"),
        ("input", batch.input_path or batch.input_file or "standard input"),
        ("priority", str(batch.priority) if batch.priority else None),
        ("submitted", batch.created_at),
        ("deadline", batch.expires_at if not batch.status.final else None),
        ("ended", ended),
        *sorted(batch.metadata.items()),
    ]
    return [(name, value) for name, value in found if value is not None]


def downloads(batch: Batch) -> list[tuple[str, str, str]]:
    """Return the files of a batch: what it is, its address, the name that it gets."""
    suffix, counts = batch.id.removeprefix("batch_"), batch.counts
    if batch.status in (BatchStatus.VALIDATING, BatchStatus.FAILED):
        return []
    ended = batch.status.final
    so_far = "" if ended else " so far"
    places = {
        "output": (counts.completed, f"/v1/files/file-output-{suffix}/content"),
        "errors": (
            counts.total - counts.completed if ended else counts.failed,
            f"/v1/files/file-errors-{suffix}/content",
        ),
    }
    return [
        (
            f"{count(number, 'line')} of {name}{so_far}",
            where if ended else f"/v1/batches/{batch.id}/{name}",
            f"{suffix}.{name}.jsonl",
        )
        for name, (number, where) in places.items()
        if number
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """A worker: where it is, its GPUs, its model, its pace, and what it does."""

    place: str
    gpus: str
    model: str
    pace: str
    note: str


def machine(worker: Worker) -> Machine:
    """Return a worker in a line."""
    pace = worker.requests_per_second
    return Machine(
        place=f"process {worker.identity.pid} on {worker.identity.host.partition('/')[0]}",
        gpus=", ".join(uuid[:_UUID] for uuid in worker.gpus) or "none",
        model=worker.model or "none loaded",
        pace=f"{rate(pace)} requests/s" if pace else "-",
        note=f"silent for {duration(worker.silent.total_seconds())}"
        if batches.is_silent(worker)
        else worker.note or "",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A request beside its answer. Texts have at most so many characters; ``shortened`` says that one had more."""

    line: int
    custom_id: str
    model: str
    word: str
    tone: str
    figures: str
    asked: Sequence[tuple[str, str]]
    answered: Sequence[tuple[str, str]]
    shortened: bool


def pair(leaf: Leaf, *, most: int) -> Pair:
    """Return a request beside its answer."""
    record = leaf.record
    word = "not finished" if record is None else record.status.replace("_", " ")
    tone = "idle" if record is None else _RECORD_TONES.get(record.status, "warn")
    asked, answered = _cut(leaf.asked, most), _cut(_answered(leaf), most)
    return Pair(
        line=leaf.line,
        custom_id=leaf.custom_id,
        model=leaf.model,
        word=word,
        tone=tone,
        figures=_figures(record),
        asked=asked[0],
        answered=answered[0],
        shortened=asked[1] or answered[1],
    )


def _cut(parts: Sequence[tuple[str, str]], most: int) -> tuple[list[tuple[str, str]], bool]:
    """Return the parts, with so many characters together, and whether there were more."""
    kept: list[tuple[str, str]] = []
    for role, text in parts[:_PARTS]:
        if most <= 0:
            return kept, True
        kept.append((role, text[:most]))
        most -= len(text)
    return kept, most < 0 or len(parts) > _PARTS


def _figures(record: Record | None) -> str:
    if record is None or record.completion_tokens is None:
        return ""
    words = f"{record.prompt_tokens or 0:,} tokens in, {record.completion_tokens:,} out"
    return words + (f", finish reason: {record.finish_reason}" if record.finish_reason else "")


def _answered(leaf: Leaf) -> Sequence[tuple[str, str]]:
    record = leaf.record
    if record is None:
        return []
    if record.status is RecordStatus.FAILED:
        return [(record.error_code or "error", record.error or "")]
    vector = record.embedding and f"a vector of {count(len(record.embedding), 'number')}"
    parts = [
        ("reasoning", record.reasoning),
        ("answer", record.answer or vector),
        ("tool calls", record.tool_calls),
    ]
    return [(name, text) for name, text in parts if text]


@dataclass(frozen=True, slots=True, kw_only=True)
class Turning:
    """Where to go from a page of requests; None where there is nothing."""

    previous: str | None
    next: str | None
    filters: Sequence[tuple[str, str, bool]]


def turning(batch: Batch, found: Page, which: Which, *, alone: bool = False) -> Turning:
    """Return the addresses of the pages before and behind, and of the filters with their names."""
    base = f"{address(batch.id)}/requests"

    def there(**place: int) -> str:
        chosen: Mapping[str, object] = {"show": which, **place, **({"alone": 1} if alone else {})}
        return f"{base}?{urlencode(chosen)}"

    lines = found.lines
    names = {
        Which.ALL: ("all", batch.counts.total),
        Which.FAILED: ("failed", batch.counts.failed),
        Which.CUT_OFF: ("cut off", batch.cut_off),
    }
    return Turning(
        previous=there(before=lines[0]) if found.has_previous and lines else None,
        next=there(after=lines[-1]) if found.has_next and lines else None,
        filters=[
            (f"{name} ({number:,})", f"{base}?show={quote(each)}", each is which)
            for each, (name, number) in names.items()
        ],
    )
