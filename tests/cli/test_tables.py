"""``results --to``: from a table to a table and back, cell by cell; every endpoint; what is left out and why."""

from __future__ import annotations

import csv
import json
import random
import sys
from pathlib import Path
from typing import Any

import pandas
import pyarrow.parquet
import pytest

from tests.cli.conftest import Cli
from tests.rigs.commands import chat, chats

CELLS = ["", "plain", 'a "quoted" one', "two\nlines", "cr\rlf\r\n", "a,b;c\td", "Grüße 你好 🙂 \u2028", "=1+1", "-1",
         "+x", "@cmd", "'", " lead", "trail ", "{}", "\\", '"', "NULL", "nan", "007", "1e3", "\tx"]  # fmt: skip


def rows(number: int) -> list[list[str]]:
    dice = random.Random(7)
    return [
        [f"id-{n}", f"{n} {dice.choice(CELLS)}", dice.choice(CELLS), dice.choice(CELLS)]
        for n in range(number)
    ]


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def request(custom_id: str, url: str, body: dict[str, Any]) -> dict[str, object]:
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": {"model": "echo", **body}}


def test_round_trip_of_5000_rows(cli: Cli) -> None:
    """CSV → make → submit → echo → CSV, Parquet and pandas: every row in its order, every cell, its answer.

    Mutant: Python's csv writer, which leaves a lone carriage return unquoted.
    """
    table = rows(5000)
    with (cli.folder / "reviews.csv").open("w", newline="") as file:
        csv.writer(file, quoting=csv.QUOTE_ALL).writerows([["id", "review", "note", "answer"], *table])
    made = cli("make", "reviews.csv", "--prompt", "{review}", "-m", "echo")
    assert made.code == 0, made.err
    (cli.folder / "a.jsonl").write_text(made.out)
    batch_id = cli("submit", "a.jsonl", "-q").out.strip()
    cli.drain()
    done = cli("results", batch_id, "--to", "csv", "--raw", "--join", "reviews.csv", "-o", "out.csv")
    assert (done.code, "warning" in done.err) == (0, False), done.err
    written = read(cli.folder / "out.csv")
    assert [[row[name] for name in ("id", "review", "note", "answer")] for row in written] == table
    assert [row["vbatch_answer"] for row in written] == [row[1] for row in table]
    assert [row["custom_id"] for row in written] == [str(n) for n in range(1, 5001)]

    frame = pandas.DataFrame(table, columns=["id", "review", "note", "answer"])
    frame.to_parquet(cli.folder / "reviews.parquet")
    done = cli("results", batch_id, "--to", "parquet", "--join", "reviews.parquet", "-o", "out.parquet")
    assert done.code == 0, done.err
    found = pandas.read_parquet(cli.folder / "out.parquet")
    assert found[["id", "review", "note", "answer"]].equals(frame)
    assert found["vbatch_answer"].tolist() == [row[1] for row in table]
    again = pandas.read_csv(cli.folder / "out.csv", dtype=str, keep_default_na=False)
    assert again[["review", "note"]].to_numpy().tolist() == [row[1:3] for row in table]


def test_cells_that_a_spreadsheet_would_run(cli: Cli) -> None:
    """They get an apostrophe, numbers do not. Mutant: cells as they are, without --raw."""
    dangerous, harmless = (
        ["=1+1", "+x", "-x", "@cmd", "\tx", "\rx", "-1+1", "\n=x", "\uff1d1"],
        ["-1", "+2.5", "-1e-3", "1", "'", "x="],
    )
    batch_id = cli.submit("a.jsonl", [chat(f"r-{n}", text) for n, text in enumerate(dangerous + harmless)])
    cli.drain()
    assert cli("results", batch_id, "--to", "csv", "-o", "safe.csv").code == 0
    answers = [row["answer"] for row in read(cli.folder / "safe.csv")]
    assert answers == [f"'{text}" for text in dangerous] + harmless
    assert cli("results", batch_id, "--to", "csv", "--raw", "-o", "raw.csv").code == 0
    assert [row["answer"] for row in read(cli.folder / "raw.csv")] == dangerous + harmless


