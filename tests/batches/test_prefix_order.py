"""The order of work: requests that begin alike stand together, and no file, result or retry is different for it."""

from __future__ import annotations

import json
import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.rigs.commands import chat
from tests.rigs.filling import answers_to, claim, worker
from tests.rigs.queued import Queued, queued
from vbatch import batches
from vbatch.batches import prefix_order
from vbatch.batches.prefix_order import groups
from vbatch.jsonl import prefixes
from vbatch.store import Store, finalization, queue, registry, results

DOCUMENTS = 6
QUESTIONS = 5


def shuffled(*, models: int = 1) -> list[dict[str, Any]]:
    """Questions about documents, in an order that no cache likes."""
    lines: list[dict[str, Any]] = [
        chat(f"{document}-{question}", f"question {question}", model=f"m{question % models}")
        for question in range(QUESTIONS)
        for document in range(DOCUMENTS)
    ]
    for line in lines:
        text = f"Document {line['custom_id'][0]}. " + line["custom_id"][0] * 600
        line["body"]["messages"].insert(0, {"role": "system", "content": text})
    random.Random(7).shuffle(lines)
    return lines


def worked_on(store: Store, *, models: int = 1, status: int = 200) -> list[str]:
    """Answer everything, and return the custom_ids in the order in which the engine got them."""
    who = worker(store)
    seen = []
    for model in range(models):
        while leases := queue.claim(store, worker=who, models={f"m{model}"}, chunks=1, held=()):
            for request in leases[0].requests:
                seen.append(request.custom_id)
                ends = answers_to(leases[0], [request], status=500 if request.custom_id == "0-0" else status)
                queue.flush(store, worker=who, results=ends)
    for batch in finalization.to_finalize(store, by=who):
        batches.finalize(store, batch, by=who)
    registry.stop(store, worker=who)
    return seen


def changes(seen: list[str]) -> int:
    """How often the document changes from one request to the next."""
    return sum(one[0] != other[0] for one, other in pairwise(seen))


def test_questions_about_a_document_are_asked_together(store: Store, tmp_path: Path) -> None:
    """Mutant: ``PrefixOrder.finish`` that hands the rows on as they came."""
    lines = shuffled()
    made = queued(store, tmp_path, lines)
    seen = worked_on(store)
    assert (changes(seen), len(seen)) == (DOCUMENTS - 1, len(lines))
    _files_are_in_order(made, lines)


@pytest.mark.parametrize("window", [1, 4, 7])
def test_windows_models_and_retries_keep_the_files_order(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, window: int
) -> None:
    """Mutants: a window that does not begin at a multiple of its size; ``_models`` without the ordinals of runs."""
    monkeypatch.setattr(prefix_order, "WINDOW_LINES", window * 3)
    monkeypatch.setattr(prefix_order, "LARGE_GROUP", 2)
    lines = shuffled(models=3)
    made = queued(store, tmp_path, lines)
    who = worker(store)
    early = claim(store, who, model="m1")
    for lease in early:
        queue.flush(store, worker=who, results=answers_to(lease, list(lease.requests)[:1]))
    place = {line["custom_id"]: number for number, line in enumerate(lines)}
    places = [place[answer.custom_id] for answer in results.finished(store, pk=made.batch.pk)]
    assert places == sorted(places)
    assert places, "while it runs"
    queue.release(store, worker=who, keys=[lease.key for lease in early])
    registry.stop(store, worker=who)
    worked_on(store, models=3)
    _files_are_in_order(made, lines)
    again = batches.retry(store, made.id)
    assert (again.counts.total, again.model) == (1, lines[place["0-0"]]["body"]["model"])
    reused = queued(store, tmp_path, lines, reuse=made.id, output=tmp_path / "again.jsonl")
    assert reused.batch.reused == len(lines) - 1


