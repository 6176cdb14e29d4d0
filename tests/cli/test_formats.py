"""What a person brings is read as it is, or named in one sentence with the command or the line that is right."""

from __future__ import annotations

import gzip
import io
import json
import shlex
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import zstandard

from tests.cli.conftest import Cli
from tests.rigs.commands import VBATCH, Home, chat
from tests.rigs.lines import line
from vbatch.jsonl.formats import recognise


@pytest.fixture
def database_url(tmp_path: Path) -> str:
    """A file alone: what differs between databases is tested in tests/store."""
    return f"sqlite:///{tmp_path / 'vbatch.db'}"


GOOD = b"".join(line(f"r-{number}") for number in range(20))


def xlsx() -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("[Content_Types].xml", "<Types/>")
        archive.writestr("xl/workbook.xml", "<workbook/>")
    return content.getvalue()


READ = {
    "plain": GOOD,
    "with a byte order mark": b"\xef\xbb\xbf" + GOOD,
    "gzip": gzip.compress(GOOD),
    "gzip in two parts": gzip.compress(GOOD[:700]) + gzip.compress(GOOD[700:]),
    "zstd": zstandard.compress(GOOD),
    "zstd in two parts": zstandard.compress(GOOD[:700]) + zstandard.compress(GOOD[700:]),
}


@pytest.mark.parametrize("content", READ.values(), ids=READ)
@pytest.mark.parametrize("pipe", [False, True])
def test_it_is_read_as_it_is(cli: Cli, content: bytes, pipe: bool) -> None:
    """Mutants: a mark that spoils the first line; only the first part of an archive."""
    source = cli.file("prompts.jsonl", content)
    command = [*VBATCH, "submit", "-" if pipe else str(source), "--dry-run", "--json"]
    done = subprocess.run(command, input=content, capture_output=True, check=False, cwd=cli.folder)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["requests"] == 20


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_the_outputs_have_the_name_without_both_suffixes(cli: Cli, suffix: str) -> None:
    content = gzip.compress(GOOD) if suffix == ".gz" else zstandard.compress(GOOD)
    checked = cli("submit", cli.file(f"prompts.jsonl{suffix}", content), "--dry-run", "--json")
    assert Path(checked.document["output_path"]).name == "prompts.output.jsonl"


