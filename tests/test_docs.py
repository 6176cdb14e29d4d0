"""README and docs match the code: commands, options, variables, exit codes, findings; every console block is run."""

from __future__ import annotations

import contextlib
import csv
import os
import re
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.rigs import docs, readme
from tests.rigs.commands import Home, Lines, chat, chats
from tests.rigs.waiting import output, until
from vbatch import config
from vbatch.errors import ExitCode
from vbatch.protocol import ENDPOINTS

README = docs.README.read_text()
SETTINGS = (docs.DOCS / "settings.md").read_text()
MODELS = (docs.DOCS / "models.md").read_text()
EVERYTHING = "\n".join(page.read_text() for page in readme.PAGES)
PATH = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # with vbatch and python of this environment


@pytest.mark.parametrize("page", docs.GENERATED)
def test_generated_pages_are_current(page: str) -> None:
    assert docs.refreshed(page) == (docs.DOCS / page).read_text(), "run: python -m tests.rigs.docs"


def test_the_picture_of_the_live_view_is_current() -> None:
    """Mutant: another word in the live view. How Rich draws it may change with its version."""
    kept = docs.PICTURE.read_text()
    assert docs.words(kept) == docs.words(docs.picture()), "run: python -m tests.rigs.docs"
    assert "2,048 of 5,000 requests" in docs.words(kept)
    assert "url(http" not in kept, "a picture must not load anything from elsewhere"


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 340


def test_every_link_to_a_file_leads_to_one() -> None:
    for page in readme.PAGES:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_page_is_linked_from_the_readme() -> None:
    for page in docs.DOCS.iterdir():
        assert f"(vbatch/docs/{page.name})" in README


def test_every_variable_is_documented() -> None:
    assert {name for name in config.variables() if f"`{name}" not in SETTINGS} == set()


def test_no_variable_is_invented() -> None:
    assert set(re.findall(r"VBATCH_[A-Z_]+", EVERYTHING)) <= config.variables()


def test_every_finding_is_documented() -> None:
    page = (docs.DOCS / "findings.md").read_text()
    assert re.findall(r"^\| `([a-zA-Z_.]+)` \|", page, re.MULTILINE) == list(docs.meanings())


def test_every_row_about_a_model_says_how_it_is_known() -> None:
    rows = re.findall(r"^\| (?!model |format |---)(.*) \| ([a-z ]*) \|$", MODELS, re.MULTILINE)
    assert len(rows) >= 20
    assert {mark for _, mark in rows} == {"tried", "read in source"}
    assert [row.split(",")[0] for row, mark in rows if mark == "tried"] == ["SmolLM2-135M-Instruct"]


@pytest.mark.vllm
def test_flags_and_parsers_of_models_are_those_of_vllm() -> None:
    """Mutant: a name as another version of vLLM, or another page, has it."""
    pytest.importorskip("vllm")
    from vbatch.engine import vllm_names

    vllm = vllm_names.load()
    known = set(vllm.make_arg_parser(vllm.FlexibleArgumentParser(prog="vllm"))._option_string_actions)
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", MODELS)) - {"--gpu"} <= known
    parsers = {*vllm.ReasoningParserManager.list_registered(), *vllm.ToolParserManager.list_registered()}
    rows = re.findall(r"^.*(?:tool-call|reasoning)-parser .*$", MODELS, re.MULTILINE)
    named = {word for row in rows for word in re.findall(r"`(?:--[a-z-]+ )?([a-z]+[a-z0-9_]*)`", row)}
    named |= set(re.findall(r"--(?:tool-call|reasoning)-parser ([\w]+)", MODELS))
    assert named - {"content", "tools"} <= parsers
    assert len(named) >= 15


def test_every_exit_code_is_documented() -> None:
    table = docs.between(README, "exit codes")
    assert [int(code) for code in re.findall(r"^\| (\d+) \|", table, re.MULTILINE)] == sorted(ExitCode)


def test_every_endpoint_is_documented_and_no_other() -> None:
    listed = docs.between((docs.DOCS / "requests.md").read_text(), "endpoints")
    assert sorted(re.findall(r"`(/[^`]+)`", listed)) == sorted(ENDPOINTS)


def test_every_option_in_the_text_exists() -> None:
    reference = (docs.DOCS / "commands.md").read_text()
    ours = re.sub(r" -- .*|pip install [^`|]*", "", EVERYTHING.replace(reference, ""))
    mentioned = set(re.findall(r"vbatch[^`\n]*? (--[a-z-]+)", ours))
    assert {option for option in mentioned if option not in reference} == set()