def test_identical_requests_of_several_models_in_shuffled_order(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each body runs once, in the order of work; tables, files, retries and reuse have the order of the file."""
    monkeypatch.setattr(prefix_order, "WINDOW_LINES", 12)
    monkeypatch.setattr(prefix_order, "LARGE_GROUP", 2)
    once = shuffled(models=3)
    for line in once:
        line["body"]["temperature"] = 0
    other = [
        line | {"custom_id": f"{line['custom_id']}-m0", "body": line["body"] | {"model": "m0"}}
        for line in once
    ]
    again = [line | {"custom_id": f"{line['custom_id']}-{copy}"} for copy in "ab" for line in (*once, *other)]
    lines = [*once, *other, *again]
    made = queued(store, tmp_path, lines, dedupe=True)
    seen = worked_on(store, models=3)
    ran = len({json.dumps(line["body"]) for line in lines})
    assert (len(seen), len(set(seen))) == (ran, ran)
    text = {line["custom_id"]: json.dumps(line["body"]) for line in lines}
    first = {text[name]: name for name in seen}
    found = list(batches.records(store, made.id))
    assert [record.custom_id for record in found] == [line["custom_id"] for line in lines]
    failed = {name for name in text if first[text[name]] == "0-0"}
    assert {record.custom_id for record in found if record.answer is None} == failed
    line_of = {record.custom_id: str(record.line) for record in found}
    assert all(
        json.loads(record.answer or "") == line_of[first[text[record.custom_id]]]
        for record in found
        if record.custom_id not in failed
    )
    answered = [line["custom_id"] for line in lines if line["custom_id"] not in failed]
    assert [line["custom_id"] for line in made.output()] == answered
    retried = batches.retry(store, made.id)
    assert (retried.counts.total, batches.status(store, retried.id).duplicates) == (
        len(failed),
        len(failed) - 1,
    )
    reused = queued(store, tmp_path, lines, reuse=made.id, dedupe=True, output=tmp_path / "again.jsonl")
    assert reused.batch.reused == len(lines) - len(failed)


def test_the_order_of_the_file_can_be_asked_for(store: Store, tmp_path: Path) -> None:
    """Mutant: the option is not handed on."""
    lines = shuffled()
    queued(store, tmp_path, lines, order="file")
    assert worked_on(store) == [line["custom_id"] for line in lines]


@pytest.mark.parametrize("alike", [True, False])
def test_nothing_changes_where_all_begin_alike_or_none_do(store: Store, tmp_path: Path, alike: bool) -> None:
    """Mutant: ``groups`` without its last condition."""
    lines: list[dict[str, Any]] = [
        chat(f"r-{number}", f"{number * 7 % 40:02} " * 130) for number in range(40)
    ]
    if alike:
        for line in lines:
            line["body"]["messages"].insert(0, {"role": "system", "content": "Be brief. " * 90})
    queued(store, tmp_path, lines, model="m0")
    assert worked_on(store) == [line["custom_id"] for line in lines]


def test_a_large_group_begins_a_chunk(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutant: no ``begin_group``; two workers then share every group."""
    monkeypatch.setattr(prefix_order, "LARGE_GROUP", QUESTIONS)
    queued(store, tmp_path, shuffled())
    who = worker(store)
    leases = queue.claim(store, worker=who, models={"m0"}, chunks=DOCUMENTS, held=())
    assert [len({request.custom_id[0] for request in lease.requests}) for lease in leases] == [1] * DOCUMENTS


@given(
    st.lists(st.binary(max_size=700).map(lambda begins: begins[:1] * 600 + begins), min_size=1, max_size=60)
)
def test_groups_hold_every_request_once(begins: list[bytes]) -> None:
    rows = [(prefix, line, str(line), b"{}") for line, prefix in enumerate(begins)]
    found = groups(rows)
    assert not found or sorted(row for _, group in found for row in group) == sorted(rows)
    assert all(list(group) == sorted(group, key=lambda row: (row[0], row[1])) for _, group in found)


def test_of_a_long_first_message_what_follows_it_counts() -> None:
    """Mutant: a prefix that is cut at a number of bytes."""
    system = b'{"role":"system","content":"' + b"x" * 9000 + b'"}'
    one, other = (
        prefixes.of({"messages": _raw(b"[" + system + b',{"role":"user","content":"' + text + b'"}]')})
        for text in (b"one", b"two")
    )
    assert one != other
    assert len(one) < 3000
    assert prefixes.of({"prompt": _raw(b'"' + b"y" * 9000 + b'"')}) == b'"' + b"y" * 4095
    assert prefixes.of({}) == b""
    with_tools = prefixes.of({"messages": _raw(b"[]"), "tools": _raw(b'[{"a":1}]')})
    assert with_tools == b'[{"a":1}]\n[]'


def _raw(text: bytes) -> Any:
    import msgspec

    return msgspec.Raw(text)


def _files_are_in_order(made: Queued, lines: list[dict[str, Any]]) -> None:
    place = {line["custom_id"]: number for number, line in enumerate(lines)}
    written = [place[line["custom_id"]] for line in made.output()]
    assert written == sorted(written)
    assert len(written) == len(lines) - 1, "one failed, on purpose"