@pytest.mark.parametrize("content", [gzip.compress(GOOD), zstandard.compress(GOOD)], ids=["gzip", "zstd"])
def test_an_archive_that_is_cut_off_or_damaged_is_refused(cli: Cli, content: bytes) -> None:
    """Mutant: the lines before the fault accepted as the whole file."""
    damaged = bytearray(content)
    damaged[len(content) // 2] ^= 0xFF
    for bad in (content[:-9], bytes(damaged)):
        refused = cli("submit", cli.file("prompts.jsonl", bad))
        assert refused.code != 0
        assert "nothing was stored" in refused.err
        assert "Traceback" not in refused.err
    assert cli("list", "-q").out == ""


REQUEST = json.loads(line("a"))
MESSAGES = [{"role": "user", "content": "hi"}]
TRAINING = [*MESSAGES, {"role": "assistant", "content": "hello"}]
FOREIGN = {
    "UTF-16": (GOOD.decode().encode("utf-16"), "UTF-16", "iconv"),
    "UTF-16 without a mark": (GOOD.decode().encode("utf-16-be"), "UTF-16BE", "iconv -f UTF-16BE"),
    "UTF-16LE without a mark": (GOOD.decode().encode("utf-16-le"), "UTF-16LE", "iconv -f UTF-16LE"),
    "an array": (json.dumps([REQUEST, REQUEST]).encode(), "JSON array", "jq -c '.[]'"),
    "pretty-printed": (json.dumps(REQUEST, indent=2).encode(), "pretty-printed", "jq -c ."),
    "pretty-printed another way": (
        json.dumps(REQUEST).replace(', "body"', ',\n "body"').encode(),
        "pretty-printed",
        "jq -c .",
    ),
    "CSV of one column": (
        b"prompt\nhello\n",
        "a table (CSV) with the column prompt",
        "--prompt '{prompt}'",
    ),
    "CSV": (
        b"id,review,stars\n1,good,5\n",
        "a table (CSV) with the columns id, review, stars",
        "vbatch make",
    ),
    "TSV": (b"id\treview\n1\tgood\n", "a table (TSV)", "--prompt '{review}' -m MODEL | vbatch submit -"),
    "xlsx": (xlsx(), "an Excel file", "CSV"),
    "parquet": (b"PAR1\0\0", "a Parquet file", "vbatch make"),
    "xz": (b"\xfd7zXZ\0\0", "compressed with xz", "unxz"),
    "prompts": (b'{"prompt": "hi"}\n', "'prompt'", "jq -nc"),
    "bare messages": (json.dumps({"messages": MESSAGES}).encode(), "bare messages", "jq -nc"),
    "lists of messages": (json.dumps(MESSAGES).encode() + b"\n", "a list of messages", "jq -nc"),
    "bare messages with ids": (
        json.dumps({"custom_id": "x", "messages": MESSAGES}).encode(),
        "bare messages",
        "jq -c",
    ),
    "a fine-tuning set": (json.dumps({"messages": TRAINING}).encode(), "a fine-tuning set", "jq -nc"),
    "Anthropic": (
        json.dumps({"custom_id": "a", "params": {"messages": MESSAGES}}).encode(),
        "Anthropic",
        "jq",
    ),
    "Gemini": (json.dumps({"key": "a", "request": {"contents": []}}).encode(), "Gemini", "a line is"),
    "an output file": (
        b'{"id": "batch_req_1", "custom_id": "a", "response": {"status_code": 200, "body": {}}, "error": null}\n',
        "an output file of a batch",
        "vbatch retry",
    ),
    "lines of text": (
        b"Tell me a joke\nWrite a poem, please.\n",
        "lines of text",
        "brought.jsonl --format text --prompt '{line}'",
    ),
    "a page": (b"<!DOCTYPE html>\n<html>\n", "an HTML page", "download the file again"),
    "Git LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "Git LFS", "git lfs pull"),
    "Mistral": (json.dumps({"custom_id": "a", "body": {"messages": MESSAGES}}).encode(), "Mistral", "jq"),
}


@pytest.mark.parametrize(("content", "what", "hint"), FOREIGN.values(), ids=FOREIGN)
def test_another_kind_of_file_is_named_once_with_the_remedy(
    cli: Cli, content: bytes, what: str, hint: str
) -> None:
    """Mutant: a hundred lines of "This is not JSON"."""
    refused = cli("submit", cli.file("brought.jsonl", content))
    assert (refused.code, refused.out) == (3, "")
    first, second = refused.err.splitlines()
    assert first.startswith("error: ")
    assert what in first
    assert second.startswith("hint: ")
    assert hint in second


@pytest.mark.skipif(
    subprocess.run(["which", "jq"], capture_output=True, check=False).returncode != 0, reason="needs jq"
)
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize(
    "kind",
    [
        "prompts",
        "bare messages",
        "bare messages with ids",
        "lists of messages",
        "a fine-tuning set",
        "Mistral",
        "Anthropic",
    ],
)
def test_the_command_that_is_named_makes_requests(cli: Cli, kind: str, packed: bool) -> None:
    """Also of a last line without a line break. Mutants: jq's line numbers as ids; jq on compressed bytes."""
    line_of_it = FOREIGN[kind][0].strip()
    other = line_of_it.replace(b'"custom_id": "', b'"custom_id": "other-')
    content = line_of_it + b"\n" + other
    source = cli.file("brought it.jsonl", gzip.compress(content) if packed else content)
    hint = cli("submit", source).err.splitlines()[1].removeprefix("hint: ")
    subprocess.run(["bash", "-c", hint], check=True, cwd=cli.folder)
    checked = cli("submit", cli.folder / "requests.jsonl", "--dry-run", "-m", "m", "--json")
    assert checked.document["requests"] == 2


@pytest.mark.parametrize(
    "content",
    [
        GOOD,
        b"nonsense\n",
        b"",
        b"{",
        line("a", url="/v1/chat"),
        b'{"custom_id": "a"}',
        line("a").strip() + b" trailing\n" + GOOD,
        b'{"a": 1\n' + GOOD,
        b"a\0b\0" + GOOD,
    ],
)
def test_what_may_be_requests_is_read_line_by_line(content: bytes) -> None:
    """Mutant: a guess that hides the bad line."""
    assert recognise(content) is None


@pytest.mark.parametrize("lines", [1, 300])
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
def test_a_wrong_url_has_the_command_that_corrects_it(cli: Cli, lines: int, packed: bool) -> None:
    """Several wrong urls, too. Mutants: a command only for many lines; only for the first url."""
    urls = ["/chat/completions", "https://api.openai.com/v1/embeddings"][: 2 if lines > 1 else 1]
    content = b"".join(line(f"r-{number}", url=urls[number % len(urls)]) for number in range(lines))
    refused = cli("submit", cli.file("prompts.jsonl", gzip.compress(content) if packed else content))
    assert refused.code == 3
    shown = [text for text in refused.err.splitlines() if "did you mean" in text]
    assert len(shown) == len(urls)
    assert ("150 lines (1, 3, 5, …)" in shown[0]) == (lines > 1)
    hint = next(text for text in refused.err.splitlines() if text.startswith("hint: ")).removeprefix("hint: ")
    subprocess.run(["bash", "-c", hint], check=True, cwd=cli.folder)
    assert cli("submit", cli.folder / "corrected.jsonl", "--dry-run").code == 0


def test_a_defect_that_many_lines_share_is_shown_once(cli: Cli) -> None:
    """Wherever in the line it is. Mutant: 50 lines that differ in the number of a byte."""
    good = [line("a" * number).decode() for number in range(1, 51)]
    bad = [text.replace('"hi"', "NaN") for text in good] + good + good
    refused = cli("submit", cli.file("prompts.jsonl", "".join(bad).encode()))
    assert refused.err.splitlines()[1:] == [
        "  50 lines (1, 2, 3, …): NaN is not JSON: write null, or a number. (invalid_json_line)",
        "  50 lines (101, 102, 103, …): The custom_id of this line is already used on an earlier line."
        " (duplicate_custom_id)",
    ]


@pytest.mark.parametrize("name", ["NaN", "Infinity", "-Infinity"])
def test_a_number_that_json_has_not_is_named(cli: Cli, name: str) -> None:
    body = line("a").decode().replace('"hi"', name)
    refused = cli("submit", cli.file("prompts.jsonl", body.encode()))
    assert f"{name} is not JSON (at byte {body.index(name) + 1})" in refused.err


def test_several_files_make_a_batch_each(home: Home) -> None:
    sources = [home.write(name, [chat(name, "x")]) for name in ("one", "two")]
    ids = home.run("submit", *sources, "-q").stdout.split()
    assert len(ids) == 2
    home.run("run-worker", "--engine", "echo", "--drain")
    assert (home.path / "one.output.jsonl").exists()
    assert (home.path / "two.output.jsonl").exists()


def test_of_several_files_none_is_stored_where_one_is_bad(home: Home) -> None:
    good, bad = home.write("good", [chat("a", "x")]), home.path / "bad.jsonl"
    bad.write_text("nonsense\n")
    assert home.run("submit", good, bad, check=False).returncode == 3
    assert home.run("list", "-q").stdout == ""
    refused = home.run("submit", good, good, "-o", "x.jsonl", check=False)
    assert refused.returncode == 2


def test_files_that_would_write_one_output_are_refused_before_the_first(home: Home) -> None:
    """Mutant: the first is accepted, the second fails."""
    one = home.write("one", [chat("a", "x")])
    packed = home.path / "one.jsonl.gz"
    packed.write_bytes(gzip.compress(one.read_bytes()))
    for other in (packed, one):
        refused = home.run("submit", one, other, check=False)
        assert refused.returncode != 0
        assert "would both write" in refused.stderr
    two = home.write("two", [chat("a", "x")])
    batch = home.run("submit", two, "-q").stdout.strip()
    assert batch in home.run("submit", one, two, check=False).stderr
    assert home.run("list", "-q").stdout.split() == [batch]


def test_several_files_are_one_document(home: Home) -> None:
    sources = [str(home.write(name, [chat(name, "x")])) for name in ("one", "two")]
    checked = json.loads(home.run("submit", *sources, "--dry-run", "--json").stdout)
    assert [each["requests"] for each in checked["data"]] == [1, 1]
    accepted = json.loads(home.run("submit", *sources, "--json").stdout)
    assert [each["status"] for each in accepted["data"]] == ["in_progress", "in_progress"]
    home.run("run-worker", "--engine", "echo", "--drain")
    for name in ("one", "two"):
        (home.path / f"{name}.output.jsonl").unlink()
    with home.worker("--engine", "echo"):
        ended = json.loads(home.run("submit", *sources, "--wait", "--json").stdout)
    assert [each["status"] for each in ended["data"]] == ["completed", "completed"]


def test_several_pipes_are_checked(home: Home) -> None:
    """Mutant: only files that stay are checked."""
    for name in ("one", "two"):
        home.write(name, [chat(name, "x")])
    command = f"{shlex.join(VBATCH)} submit <(cat one.jsonl) <(cat two.jsonl) --dry-run"
    done = subprocess.run(
        ["bash", "-c", command], env=home.env, cwd=home.path, capture_output=True, text=True, check=True
    )
    assert done.stdout.count("1 request, all valid") == 2


def test_what_was_accepted_is_named_when_a_later_file_fails(home: Home) -> None:
    one = home.write("one", [chat("a", "x")])
    command = f"{shlex.join(VBATCH)} submit one.jsonl <(echo nonsense) -q"
    done = subprocess.run(
        ["bash", "-c", command], env=home.env, cwd=home.path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 3
    assert f"accepted before it: {home.run('list', '-q').stdout.strip()}" in done.stderr
    assert one.exists()


def test_lines_that_are_not_valid_can_be_left_out(home: Home) -> None:
    """The good lines as one whole, the others byte for byte beside the input. Mutant: a line without its blanks."""
    source = home.path / "prompts.jsonl"
    good = [json.dumps(chat(name, "x")) for name in ("a", "b")]
    bad = ["  nonsense\t\r", json.dumps(chat("c", "x") | {"method": "GET"}), json.dumps(chat("a", "again"))]
    source.write_bytes("\n".join([good[0], bad[0], bad[1], good[1], bad[2]]).encode())
    assert home.run("submit", source, check=False).returncode == 3
    assert (
        "2 valid requests, 3 lines not valid"
        in home.run("submit", source, "--skip-invalid", "--dry-run").stdout
    )
    assert not (home.path / "prompts.invalid.jsonl").exists()
    done = home.run("submit", source, "--skip-invalid", "--json", "-o", "elsewhere.jsonl")
    document = json.loads(done.stdout)
    assert (document["request_counts"]["total"], document["skipped"]) == (2, 3)
    assert (home.path / "prompts.invalid.jsonl").read_bytes() == "\n".join(bad).encode()
    assert "3 lines not valid" in home.run("status", "last").stdout
    again = home.run("submit", source, "--skip-invalid", "-o", "other.jsonl", check=False)
    assert "overwrites no file" in again.stderr
    assert len(home.run("list", "-q").stdout.split()) == 1
    (home.path / "none.jsonl").write_text("nonsense\n")
    assert home.run("submit", home.path / "none.jsonl", "--skip-invalid", check=False).returncode == 3


def test_one_file_may_go_to_several_endpoints(home: Home) -> None:
    """As `vllm run-batch` takes it. Mutants: one url for all; a retry that forgets the url."""
    completion: dict[str, object] = {
        "custom_id": "c",
        "method": "POST",
        "url": "/v1/completions",
        "body": {"model": "echo", "prompt": "text"},
    }
    failing = chat("f", "x", echo="error400") | {"custom_id": "f"}
    batch = home.submit([chat("a", "hello"), completion, chat("b", "hello"), failing])
    home.run("run-worker", "--engine", "echo", "--drain")
    document = home.batch(batch)
    assert (document["endpoint"], document["status"]) == (None, "completed")
    answers = [json.loads(text) for text in home.run("results", batch).stdout.splitlines()]
    kinds = [(each["custom_id"], each["response"]["body"]["object"]) for each in answers]
    assert kinds == [("a", "chat.completion"), ("c", "text_completion"), ("b", "chat.completion")]
    made = home.run("retry", batch, "-q").stdout.strip()
    assert home.batch(made)["request_counts"]["total"] == 1  # type: ignore[index]  # a document


def test_no_reader_cuts_a_line_of_output(home: Home) -> None:
    """Python's splitlines and others break at these. Mutant: the engine's bytes as they are."""
    home.submit([chat("a", "x\u2028y\u2029z\x85w")])
    home.run("run-worker", "--engine", "echo", "--drain")
    text = (home.path / "prompts.output.jsonl").read_text()
    (only,) = text.splitlines()
    assert json.loads(only)["response"]["body"]["choices"][0]["message"]["content"] == "x\u2028y\u2029z\x85w"


def test_zstd_without_its_package_names_it(home: Home) -> None:
    source = home.path / "prompts.jsonl.zst"
    source.write_bytes(zstandard.compress(GOOD))
    code = "import sys; sys.modules['zstandard'] = None; from vbatch.cli import main; sys.exit(main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", code, "submit", str(source)],
        env=home.env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 78
    assert "pip install 'vbatch[zstd]'" in done.stderr
