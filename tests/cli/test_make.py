"""make: from a table to requests, through real pipes too; nothing half written is taken for the whole."""

from __future__ import annotations

import base64
import csv
import gzip
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Cli
from tests.rigs.commands import VBATCH, Home
from tests.rigs.waiting import SILENCE
from vbatch.protocol import INCOMPLETE

TABLE = b'id,text\na,"he said ""hi"""\nb,"two\nlines"\n'
PNG = b"\x89PNG\r\n\x1a\n" + bytes(20)
PYTHON_M = f"{sys.executable} -m"


def _write_for_ever(fifo: Path) -> None:
    with suppress(BrokenPipeError), fifo.open("w") as rows:
        rows.write("a\n")
        while True:
            rows.write("y" * 50 + "\n")


def bodies(out: str) -> list[dict[str, Any]]:
    return [json.loads(line)["body"] for line in out.splitlines()]


def test_every_option_has_its_place_in_the_body(cli: Cli) -> None:
    cli.file("t.csv", TABLE)
    cli.file("ask.txt", b"Rate {{1-5}}: {text}")
    cli.file("rating v1.json", b'{"type": "object"}')
    done = cli(
        "make", "t.csv", "--prompt", "@ask.txt", "--system", "You are {id}.", "--id", "id", "-m", "m",
        "--max-tokens", "9", "--temperature", "0", "--schema", "rating v1.json", "--body", '{"seed": 1, "top_p": 0.5}',
    )  # fmt: skip
    assert done.code == 0, done.err
    assert "2 requests of t.csv" in done.err
    first, second = map(json.loads, done.out.splitlines())
    assert (first["custom_id"], second["custom_id"]) == ("a", "b")
    assert first["body"] == {
        "model": "m",
        "messages": [
            {"role": "system", "content": "You are a."},
            {"role": "user", "content": 'Rate {1-5}: he said "hi"'},
        ],
        "max_tokens": 9,
        "temperature": 0.0,
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "rating_v1", "strict": True, "schema": {"type": "object"}},
        },
        "seed": 1,
        "top_p": 0.5,
    }


@pytest.mark.parametrize(
    ("options", "body"),
    [
        (["--url", "/v1/completions"], {"prompt": "x", "max_tokens": 3}),
        (
            ["--url", "/v1/responses", "--system", "s"],
            {"instructions": "s", "input": "x", "max_output_tokens": 3},
        ),
    ],
)
def test_other_endpoints(cli: Cli, options: list[str], body: dict[str, object]) -> None:
    done = cli(
        "make", "-", "--prompt", "{line}", "--format", "text", "--max-tokens", "3", *options, stdin=b"x\n"
    )
    assert bodies(done.out) == [body]
    embedded = cli(
        "make", cli.file("t.txt", b"x\n"), "--prompt", "{line}", "--url", "/v1/embeddings", "-m", "e"
    )
    assert bodies(embedded.out) == [{"model": "e", "input": "x"}]


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["--prompt", "{txt}"], 3, "has no column 'txt', which --prompt names; it has id, text"),
        (["--prompt", "{text}", "--id", "nr"], 3, "has no column 'nr', which --id names"),
        (["--prompt", "{text"], 2, "a brace without a partner"),
        (["--prompt", "{text}", "--url", "/v1/chat"], 2, "--url takes /v1/chat/completions"),
        (["--prompt", "{text}", "--url", "/v1/embeddings", "--max-tokens", "1"], 2, "takes no --max-tokens"),
        (["--prompt", "{text}", "--url", "/v1/completions", "--system", "x"], 2, "takes no --system"),
        (["--prompt", "{text}", "--body", '{"messages": []}'], 2, "--body sets 'messages'"),
        (["--prompt", "{text}", "--body", "[1]"], 2, "--body is not an object"),
        (
            ["--prompt", "{text}", "--body", '{"seed": NaN}'],
            2,
            "the field 'seed' holds a value that JSON cannot hold",
        ),
        (["--prompt", "{text}", "--body", '{"user": "\\ud800"}'], 2, "the field 'user' holds a value"),
        (["--prompt", "{text}", "--schema", "example.json"], 2, "the schema describes no answer"),
        (
            ["--prompt", "{text}", "--schema", "type.json"],
            2,
            "the schema's type 'text' is not one of object",
        ),
        (["--prompt", "{text}", "-m", ""], 2, "-m names no model"),
        (["--prompt", "@none.txt"], 2, "--prompt: none.txt cannot be read"),
        (["--prompt", "{text}", "--schema", "t.csv"], 2, "--schema: t.csv is not JSON"),
        (["--prompt", "{text}", "--image", "text"], 3, "t.csv, line 2: the image of column 'text'"),
    ],
)
def test_what_is_wrong_is_named(cli: Cli, options: list[str], code: int, said: str) -> None:
    cli.file("t.csv", TABLE)
    cli.file("example.json", b'{"label": "positive"}')
    cli.file("type.json", b'{"type": ["null", "text"]}')
    done = cli("make", "t.csv", *options)
    assert (done.code, done.out.count(INCOMPLETE)) == (code, 1)
    assert said in done.err
    assert len(done.out.splitlines()) == 1