def test_a_table_of_another_order_is_joined_by_an_index(cli: Cli) -> None:
    """Also with rows that no request has, and a request that no row has."""
    names = [f"r-{n}" for n in range(300)]
    shuffled = random.Random(1).sample([*names[:-1], "other"], 300)
    (cli.folder / "t.tsv").write_text("key\tvalue\n" + "".join(f"{name}\t{name}!\n" for name in shuffled))
    batch_id = cli.submit("a.jsonl", chats(300))
    cli.drain()
    done = cli("results", batch_id, "--to", "csv", "--join", "t.tsv", "--on", "key", "-o", "out.csv")
    assert done.code == 0
    assert "1 request without a row in t.tsv" in done.err
    written = read(cli.folder / "out.csv")
    assert [row["custom_id"] for row in written] == names
    assert [row["value"] for row in written] == [f"{name}!" for name in names[:-1]] + [""]
    (cli.folder / "t.jsonl").write_text('{"custom_id": "r-1", "n": [1]}\n{"custom_id": "r-0", "x": null}\n')
    lines = cli("results", batch_id, "--to", "jsonl", "--join", "t.jsonl").out.splitlines()
    assert json.loads(lines[1])["n"] == [1]
    wrong = cli("results", batch_id, "--to", "csv", "--join", "t.tsv", "--on", "kee")
    assert (wrong.code, "did you mean 'key'?" in wrong.err, wrong.out) == (3, True, "")


def test_answers_and_failures_in_one_table_at_any_time(cli: Cli) -> None:
    """In file order. Of a retry the better answer, with the batch that it is of."""
    asked = [chat("a", "x"), chat("b", "no", echo="error400"), chat("c", "long answer here")]
    asked[2]["body"]["max_tokens"] = 1  # type: ignore[index]
    batch_id = cli.submit("a.jsonl", asked)
    before = cli("results", batch_id, "--to", "csv")
    assert before.out.count("\n") == 1
    assert "3 requests not finished yet" in before.err
    cli.drain()
    done = cli("results", batch_id, "--to", "jsonl")
    lines = [json.loads(line) for line in done.out.splitlines()]
    assert [(line["custom_id"], line["status"], line["answer"]) for line in lines] == [
        ("a", "answered", "x"),
        ("b", "failed", None),
        ("c", "cut_off", "long"),
    ]
    assert (lines[1]["error_code"], lines[1]["status_code"], lines[1]["prompt"]) == ("http_400", 400, "no")
    assert "refused" in lines[1]["error"]
    assert lines[0]["prompt_tokens"] == 1
    assert cli("results", batch_id, "--to", "csv", "--errors").out.count("\n") == 2
    assert cli("results", batch_id, "--to", "csv", "--sample", "2").out.count("\n") == 3
    retried = cli("retry", batch_id, "--cut-off", "--set", "max_tokens=9", "-o", "b.jsonl", "-q").out.strip()
    cli.drain()
    lines = [
        json.loads(line)
        for line in cli("results", batch_id, "--to", "jsonl", "--with-retries").out.splitlines()
    ]
    assert [line["batch_id"] for line in lines] == [batch_id, batch_id, retried]
    assert lines[2]["answer"] == "long answer here"


def test_every_endpoint(cli: Cli) -> None:
    batch_id = cli.submit(
        "a.jsonl",
        [
            request("completion", "/v1/completions", {"prompt": "one"}),
            request("two", "/v1/completions", {"prompt": ["one", "two"]}),
            request("response", "/v1/responses", {"input": "three", "instructions": "be brief"}),
            request("vector", "/v1/embeddings", {"input": "four"}),
            request("vectors", "/v1/embeddings", {"input": ["four", "five"]}),
            request("score", "/score", {"text_1": "a b", "text_2": "a"}),
            request("rank", "/rerank", {"query": "a", "documents": ["b", "a"]}),
        ],
    )
    cli.drain()
    assert cli("results", batch_id, "--to", "parquet", "-o", "out.parquet").code == 0
    file = pyarrow.parquet.ParquetFile(cli.folder / "out.parquet")
    found = {row["custom_id"]: row for row in file.read().to_pylist()}
    assert (found["completion"]["answer"], found["completion"]["prompt"]) == ("one", "one")
    assert (found["two"]["answer"], found["two"]["prompt"]) == ('["one","two"]', '["one","two"]')
    assert (found["response"]["answer"], found["response"]["prompt"]) == ("three", "three")
    assert len(found["vector"]["embedding"]) == 8
    assert found["vector"]["answer"] is None
    assert len(json.loads(found["vectors"]["answer"])) == 2
    assert (found["score"]["answer"], found["score"]["prompt"]) == ("0.5", "a b")
    assert json.loads(found["rank"]["answer"])[0] == {"index": 1, "relevance_score": 1.0}
    line = cli("results", batch_id, "--to", "csv").out.splitlines()[4]
    assert line.startswith('vector,four,,,,"[')


