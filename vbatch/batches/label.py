"""Tasks for Label Studio, of the answers of a batch: their labeling configuration, and files to import by hand."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from vbatch.batches.find import with_retries
from vbatch.batches.paths import settled
from vbatch.batches.records import EVERYTHING, Finished, shared_schema
from vbatch.batches.results import Selection
from vbatch.errors import OutputPathError, UsageError
from vbatch.protocol import encode
from vbatch.store import Store, catalog
from vbatch.store.records import Batch
from vbatch.system.files import SUFFIX, sync
from vbatch.tabular.columns import enum_of
from vbatch.tabular.label_config import Config, NotFitting, Template, config_of
from vbatch.tabular.label_tasks import Shape, Task, label_of, pair_of, task_of
from vbatch.tabular.lookup import Lookup
from vbatch.tabular.record import Source, record_of

PAGE = 1000  # tasks
PAGE_BYTES = 64 << 20  # Label Studio takes 250 MB at once
CLASSES = 25  # values that people can choose from
_LONGEST_CLASS = 60  # characters

CONFIG = "labeling-config.xml"


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelOptions:
    """What people do with the answers.

    ``field`` of JSON answers is the value of ``classify``; ``against`` is the other batch of ``pairwise``.
    """

    template: Template = Template.CORRECT
    field: str | None = None
    against: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedTasks:
    """The folder with tasks, how many they are, and how many finished requests are none."""

    path: Path
    tasks: int
    left_out: int
    unfinished: int


class Tasks:
    """The tasks of a batch, in file order. ``left_out`` counts finished requests that have no answer in text.

    ``batches`` are those that the answers may be of: this one, and its retries where they are asked for.

    Raises NoSuchBatch, AmbiguousBatch, UsageError.
    """

    def __init__(
        self, store: Store, reference: str, options: LabelOptions, selection: Selection = EVERYTHING
    ) -> None:
        pairwise = options.template is Template.PAIRWISE
        if pairwise is not (options.against is not None):
            raise UsageError(
                "--template pairwise compares two batches: --against names the other one",
                hint="--template pairwise --against ID",
            )
        if options.field is not None and options.template is not Template.CLASSIFY:
            raise UsageError(
                "--fields names the value that --template classify corrects", hint="--template classify"
            )
        self.batch = catalog.find(store, reference)
        family = with_retries(store, self.batch) if selection.retries else [self.batch]
        self.batches = frozenset(batch.id for batch in family)
        self.other = None if options.against is None else catalog.find(store, options.against)
        self._found = Finished(store, self.batch, selection)
        self._store = store
        self.left_out = 0
        field, classes = options.field, list[str]()
        if options.template is Template.CLASSIFY:
            field, classes = _classes(store, self.batch, options.field, selection)
        self._shape = Shape(template=options.template, field=field, classes=frozenset(classes))
        self.config = config_of(options.template, classes)

    @property
    def unfinished(self) -> int:
        """How many requests of the batch were not finished, once all have been read."""
        return self._found.unfinished

    def __iter__(self) -> Iterator[Task]:
        for task in self._single() if self.other is None else self._pairs(self.other):
            if task is None:
                self.left_out += 1
            else:
                yield task

    def _single(self) -> Iterator[Task | None]:
        for source in self._found:
            yield task_of(source, self._shape)

    def _pairs(self, other: Batch) -> Iterator[Task | None]:
        """Yield the tasks of requests that both batches have answered."""

        @contextmanager
        def others() -> Iterator[Iterator[tuple[str, Source]]]:
            yield ((source.custom_id, source) for source in Finished(self._store, other, EVERYTHING))

        with Lookup(others) as lookup:
            for source in self._found:
                partner = lookup.get(source.custom_id)
                yield None if partner is None else pair_of(source, partner)


def check(config: str, task: Task, *, hint: str) -> None:
    """Refuse a task that a labeling configuration does not show as a whole. Raises UsageError."""
    try:
        found = Config.of(config)
        found.check_data(task["data"])
        found.check_predictions(task.get("predictions", ()))
    except NotFitting as error:
        raise UsageError(
            f"{task['data']['custom_id']} does not fit the labeling configuration: {error}",
            hint=hint,
        ) from None


def pages(tasks: Iterator[bytes]) -> Iterator[list[bytes]]:
    """Cut encoded tasks into pages that Label Studio takes at once."""
    page: list[bytes] = []
    held = 0
    for task in tasks:
        if page and (len(page) >= PAGE or held + len(task) > PAGE_BYTES):
            yield page
            page, held = [], 0
        page.append(task)
        held += len(task)
    if page:
        yield page


def save_tasks(
    store: Store,
    reference: str,
    path: Path,
    options: LabelOptions,
    selection: Selection = EVERYTHING,
) -> SavedTasks:
    """Write a folder with the labeling configuration and the tasks in files of a page, whole or not at all.

    Raises OutputPathError, NoSuchBatch, AmbiguousBatch, UsageError.
    """
    folder = _new_folder(path)
    tasks = Tasks(store, reference, options, selection)
    draft = Path(tempfile.mkdtemp(prefix=f".{folder.name[:100]}.", suffix=SUFFIX, dir=folder.parent))
    written = 0
    try:
        (draft / CONFIG).write_text(tasks.config)
        for number, page in enumerate(pages(_encoded(tasks)), 1):
            (draft / f"tasks-{number:04}.json").write_bytes(b"[" + b",\n".join(page) + b"]\n")
            written += len(page)
        for file in draft.iterdir():
            sync(file)
        sync(draft)
        draft.chmod(0o777 & ~_umask())
        _appear(draft, folder)
        sync(folder.parent)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    return SavedTasks(path=folder, tasks=written, left_out=tasks.left_out, unfinished=tasks.unfinished)


def _encoded(tasks: Tasks) -> Iterator[bytes]:
    for task in tasks:
        check(tasks.config, task, hint="another --template")
        yield encode(task)


def _classes(
    store: Store, batch: Batch, field: str | None, selection: Selection
) -> tuple[str | None, list[str]]:
    """Return the field with the value of ``classify``, and the values: those of the schema, else those that occur."""
    schema = shared_schema(store, batch)
    if schema is not None and (found := enum_of(schema, field)) is not None:
        return found
    values: set[str] = set()
    for source in Finished(store, batch, selection):
        label = label_of(record_of(source), field)
        if label and len(label) <= _LONGEST_CLASS:  # a longer one is no class, and its task has no prediction
            values.add(label)
        if len(values) > CLASSES:
            where = "the answers have" if field is None else f"the field {field!r} has"
            raise UsageError(
                f"{where} more than {CLASSES} values: classify is for a few",
                hint="--template correct, or --fields NAME for the field of JSON answers",
            )
    if not values:
        raise UsageError("no answer has a value to classify", hint="--template correct")
    return field, sorted(values)


def _new_folder(path: Path) -> Path:
    """Return the folder to be written. Raises OutputPathError where something has its name."""
    folder = settled(path)
    if not folder.parent.is_dir():
        raise OutputPathError(f"there is no folder {folder.parent}", hint=f"mkdir -p {folder.parent}")
    if os.path.lexists(folder):
        raise OutputPathError(
            f"{folder} already exists, and vbatch overwrites nothing", hint="-o another folder"
        )
    return folder


def _appear(draft: Path, folder: Path) -> None:
    with suppress(OSError):  # an empty folder alone would be replaced
        if not os.path.lexists(folder):
            draft.rename(folder)
            return
    raise OutputPathError(f"{folder} appeared meanwhile", hint="-o another folder")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