def test_ids_must_be_there_and_be_unique(cli: Cli) -> None:
    """Mutant: what was used before is looked for among neighbours alone."""
    for table, said in [
        (b"id,t\nx,1\ny,2\nx,3\n", "ids in 'id' that are used before, on line 4 (as on 2)"),
        (b"id,t\nx,1\n ,2\n", "t.csv, line 3: the column 'id' is empty"),
        (b"id,t\n", "t.csv has no rows"),
    ]:
        done = cli("make", cli.file("t.csv", table).name, "--prompt", "{t}", "--id", "id")
        assert done.code == 3
        assert said in done.err
        assert cli("submit", "-", "-m", "echo", stdin=done.out.encode()).code == 3
    assert cli("list", "-q").out == ""


def test_images_are_read_beside_the_table_or_passed_on(cli: Cli) -> None:
    folder = cli.folder / "deep"
    folder.mkdir()
    (folder / "a.png").write_bytes(PNG)
    (folder / "t.csv").write_text("picture\na.png\nhttps://example.com/b.jpg\n")
    done = cli("make", folder / "t.csv", "--prompt", "What?", "--image", "picture")
    urls = [body["messages"][0]["content"][0]["image_url"]["url"] for body in bodies(done.out)]
    assert urls == [f"data:image/png;base64,{base64.b64encode(PNG).decode()}", "https://example.com/b.jpg"]
    os.mkfifo(folder / "pipe")
    for bad, said in [
        ("pipe", "is not a file"),  # mutant: the command waits for ever for a process that writes to it
        ("none.png", "cannot be read"),
        ("t.csv", "is not an image"),
        ("ftp://x/y", "not known"),
    ]:
        (folder / "t.csv").write_text(f"picture\n{bad}\n")
        done = cli("make", folder / "t.csv", "--prompt", "What?", "--image", "picture")
        assert done.code == 3
        assert said in done.err


def test_a_row_without_the_column_is_named(cli: Cli) -> None:
    cli.file("t.jsonl", b'{"text": "x"}\n{"txt": "y"}\n')
    done = cli("make", "t.jsonl", "--prompt", "{text}")
    assert done.code == 3
    assert "t.jsonl, line 2, has no column 'text', which --prompt names; it has txt" in done.err
    assert cli("submit", cli.file("made.jsonl", done.out.encode()), "--skip-invalid", "-m", "echo").code == 3