def test_every_extra_that_is_installed_exists() -> None:
    extras = tomllib.loads((docs.ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = {
        name for group in re.findall(r"(?:\.|vbatch)\[([a-z,]+)\]", EVERYTHING) for name in group.split(",")
    }
    assert named == set(extras)


def test_the_configuration_example_is_valid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (example,) = readme.blocks("toml", docs.DOCS / "settings.md")
    (tmp_path / "config.toml").write_text(example)
    monkeypatch.setenv("VBATCH_CONFIG", str(tmp_path / "config.toml"))
    settings = config.load()
    assert set(tomllib.loads(example)) <= set(config.Settings.model_fields)
    assert settings.models["qwen-8b"].args[:2] == ("--max-model-len", "16384")


def test_ci_runs_the_readmes_test_command() -> None:
    command = next(command for command in readme.blocks("sh") if "bin/pytest" in command)
    assert f"\n{command}" in (docs.ROOT / ".ci" / "run").read_text()


def test_the_request_example_is_valid(home_on_sqlite: Home) -> None:
    (home_on_sqlite.path / "example.jsonl").write_text(readme.blocks("json")[0].replace(readme.MODEL, "echo"))
    assert "1 request, all valid" in home_on_sqlite.run("submit", "example.jsonl", "--dry-run").stdout


def test_the_python_examples_read_the_answers(home_on_sqlite: Home) -> None:
    home = home_on_sqlite
    (read,) = (block.replace(readme.MODEL, "echo") for block in readme.blocks("python"))
    home.submit([chat("first", "Very good."), chat("second", 'Two\nlines, "quoted".')])
    home.run("run-worker", "--drain")
    assert run_python(read, home) == 'first Very good.\nsecond Two\nlines, "quoted".\n'
    (program,) = (
        block.replace(readme.MODEL, "echo") for block in readme.blocks("python", docs.DOCS / "python.md")
    )
    with home.worker():
        assert run_python(f"{program}\nprint(texts)", home) == "['Name three rivers.', 'Name three lakes.']\n"


def run_python(program: str, home: Home) -> str:
    """Run an example as a person does, in the home's folder; return what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=home.path,
        env=home.env,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return done.stdout


@pytest.fixture
def home_on_sqlite(tmp_path: Path) -> Home:
    """A home with the README's files in it, where the echo engine answers."""
    return Home(tmp_path, f"sqlite:///{tmp_path}/vbatch.db", {"VBATCH_ENGINE": "echo"})


@pytest.mark.parametrize("number", range(len(readme.consoles())))
def test_console_block(number: int, home_on_sqlite: Home) -> None:
    """Each block is played in a fresh home. The power cut of the first one is a SIGKILL."""
    home = home_on_sqlite
    prompts = chats(5000)
    small = [chat("r-1", "Good morning!"), chat("r-2", "Good evening!"), chat("r-3", "no", echo="error400")]
    home.write("prompts", prompts)
    home.write("small", small)
    write_reviews(home)
    with Session(home) as session:
        for step in readme.consoles()[number]:
            session.play(step)
    if (answers := home.path / "answers.csv").exists():  # of the daily job
        with answers.open(newline="") as table:
            rows = list(csv.DictReader(table))
        assert [(row["id"], row["text"]) for row in rows] == REVIEWS
        assert [row["answer"] for row in rows] == [
            f"Positive or negative? One word: {text}" for _, text in REVIEWS
        ]
    if number == 0:
        lines = Lines.of(home.batch("batch_"))
        assert not lines.lost(prompts)
        assert not lines.doubled


REVIEWS = [("first", "Very good."), ("second", 'Two\nlines, "quoted".')]


def write_reviews(home: Home) -> None:
    with (home.path / "reviews.csv").open("w", newline="") as table:
        csv.writer(table).writerows([("id", "text"), *REVIEWS])


class Session:
    """Plays the steps of a block in a shell, and compares what is printed."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._id_in_readme = self._id = ""
        self._background: list[subprocess.Popen[str]] = []

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._background:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def play(self, step: readme.Step) -> None:
        if step.command is None:  # the power cut
            until(lambda: self._home.finished("batch_") > 1000)
            self.__exit__()
        elif step.command.endswith("&"):
            self._background.append(self._start(step.command.removesuffix("&")))
        else:
            self._run(step)

    def _run(self, step: readme.Step) -> None:
        assert step.command is not None
        process = self._start(self._with_real_id(step.command))
        printed = output(process)[0]
        if found := re.search(r"^batch_[0-9a-f]{24}$", printed, re.MULTILINE):
            self._id = found[0]
            self._id_in_readme = next(line for line in step.expected if line.startswith("batch_"))
        assert re.fullmatch(pattern(step.expected), shape(printed)), f"$ {step.command}\n{printed}"

    def _with_real_id(self, command: str) -> str:
        for word in command.split():
            if self._id and len(word) >= 6 and self._id_in_readme.startswith(f"batch_{word}"):
                command = command.replace(word, self._id[6 : 6 + len(word)])
        return command

    def _start(self, command: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["bash", "-c", command],
            env=self._home.env | {"PATH": PATH, "VBATCH_ECHO_LATENCY_MS": "250"},
            cwd=self._home.path,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            text=True,
        )


def shape(text: str) -> str:
    """What a README can promise of an output: its words, not its numbers, times and widths."""
    text = re.sub(r"(batch|batch_req|worker)_[0-9a-f]{16,24}", r"\1_ID", text)
    text = re.sub(r"[━╸╺]+ *", "BAR ", text)
    text = re.sub(r"\d+([.,]\d+)*", "N", text)
    text = re.sub(r"N (d|h|min|s)( N (h|min|s))? ago|just now", "WHEN", text)
    text = re.sub(r"N (d|h|min|s)( N (h|min|s))?", "TIME", text)
    return re.sub(r" +", " ", text)


def pattern(expected: list[str]) -> str:
    """A line of ``…`` alone stands for any lines, one inside a line for any text."""
    return "".join(
        r"(?:.*\n)*?" if line == "…" else ".*".join(map(re.escape, shape(line).split("…"))) + r"\n"
        for line in expected
    )


def test_no_praise_and_no_emoji() -> None:
    text = EVERYTHING + (docs.ROOT / "CHANGELOG.md").read_text()
    praise = r"production-ready|blazing|world-class|state-of-the-art|seamless|effortless|robust|powerful"
    assert re.findall(praise, text, re.IGNORECASE) == []
    marks = "✓✗"  # of doctor's own screen
    assert re.findall("[\U0001f300-\U0001faff\u2600-\u27bf]", re.sub(f"[{marks}]", "", text)) == []
