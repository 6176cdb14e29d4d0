"""Batches of programs on both databases: entered at once, validated behind, refused, cancelled, resumed, finalized."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.rigs.commands import chats
from tests.rigs.workers import drain
from vbatch import batches
from vbatch.batches import RetryOptions, StoredFile, content, create, documents, files, upkeep
from vbatch.batches.create import Wanted
from vbatch.batches.files import Incoming, NoSuchFile
from vbatch.errors import UsageError, WrongStatus
from vbatch.protocol import BatchStatus
from vbatch.store import COMMAND_PATIENCE, Store, catalog, served
from vbatch.store import files as rows
from vbatch.store.tables import FILE, REQUEST
from vbatch.system import processes

ENDPOINT = "/v1/chat/completions"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return files.folder_of(tmp_path / "data")


def uploaded(store: Store, folder: Path, lines: list[dict[str, object]]) -> str:
    incoming = Incoming(folder)
    incoming.write("".join(json.dumps(line) + "\n" for line in lines).encode())
    return incoming.keep(store, filename="x.jsonl", purpose="batch", expires_after=None).id


def wanted(
    file_id: str, *, name: str | None = None, reuse: str | None = None, key: str | None = None
) -> Wanted:
    return Wanted(input_file=file_id, endpoint=ENDPOINT, metadata={"a": "b"}, name=name, reuse=reuse, key=key)


def test_it_is_there_at_once_and_complete_in_the_end(store: Store, folder: Path, tmp_path: Path) -> None:
    """Workers leave its files to the server. Mutant: a worker, or a command, that finalizes it."""
    file_id = uploaded(store, folder, chats(300))
    batch = create.create(store, folder, wanted(file_id, name="night"))
    assert batch.status is BatchStatus.VALIDATING
    assert batches.find(store, batch.id).pk == batch.pk
    assert [found.id for found in batches.page(store, limit=1).batches] == [batch.id]
    assert catalog.progress(store).unfinished_batches == 0  # no work of a worker yet
    with pytest.raises(WrongStatus, match="needs this file"):
        files.delete_file(store, folder, file_id)

    assert create.validate(store, folder, batch).status is BatchStatus.IN_PROGRESS
    assert create.validate(store, folder, batch).counts.total == 300  # again: nothing happens
    drain(str(store.url.render_as_string(hide_password=False)), tmp_path)
    answered = batches.find(store, batch.id)
    assert (answered.counts.completed, answered.status.final) == (300, False)
    assert not Path(answered.output_path).exists()
    assert batches.at_work(store, answered).without_server  # mutant: `status` asks for one more worker
    assert [found.id for found in upkeep.waiting_for_server(store)] == [batch.id]

    with batches.registered(store) as me:
        assert upkeep.finalize_served(store, folder, by=me)
    done = batches.find(store, batch.id)
    assert done.status is BatchStatus.COMPLETED
    output, errors = files.made_files(batch.id)
    found = files.content(store, folder, output)
    assert isinstance(found, tuple)
    kept, where = found
    assert where == folder / output
    assert isinstance(kept, StoredFile)
    assert kept.bytes == (folder / output).stat().st_size
    assert rows.get(store, file_id=errors) is None
    assert upkeep.waiting_for_server(store) == []
    files.delete_file(store, folder, file_id)
    with pytest.raises(NoSuchFile):
        files.content(store, folder, file_id)


def test_a_validation_that_was_cut_off_begins_again(store: Store, folder: Path) -> None:
    """Mutant: rows of the first try that stay, which the second one doubles."""
    file_id = uploaded(store, folder, chats(300))
    batch = create.create(store, folder, wanted(file_id))
    assert served.begin(store, pk=batch.pk, submitter=processes.current())
    with store.bulk_insert(REQUEST) as inserting:
        inserting.write([(batch.pk, seq, seq + 1, f"r-{seq}", b"{}") for seq in range(100)])
    assert [found.id for found in create.waiting(store)] == [batch.id]
    assert create.validate(store, folder, batch).counts.total == 300
    assert create.waiting(store) == []
    lines = list(batches.results(store, batch.id))
    assert lines == []


def test_it_is_refused_with_every_bad_line_or_cancelled(store: Store, folder: Path) -> None:
    """Mutants: a refusal that removes the batch; one that overrides a cancel."""
    file_id = uploaded(store, folder, [*chats(3), {"custom_id": 1}, {"custom_id": "r-0"}])
    batch = create.create(store, folder, wanted(file_id))
    failed = create.validate(store, folder, batch)
    assert failed.status is BatchStatus.FAILED
    assert {error["line"] for error in failed.errors} == {4, 5}
    worse = create.create(store, folder, wanted(uploaded(store, folder, [{"custom_id": 1}] * 120)))
    errors = create.validate(store, folder, worse).errors
    assert (len(errors), errors[-1]["code"]) == (
        101,
        "more_errors",
    )  # mutant: a hundred, as if these were all
    batches.delete(store, worse.id)
    document = documents.served_document(failed)
    assert document["errors"]["object"] == "list"
    assert document["output_file_id"] is document["error_file_id"] is None
    assert batches.status(store, batch.id).batch.errors == failed.errors

    other = create.create(store, folder, wanted(file_id))
    assert batches.request_cancel(store, other.id).status is BatchStatus.CANCELLED
    assert create.validate(store, folder, other).status is BatchStatus.CANCELLED
    assert served.refuse(store, pk=other.pk, errors=[]).status is BatchStatus.CANCELLED
    with pytest.raises(WrongStatus):
        batches.request_cancel(store, other.id)
    assert {gone.id for gone in batches.delete_ended(store, before=timedelta(0))} == {batch.id, other.id}
    assert batches.page(store, limit=10).batches == []


def test_a_cancel_in_the_middle_of_a_validation_wins(
    store: Store, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mutant: an acceptance that does not look at the status."""
    file_id = uploaded(store, folder, chats(10))
    batch = create.create(store, folder, wanted(file_id))
    read = content.read

    def cancelled_meanwhile(*arguments: object, **options: object) -> object:
        found = read(*arguments, **options)  # type: ignore[arg-type]
        batches.request_cancel(store, batch.id)
        return found

    monkeypatch.setattr(create, "read", cancelled_meanwhile)
    assert create.validate(store, folder, batch).status is BatchStatus.CANCELLED
    assert list(batches.results(store, batch.id)) == []
    assert batches.find(store, batch.id).counts.total == 0