def test_round_trip_of_5000_rows(cli: Cli) -> None:
    """Every cell of a hard table comes back, in its order, through make, submit and the echo engine."""
    hard = [
        '"',
        "a,b",
        "line\nbreak",
        "cr\r\nlf",
        "",
        "=SUM(A1)",
        "@cmd",
        "日本語 🎈",
        "{braces}",
        "\t",
        "\u2028",
        "'",
    ]
    cells = [f"{hard[at % len(hard)]}{at}{hard[at * 7 % len(hard)]}" if at % 50 else "" for at in range(5000)]
    table = cli.folder / "hard.csv.gz"
    with gzip.open(table, "wt", newline="", encoding="utf-8-sig") as file:
        csv.writer(file, delimiter=";").writerows([["nr", "cell"], *enumerate(cells)])
    made = cli("make", table, "--prompt", "{cell}", "--id", "nr", "-m", "echo")
    batch = cli("submit", "-", "-q", "-o", "answers.jsonl", stdin=made.out.encode()).out.strip()
    cli.drain()
    answers = [json.loads(line) for line in cli("results", batch).out.split("\n")[:-1]]
    assert [answer["custom_id"] for answer in answers] == [str(at) for at in range(5000)]
    assert [answer["response"]["body"]["choices"][0]["message"]["content"] for answer in answers] == cells


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
class TestPipes:
    """``vbatch make … | vbatch submit -`` in a shell."""

    def shell(self, home: Home, command: str, *, options: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", *options.split(), "-c", command.replace("vbatch", f"{PYTHON_M} vbatch")],
            env=home.env, cwd=home.path, capture_output=True, text=True, check=False, timeout=SILENCE,
        )  # fmt: skip

    @pytest.mark.parametrize("options", ["", "-o pipefail"])
    def test_a_bad_row_refuses_all(self, home: Home, options: str) -> None:
        """Mutant: make prints nothing after the last good row, and submit takes 3,000 of 3,001."""
        (home.path / "t.csv").write_text("a,b\n" + "1,2\n" * 3000 + "1\n")
        pipe = "vbatch make t.csv --prompt '{a}' -m echo | vbatch submit -"
        done = self.shell(home, pipe, options=options)
        assert (done.returncode, done.stdout) == (3, "")
        assert "t.csv, line 3002: 1 cell, where the header has 2 columns" in done.stderr.replace(
            "3,002", "3002"
        )
        assert "(incomplete_input)" in done.stderr
        (home.path / "t.csv").write_text("a,b\n" + "1,2\n" * 3000)
        done = self.shell(home, pipe, options=options)
        assert (done.returncode, done.stdout[:6]) == (0, "batch_")
        assert f"the answers will be in {home.path}/batch_" in done.stderr

    def test_a_kill_at_any_moment_refuses_all(self, home: Home) -> None:
        """Mutant: blocks end with a line. The table comes from a pipe that stays open, so that make never ends."""
        fifo = home.path / "rows"
        subprocess.run(["mkfifo", fifo], check=True)
        make = subprocess.Popen(
            [*VBATCH, "make", str(fifo), "--format", "csv", "--prompt", "{a}", "-m", "echo"],
            env=home.env, cwd=home.path, stdout=subprocess.PIPE,
        )  # fmt: skip
        assert make.stdout is not None
        with ThreadPoolExecutor() as pool:
            writing = pool.submit(_write_for_ever, fifo)
            first = make.stdout.read(1 << 20)
            make.kill()
            rest = make.stdout.read()
            make.wait()
            writing.result()
        made = first + rest
        assert made.count(b"\n") > 1000
        assert not made.endswith(b"\n")
        path = home.path / "made.jsonl"
        path.write_bytes(made)
        done = home.run("submit", path, check=False)
        assert done.returncode == 3
        assert "the file may be incomplete" in done.stderr

    def test_a_reader_that_leaves_is_no_fault(self, home: Home) -> None:
        (home.path / "t.csv").write_text("a\n" + "1\n" * 50_000)
        done = self.shell(home, "vbatch make t.csv --prompt '{a}' | head -1")
        assert (done.returncode, done.stderr) == (0, "")
        assert json.loads(done.stdout)["custom_id"] == "1"


def test_memory_is_flat(tmp_path: Path) -> None:
    """Mutant: the rows are held: 40 MiB of table are then beyond the limit."""
    table = tmp_path / "big.csv"
    with table.open("w") as file:
        file.write("id,text\n")
        file.writelines(f"{at},{'x' * 1000}\n" for at in range(40_000))
    limited = (
        "import resource, sys; from vbatch.cli import main; import vbatch.batches, vbatch.cli.make;"
        "size = int(open('/proc/self/statm').read().split()[0]) * 4096 + (24 << 20);"
        "resource.setrlimit(resource.RLIMIT_AS, (size, size)); sys.exit(main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", limited, "make", str(table), "--prompt", "{text}", "--id", "id"],
        capture_output=True, check=False, timeout=SILENCE,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-500:]
    assert done.stdout.count(b"\n") == 40_000
