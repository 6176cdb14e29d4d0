"""``import vbatch``: light, typed, and a whole batch from a program."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import vbatch
from tests.cli.conftest import Cli, cli
from tests.rigs.commands import chat, chats
from tests.rigs.waiting import run

__all__ = ["cli"]  # the fixture: a home and a current folder of its own

HEAVY = {
    "sqlalchemy",
    "sqlmodel",
    "msgspec",
    "pydantic",
    "rich",
    "typer",
    "typing",
    "torch",
    "vllm",
    "vbatch.python",
}


def test_the_import_is_light() -> None:
    """Mutant: ``from vbatch.python import …`` at import: it runs in every engine process."""
    look = (
        f"import sys; before = set(sys.modules); import vbatch; print(*{HEAVY} & (set(sys.modules) - before))"
    )
    done = subprocess.run([sys.executable, "-S", "-c", look], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_every_name_is_there() -> None:
    for name in vbatch.__all__:
        assert getattr(vbatch, name).__name__ == name
        assert name in dir(vbatch)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        vbatch.nothing  # type: ignore[attr-defined]  # noqa: B018


def test_from_prompts_to_texts(cli: Cli, capfd: pytest.CaptureFixture[str]) -> None:
    prompts: list[Any] = ["one", "two\nlines", [{"role": "user", "content": "three"}]]
    batch = vbatch.chat(prompts, system="Repeat.", model="echo", ids=["a", 2, "c"], name="mine")
    assert batch.status == "in_progress"
    with pytest.raises(vbatch.WrongStatus, match="has not ended"):
        batch.texts()
    with pytest.raises(vbatch.WaitTimeout):
        batch.wait(timeout=0)
    cli.drain()
    capfd.readouterr()
    assert batch.wait() is batch
    assert capfd.readouterr().err == f"{batch.id}: 3 of 3 requests (100 %), completed\n"
    assert batch.texts() == ["one", "two\nlines", "three"]
    assert [record.custom_id for record in batch.results()] == ["a", "2", "c"]
    assert batch == vbatch.batch("mine") == vbatch.batch("last") == vbatch.list_batches()[0]
    assert (batch.counts.completed, batch.info.name) == (3, "mine")
    table = batch.to_pandas()
    assert list(table["answer"]) == ["one", "two\nlines", "three"]
    assert str(table["prompt_tokens"].dtype) == "Int64"


def test_rows_are_streamed_retried_and_cancelled(cli: Cli) -> None:
    rows = [*chats(3), chat("bad", "x", echo="error400")]
    batch = vbatch.submit(iter(rows), output="answers.jsonl", metadata={"run": "7"})
    cli.drain()
    assert batch.texts() == ["r-0", "r-1", "r-2", None]
    assert [(record.custom_id, record.error_code) for record in batch.results(errors=True)] == [
        ("bad", "http_400")
    ]
    with pytest.raises(vbatch.UsageError, match="'temperature' holds a value that JSON cannot hold"):
        batch.retry(changes={"temperature": math.nan})
    again = batch.retry(only="http_400")
    assert again.counts.total == 1
    assert again.cancel().wait(progress=False).status == "cancelled"
    with pytest.raises(vbatch.WrongStatus):
        again.cancel()
    assert (cli.folder / "answers.jsonl").exists()
    assert vbatch.submit(cli.file("p.jsonl", chats(2)), model="echo").counts.total == 2


def test_what_is_refused_leaves_nothing(cli: Cli) -> None:
    """Mutants: an error of the caller's own iterator ends the rows, and the first of them are a batch; NaN is null;
    a message need not be a dictionary; an error does not say what is wrong.
    """

    def broken() -> Iterator[dict[str, object]]:
        yield from chats(2)
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        vbatch.submit(broken())
    with pytest.raises(vbatch.InvalidInput) as raised:
        vbatch.submit([chat("a", "x"), {"custom_id": "b"}])
    assert {error.line for error in raised.value.errors} == {2}
    with pytest.raises(vbatch.UsageError, match="as many ids"):
        vbatch.chat(["a", "b"], model="echo", ids=["1"])
    with pytest.raises(vbatch.UsageError, match="several prompts"):
        vbatch.chat("abc", model="echo")
    given: Any
    for given, said in [
        (math.nan, "prompt 2 is of the type float"),  # an empty cell of pandas
        ({"role": "user", "content": "x"}, "prompt 2 is of the type dict"),
        ("\ud800", "prompt 2 cannot be written as JSON"),
    ]:
        with pytest.raises(vbatch.UsageError, match=said):
            vbatch.chat(["a", given], model="echo")
    wrong: list[dict[str, Any]] = [
        {"temperature": math.nan},
        {"body": {"x": object()}},
        {"schema": {"label": "good"}},
        {"schema": "x"},
        {"body": "x"},
    ]
    for options in wrong:
        with pytest.raises(vbatch.UsageError):
            vbatch.chat(["a"], model="echo", **options)
    temperature = chat("b", "x") | {"body": {"model": "echo", "stop": [None, {"t": math.inf}]}}
    for bad in (temperature, chat("b", "x") | {"extra": math.nan}):
        with pytest.raises(
            vbatch.UsageError, match="row 2 cannot be written as JSON: it holds NaN"
        ) as refused:
            vbatch.submit([chat("a", "x"), bad])
        assert "notna" in str(refused.value.hint)
    with pytest.raises(vbatch.UsageError, match="prompt 1 cannot be written as JSON: it holds NaN"):
        vbatch.chat([[{"role": "user", "content": math.nan}]], model="echo")
    for given, said in [(["x"], "a list with a message of the type str"), ([], "a list without a message")]:
        with pytest.raises(vbatch.UsageError, match=said):
            vbatch.chat([given], model="echo")
    with pytest.raises(vbatch.UsageError, match="an id is missing"):
        vbatch.chat(["a", "b"], model="echo", ids=["x", math.nan])
    with pytest.raises(vbatch.InvalidInput, match="2 problems; nothing was stored: line 2: "):
        vbatch.chat(["a", "b", "c"], model="echo", ids=["x", "x", "x"])
    with pytest.raises(vbatch.UsageError, match="named by a text"):
        vbatch.batch(5)  # type: ignore[arg-type]
    with pytest.raises(vbatch.UsageError, match="priority is of the type str"):
        vbatch.submit(chats(1), priority="high")  # type: ignore[arg-type]
    for given in (5, chat("a", "x"), [5], [chat("a", "x") | {"body": object()}]):
        with pytest.raises(vbatch.UsageError):
            vbatch.submit(given)
    for metadata in ({"run": 7}, {"vbatch_dedupe": "true"}):
        with pytest.raises(vbatch.UsageError, match="metadata"):
            vbatch.submit(chats(2), metadata=metadata)  # type: ignore[arg-type]
    with pytest.raises(vbatch.NoSuchBatch):
        vbatch.batch("none")
    assert vbatch.list_batches() == []


SCRIPT = """
import vbatch

batch: vbatch.Batch = vbatch.chat(["a"], model="m", ids=[1])
try:
    texts: list[str | None] = batch.wait(timeout=60).texts()
except vbatch.WaitTimeout as error:
    print(error.hint)
for record in batch.retry().results():
    print(record.custom_id.upper(), record.status is vbatch.RecordStatus.FAILED)
wrong: int = batch.id
"""


def test_a_program_is_checked_with_types(tmp_path: Path) -> None:
    """The one mistake of the script is found, and nothing else: the package is typed."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = run(
        [sys.executable, "-m", "mypy", "--strict", "--no-incremental", "--config-file", "/dev/null", script],
        cwd=tmp_path,
        env={"MYPYPATH": str(Path(vbatch.__file__).parent.parent), "PATH": "/usr/bin:/bin"},
    )
    assert [line for line in done.stdout.splitlines() if "script.py" in line] == [
        'script.py:11: error: Incompatible types in assignment (expression has type "str", variable has type "int")  '
        "[assignment]"
    ], done.stdout + done.stderr
