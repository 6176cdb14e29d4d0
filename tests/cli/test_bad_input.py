"""A bad file through the real command: exit 3, each bad line named, nothing stored, in words and as a document."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.cli.conftest import Cli
from tests.rigs.lines import line
from vbatch.jsonl.reading import LINE_LIMIT

GOOD = line("good")

# A bad file, then the code and line of each of its defects.
FILES: dict[str, tuple[bytes, list[tuple[str, int | None]]]] = {
    "not JSON": (GOOD + b"nonsense\n", [("invalid_json_line", 2)]),
    "cut off in a character": (GOOD + b'{"custom_id": "\xc3', [("invalid_json_line", 2)]),
    "Latin-1 in a custom_id": (GOOD + line("x").replace(b'"x"', b'"gr\xfcn"'), [("invalid_json_line", 2)]),
    "half a surrogate pair": (line("\ud800"), [("invalid_json_line", 1)]),
    "a byte order mark in the middle": (GOOD + b"\xef\xbb\xbf" + line("b"), [("invalid_json_line", 2)]),
    "a number that is none": (GOOD + line("b").replace(b'"m"', b"NaN"), [("invalid_json_line", 2)]),
    "a hole at its end": (GOOD + bytes(4096), [("invalid_json_line", 2)]),
    "a line beyond the limit": (GOOD + b'"' + b"x" * LINE_LIMIT + b"\n", [("line_too_long", 2)]),
    "custom_id missing": (line(custom_id=None), [("missing_required_parameter", 1)]),
    "custom_id a number": (line(custom_id=7), [("invalid_type", 1)]),
    "method GET": (line(method="GET"), [("invalid_method", 1)]),
    "url unknown": (line(url="/v1/chat"), [("invalid_url", 1)]),
    "body a string": (line(body="{}"), [("invalid_type", 1)]),
    "model missing": (line(body={}), [("model_not_found", 1)]),
    "model with a NUL": (line(body={"model": "m\0"}), [("invalid_type", 1)]),
    "a model's name beyond the limit": (line(body={"model": "m" * 501}), [("invalid_type", 1)]),
    "embeddings as bytes": (
        line(body={"model": "m", "encoding_format": "bytes"}),
        [("unsupported_parameter", 1)],
    ),
    "stream": (line(body={"model": "m", "stream": True}), [("unsupported_parameter", 1)]),
    "a custom_id twice": (GOOD + b"\n" + GOOD, [("duplicate_custom_id", 3)]),
    "empty": (b"\r\n", [("empty_file", None)]),
}


@pytest.mark.parametrize(("content", "defects"), FILES.values(), ids=FILES)
def test_a_bad_file_is_refused_whole(cli: Cli, content: bytes, defects: list[tuple[str, int | None]]) -> None:
    source = cli.file("bad.jsonl", content)
    document = cli("submit", source, "--json")
    assert document.code == 3
    error = document.document["error"]
    assert [(defect["code"], defect["line"]) for defect in error["errors"]["data"]] == defects
    assert error["errors_total"] == len(defects)
    words = cli("submit", source)
    assert (words.code, words.out) == (3, "")
    assert words.err.startswith("error: ")
    assert "nothing was stored" in words.err
    assert all(f"line {number}" in words.err for _, number in defects if number)
    assert cli("submit", source, "--dry-run").code == 3
    assert cli("list", "-q").out == ""
    assert list(cli.folder.iterdir()) == [source]


def test_a_bad_pipe_is_refused_too(cli: Cli) -> None:
    done = cli("submit", "-", "--json", stdin=GOOD + b"nonsense")
    assert (done.code, done.document["error"]["errors"]["data"][0]["line"]) == (3, 2)
    assert cli("list", "-q").out == ""


def test_of_a_thousand_bad_lines_a_hundred_are_shown(cli: Cli) -> None:
    done = cli("submit", cli.file("bad.jsonl", b"nonsense\n" * 1234), "--json")
    assert done.code == 3
    assert len(done.document["error"]["errors"]["data"]) == 100
    assert done.document["error"]["errors_total"] == 1234


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["-o", "."], "is a folder"),
        (["-o", "/"], "names a folder"),
        (["-o", "new/"], "names a folder"),
        (["-o", "loop/out.jsonl"], "no folder"),
        (["-o", "x" * 240 + ".jsonl"], "at most"),
        (["--priority", "99999999999999999999"], "--priority"),
        (["--expires-in", "9999999d"], "too long a duration"),
        (["-o", "\udcff.jsonl"], "not UTF-8"),
        (["--name", "\udcff"], "not UTF-8"),
    ],
)
def test_options_that_cannot_be(cli: Cli, options: list[str], words: str) -> None:
    (cli.folder / "loop").symlink_to("loop")
    done = cli("submit", cli.file("good.jsonl", GOOD), *options)
    assert (done.code, done.out) == (2, "")
    assert words in done.err
    assert "unexpected" not in done.err
    assert cli("list", "-q").out == ""


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--enginee", "echo"], "no such option: --enginee"),
        (["--max-inflight", "many"], "--max-inflight"),
        (["--max-model-len", "4096"], "no such option: --max-model-len"),  # behind a second double dash
        (["nonsense"], "unexpected argument 'nonsense'"),
        (["--drain"], "would not run the next batch"),
        (["--gpu", "1"], "install-service --gpu 1"),
    ],
)
def test_options_that_a_service_cannot_have(cli: Cli, options: list[str], words: str) -> None:
    """Mutant: installing them; the worker would refuse them at every boot, or share one GPU with the others."""
    done = cli("install-service", "--dry-run", "--", *options)
    assert (done.code, done.out) == (2, "")
    assert words in done.err


@pytest.mark.parametrize(
    ("gpus", "words"),
    [
        (["0", "0,1"], "GPU 0 would have two workers: --gpu 0 and --gpu 0,1"),
        (["GPU-x"], "--gpu: it must be the number of a GPU"),
    ],
)
def test_gpus_that_a_service_cannot_have(cli: Cli, gpus: list[str], words: str) -> None:
    """Mutant: two units that want one GPU, of which one never starts."""
    done = cli("install-service", "--dry-run", *(word for gpu in gpus for word in ("--gpu", gpu)))
    assert (done.code, done.out) == (2, "")
    assert words in done.err


def test_a_file_whose_name_is_not_utf_8(cli: Cli) -> None:
    done = cli("submit", cli.file("\udcff.jsonl", GOOD))
    assert done.code == 2
    assert "not UTF-8" in done.err
    assert cli("list", "-q").out == ""


def test_an_input_without_a_place_has_its_files_in_the_current_folder(cli: Cli) -> None:
    """A pipe of the shell (``<(…)``) stands below /dev, where no file can be written, or none that lasts."""
    reader, writer = os.pipe()
    os.write(writer, GOOD)
    os.close(writer)
    done = cli("submit", f"/dev/fd/{reader}", "--json")
    os.close(reader)
    assert done.code == 0, done.err
    assert Path(done.document["output_path"]).parent == cli.folder
    assert done.document["input_path"] is None


@pytest.mark.parametrize(
    ("output", "errors"),
    [("out/a.jsonl", "out/../out/a.jsonl"), ("out/a.jsonl", "link/a.jsonl"), ("nothing.jsonl", "b.jsonl")],
)
def test_paths_that_are_one_or_lead_nowhere(cli: Cli, output: str, errors: str) -> None:
    """Mutants: comparing paths as they are spelt; ``exists`` for a link to nothing. Such a batch never ends."""
    (cli.folder / "out").mkdir()
    (cli.folder / "link").symlink_to("out")
    (cli.folder / "nothing.jsonl").symlink_to("gone/nothing.jsonl")
    done = cli("submit", cli.file("good.jsonl", GOOD), "-o", output, "--error-file", errors)
    assert (done.code, done.out) == (2, "")
    assert cli("list", "-q").out == ""


def test_a_flag_of_vllm_without_the_double_dash_is_put_after_it(cli: Cli) -> None:
    """Mutant: the hint of any unknown option."""
    refused = cli("run-worker", "--drain", "--max-model-len", "4096")
    assert refused.code == 2
    assert "hint: vbatch run-worker --drain -- --max-model-len 4096" in refused.err


def test_an_output_that_exists_has_a_next_step(cli: Cli) -> None:
    cli.file("prompts.output.jsonl", b"")
    refused = cli("submit", cli.file("prompts.jsonl", GOOD))
    assert "vbatch retry ID" in refused.err
    assert "--reuse last" in refused.err


def test_metadata_that_is_not_utf_8_is_refused(cli: Cli) -> None:
    """Mutant: it is stored as the escape of a byte. The hint is to write it, not to rename a file."""
    done = cli("submit", cli.file("good.jsonl", GOOD), "--metadata", "a=\udcff", "--json")
    assert done.code == 2
    assert done.document["error"]["message"].startswith("this name is not UTF-8")
    assert done.document["error"]["hint"] == "write it in UTF-8"
    assert cli("list", "-q").out == ""
