"""What ``submit --dry-run`` shows: that a file is valid, and what it is estimated to take."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from vbatch import batches
from vbatch.batches import Checked, Estimate, ModelEstimate, documents
from vbatch.cli.output import Result
from vbatch.config import Settings
from vbatch.text import count, duration, one_line, rate, size


def dry_run_result(settings: Settings, checked: Checked) -> Result:
    """Return what is shown of one file."""
    found = _estimate(settings, checked)
    return Result(
        document=lambda: documents.checked_document(checked, found),
        screen=lambda: "\n".join([f"{_finding(checked)}; nothing was stored", *estimated(found)]),
    )


def dry_run_results(settings: Settings, checked: Sequence[tuple[str, Checked]]) -> Result:
    """Return what is shown of several files."""
    found = [(name, each, _estimate(settings, each)) for name, each in checked]
    return Result(
        document=lambda: {
            "object": "list",
            "data": [documents.checked_document(each, estimate) for _, each, estimate in found],
        },
        screen=lambda: "\n".join(
            line
            for name, each, estimate in found
            for line in (f"{name}: {_finding(each)}", *(f"  {line}" for line in estimated(estimate)))
        ),
    )


def _estimate(settings: Settings, checked: Checked) -> Estimate:
    return batches.estimate(settings, checked.seen, output=checked.paths.output)


def _finding(checked: Checked) -> str:
    same = f", {checked.seen.duplicates:,} identical to others" if checked.seen.duplicates else ""
    if not checked.skipped:
        return f"{count(checked.requests, 'request')}, all valid{same}"
    return f"{count(checked.requests, 'valid request')}, {count(checked.skipped, 'line')} not valid{same}"


def estimated(estimate: Estimate) -> Iterator[str]:
    """Yield the lines of an estimate."""
    for each in estimate.models:
        yield _tokens(each)
        if each.beyond:
            many = count(each.beyond, "request")
            yield f"  {many} beyond its context of {each.context:,} tokens, answers included"
        if each.duration is not None and each.pace is not None:
            had = "a running worker" if each.pace.source == "worker" else each.pace.source
            time = duration(each.duration.total_seconds())
            yield f"  {time}, at {rate(each.pace.requests_per_second)} requests/s as {had} had"
    free = "" if estimate.free is None else f"; {size(estimate.free)} free"
    yield f"estimated for store and output files: {size(estimate.disk)}{free}"


def _tokens(each: ModelEstimate) -> str:
    how = "its tokenizer" if each.own_tokenizer else "by bytes"
    sample = "" if each.counted == each.requests else f", {each.counted:,} requests counted"
    out = "no limit of tokens out" if each.most_out is None else f"at most {each.most_out:,} out"
    name = one_line(each.model, limit=60)
    return f"estimated for {name}: {each.tokens_in:,} tokens in ({how}{sample}), {out}"
