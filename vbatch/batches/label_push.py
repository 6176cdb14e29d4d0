"""Bring the answers of a batch into a project of Label Studio: in pages, and each of them once.

Every task carries its batch and its custom_id, and the server is asked which it has. So a push that was killed is
continued by the same command, and after an answer that never came the server is asked again before a page is sent a
second time. A page that a killed push had sent may arrive late: at the end of a push that was continued, tasks that
are there twice and have no annotation are removed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import msgspec

from vbatch.batches.label import LabelOptions, Tasks, check, pages
from vbatch.batches.records import EVERYTHING
from vbatch.batches.results import Selection
from vbatch.errors import LabelStudioError
from vbatch.outbound.label_studio import TRIES, LabelStudio, Project, Uncertain, pause
from vbatch.protocol import encode
from vbatch.store import Store

OnPage = Callable[[int], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pushed:
    """What was pushed: ``present`` tasks were there already, ``doubled`` ones removed, ``left_out`` requests are none.

    ``created``: the project was made by this push.
    """

    project: Project
    created: bool
    added: int
    present: int
    doubled: int
    left_out: int
    unfinished: int


def push(
    store: Store,
    reference: str,
    server: LabelStudio,
    *,
    project: int | None,
    options: LabelOptions = LabelOptions(),  # noqa: B008  (it is frozen)
    selection: Selection = EVERYTHING,
    on_page: OnPage = lambda _added: None,
) -> Pushed:
    """Push the tasks of a batch into a project: this one, or (None) one of the batch's own, made where it is missing.

    ``on_page`` is called with the number of tasks added so far. Raises NoSuchBatch, AmbiguousBatch, UsageError for
    tasks that do not fit the project, LabelStudioError, ConfigError for the token.
    """
    tasks = Tasks(store, reference, options, selection)
    title = f"{tasks.batch.id} {options.template}"  # at most 50 characters are possible
    found = server.project(project) if project is not None else server.find(title)
    chosen = found if found is not None else server.create(title, tasks.config)
    hint = "--project new, or another --template"
    if project is None:
        hint = f"rename or delete project {chosen.id} in Label Studio"  # made of answers that were there at that time
    pushing = _Pushing(server, chosen, tasks, on_page, hint)
    return pushing.run(created=found is None)


class _Pushing:
    """One push. ``_there`` are the custom_ids that the server has of this batch."""

    def __init__(
        self, server: LabelStudio, project: Project, tasks: Tasks, on_page: OnPage, hint: str
    ) -> None:
        self._server, self._project, self._tasks, self._on_page = server, project, tasks, on_page
        self._hint = hint
        self._there: set[str] = set()
        self._present = 0

    def run(self, *, created: bool) -> Pushed:
        """Push what is not there."""
        if not created:
            self._there = {custom_id for custom_id, _, _ in self._listed()}
        continued = bool(self._there)
        added = 0
        for page in pages(self._missing()):
            sent, uncertain = self._send(page)
            added += sent
            continued = continued or uncertain
            self._on_page(added)
        return Pushed(
            project=self._project,
            created=created,
            added=added,
            present=self._present,
            doubled=self._remove_doubles() if continued else 0,
            left_out=self._tasks.left_out,
            unfinished=self._tasks.unfinished,
        )

    def _missing(self) -> Iterator[bytes]:
        for task in self._tasks:
            check(self._project.config, task, hint=self._hint)
            if task["data"]["custom_id"] in self._there:
                self._present += 1
            else:
                yield encode(task)

    def _send(self, page: list[bytes]) -> tuple[int, bool]:
        """Import a page; return how many tasks it has, and whether the server had to be asked which it has."""
        wanted, cause = page, ""
        for attempt in range(TRIES):
            if attempt:
                self._server.sleep(pause(attempt))
                there = {custom_id for custom_id, _, _ in self._listed()}
                wanted = [task for task in wanted if _custom_id(task) not in there]
            try:
                if wanted:
                    self._server.add(self._project.id, wanted)
            except Uncertain as error:
                cause = str(error)
            else:
                return len(page), attempt > 0
        raise LabelStudioError(
            f"a page of {len(page)} tasks was not imported in {TRIES} tries: {cause}",
            hint="run the same command again: it continues",
        )

    def _remove_doubles(self) -> int:
        """Remove later tasks of a custom_id that is there already, unless they are annotated."""
        seen: set[str] = set()
        removed = 0
        for custom_id, task, annotated in list(self._listed()):
            if custom_id in seen and not annotated:
                self._server.delete(task)
                removed += 1
            seen.add(custom_id)
        return removed

    def _listed(self) -> Iterator[tuple[str, int, int]]:
        """Yield custom_id, number and annotations of the tasks of this batch, the oldest first."""
        for task in self._server.tasks(self._project.id):
            match task["data"]:
                case {"custom_id": str(custom_id), "batch_id": batch_id} if batch_id in self._tasks.batches:
                    yield custom_id, task["id"], task["total_annotations"]


class _Data(msgspec.Struct):
    custom_id: str


class _Task(msgspec.Struct):
    data: _Data


def _custom_id(task: bytes) -> str:
    return msgspec.json.decode(task, type=_Task).data.custom_id