def test_the_same_key_makes_one_batch(store: Store, folder: Path) -> None:
    """Mutant: a key that was used for another request gets the batch of that one."""
    file_id = uploaded(store, folder, chats(1))
    first = create.create(store, folder, wanted(file_id, key="k"))
    assert create.create(store, folder, wanted(file_id, key="k")).id == first.id
    assert create.create(store, folder, wanted(file_id)).id != first.id
    for other in (
        {"priority": 5},
        {"strict": True},
        {"completion_window": "7d"},
        {"name": "x"},
        {"output_expires_after": timedelta(hours=1)},
        {"reuse": first.id},
        {"metadata": {"a": "c"}},
    ):
        with pytest.raises(UsageError):
            create.create(store, folder, replace(wanted(file_id, key="k"), **other))


def test_reuse_and_retry_stay_the_servers(store: Store, folder: Path, tmp_path: Path) -> None:
    """Mutant: a retry whose files go where the first batch's are named."""
    from tests.rigs.commands import chat

    file_id = uploaded(store, folder, [*chats(5), chat("bad", "x", echo="error400")])
    first = create.validate(store, folder, create.create(store, folder, wanted(file_id)))
    drain(str(store.url.render_as_string(hide_password=False)), tmp_path)
    with batches.registered(store) as me:
        assert upkeep.finalize_served(store, folder, by=me)
    again = batches.retry(store, first.id, RetryOptions(folder=folder))
    assert (again.counts.total, again.input_file) == (1, file_id)
    assert Path(again.output_path).parent == folder
    reused = create.validate(store, folder, create.create(store, folder, wanted(file_id, reuse=first.id)))
    assert (reused.counts.total, reused.reused) == (6, 5)


def test_what_expires_and_what_is_swept(store: Store, folder: Path) -> None:
    """Mutants: an expiry of a file that is needed; a sweep of a file that is known, or that removes a whole one."""
    needed, old = uploaded(store, folder, chats(1)), uploaded(store, folder, chats(1))
    create.create(store, folder, wanted(needed))
    past = datetime.now(UTC) - timedelta(seconds=1)
    store.write(lambda connection: connection.execute(FILE.update().values(expires_at=past)))
    assert files.expire_files(store, folder) == 1
    assert {path.name for path in folder.iterdir()} == {needed}
    assert rows.get(store, file_id=old) is None
    (folder / (strange := f"file-{'0' * 24}")).write_bytes(b"no row names it")
    assert files.sweep(store, folder) == (0, 1)
    assert {path.name for path in folder.iterdir()} == {needed, files.UNKNOWN}
    assert (folder / files.UNKNOWN / strange).read_bytes() == b"no row names it"


def test_a_start_with_another_store_loses_no_file(store: Store, folder: Path, tmp_path: Path) -> None:
    """A wrong URL, or an older backup. Mutant: what was set aside is not brought back."""
    file_id = uploaded(store, folder, chats(2))
    other = Store(f"sqlite:///{tmp_path / 'other.db'}", patience=COMMAND_PATIENCE)
    other.prepare()
    assert files.sweep(other, folder) == (0, 1)
    other.close()
    assert files.sweep(store, folder) == (0, 0)
    assert (folder / file_id).exists()