def test_columns_of_json_answers(cli: Cli) -> None:
    """Those of the schema where all requests share one, typed; else those of --fields; else none."""
    schema = {
        "type": "object",
        "properties": {
            "mood": {"type": "string"},
            "stars": {"type": ["integer", "null"]},
            "sure": {"type": "boolean"},
            "tags": {"type": "array"},
            "status": {"type": "string"},
        },
    }
    answers = [
        '{"mood": "good", "stars": 5, "sure": true, "tags": ["a"], "status": "s"}',
        '{"mood": "bad", "stars": "many"}',
        "no JSON",
        '```json\n{"mood": "fenced"}\n```',
    ]
    asked = [chat(f"r-{n}", answer) for n, answer in enumerate(answers)]
    plain = cli.submit("plain.jsonl", asked)
    for each in asked:
        asks = {"type": "json_schema", "json_schema": {"name": "m", "schema": schema}}
        each["body"]["response_format"] = asks  # type: ignore[index]
    shared = cli.submit("shared.jsonl", asked)
    cli.drain()
    assert cli("results", shared, "--to", "parquet", "-o", "out.parquet").code == 0
    table = pyarrow.parquet.read_table(cli.folder / "out.parquet")
    types = {
        name: str(table.schema.field(name).type)
        for name in ("mood", "stars", "sure", "tags", "answer_status")
    }
    assert list(types.values()) == ["string", "int64", "bool", "string", "string"]
    found = table.to_pylist()
    assert [row["mood"] for row in found] == ["good", "bad", None, "fenced"]
    assert [row["stars"] for row in found] == [5, None, None, None]
    assert (found[0]["tags"], found[0]["answer_status"]) == ('["a"]', "s")
    header = cli("results", plain, "--to", "csv").out.splitlines()[0]
    assert header.endswith(",batch_id,line")
    line = cli("results", plain, "--to", "csv", "--fields", "mood,stars").out.splitlines()[2]
    assert line.endswith("2,bad,many")


def test_text_and_training(cli: Cli) -> None:
    """One line per request, whatever the answers hold; only whole answers are examples."""
    asked = [chat("a", "two\nlines \\ here"), chat("b", "no", echo="error400"), chat("c", "x y z")]
    asked[2]["body"]["max_tokens"] = 1  # type: ignore[index]
    asked[0]["body"]["messages"].insert(0, {"role": "system", "content": "be brief"})  # type: ignore[index]
    batch_id = cli.submit("a.jsonl", asked)
    cli.drain()
    assert cli("results", batch_id, "--to", "text").out == "two\\nlines \\\\ here\n\nx\n"
    assert cli("results", batch_id, "--to", "text", "--raw").out == "two\nlines \\ here\n\nx\n"
    training = cli("results", batch_id, "--to", "sft")
    assert json.loads(training.out) == {
        "messages": [
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": "two\nlines \\ here"},
            {"role": "assistant", "content": "two\nlines \\ here"},
        ]
    }
    assert "2 requests left out" in training.err


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--join", "t.csv"], 2, "--join is for tables"),
        (["--to", "csv", "--on", "x"], 2, "--join names"),
        (["--to", "text", "--join", "t.csv"], 2, "no columns for --join"),
        (["--to", "csv", "--json"], 2, "--json"),
        (["--to", "csv", "--fields", "a,,b"], 2, "empty name"),
        (["--to", "csv", "--join", "missing.csv"], 2, "cannot be read"),
        (["--to", "csv", "-o", "there.csv"], 2, "already exists"),
        (["--to", "xlsx"], 2, "xlsx"),
    ],
)
def test_what_is_refused(cli: Cli, options: list[str], code: int, words: str) -> None:
    """Before a line is printed; a file that is there keeps its bytes."""
    (cli.folder / "there.csv").write_text("mine")
    batch_id = cli.submit("a.jsonl", chats(1))
    refused = cli("results", batch_id, *options)
    assert (refused.code, "" if "--json" in options else refused.out) == (code, "")
    assert words in refused.err
    assert (cli.folder / "there.csv").read_text() == "mine"


def test_parquet_without_its_package(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutant: an empty file, or a traceback."""
    batch_id = cli.submit("a.jsonl", chats(1))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    missing = cli("results", batch_id, "--to", "parquet", "-o", "out.parquet")
    assert missing.code == 78
    assert "pip install 'vbatch[parquet]'" in missing.err
    assert not (cli.folder / "out.parquet").exists()
