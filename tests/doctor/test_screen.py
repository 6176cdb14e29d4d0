"""What a person sees of doctor, and what a program gets."""

from __future__ import annotations

import ast
import getpass
import importlib
import json
import sys
from pathlib import Path

import pexpect
import pytest

from tests.rigs import engines
from tests.rigs.commands import Home, chats
from tests.rigs.nvml import GIB, StandInDriver
from tests.rigs.waiting import SILENCE
from vbatch.doctor import checks, registry
from vbatch.doctor.findings import Entry
from vbatch.errors import ExitCode
from vbatch.gpu_memory.holders import Kind
from vbatch.store import COMMAND_PATIENCE, Store
from vbatch.store.database.backends.protocol import Fault


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """A home on SQLite: what is shown does not depend on the kind of store."""
    home = Home(tmp_path, f"sqlite:///{tmp_path / 'vbatch.db'}")
    Store(home.database_url, patience=COMMAND_PATIENCE).prepare()
    return home


def test_every_finding_has_one_entry_and_every_entry_a_finding() -> None:
    """A finding is made by an entry alone. Mutants: an entry that no check declares, that no check reports, or whose
    blanks are not filled; an entry made within a check.
    """
    declared = [entry for check in registry.CHECKS for entry in check.finds]
    assert len({entry.id for entry in declared}) == len(set(declared)), "two entries have one id"
    of_skipped = {check.finds[0].id for check in registry.CHECKS if check.needs}
    assert of_skipped == {check.name for check in registry.CHECKS if check.needs}
    reported = set(of_skipped)
    made: set[str] = set()
    for path in Path(checks.__file__).parent.glob("[a-z]*.py"):
        module = importlib.import_module(f"vbatch.doctor.checks.{path.stem}")
        tree = ast.parse(path.read_text())
        made |= {entry.id for value in vars(module).values() for entry in _entries(value)}
        functions = [node for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
        for node in (node for function in functions for node in ast.walk(function)):
            match node:
                case ast.Call(func=ast.Name(id="Entry")):
                    pytest.fail(f"{path.name}:{node.lineno} makes an entry within a function")
                case ast.Call(func=ast.Attribute(value=ast.Name(id=name), attr=attr)) if name.isupper():
                    (entry,) = _entries(getattr(module, name)) or (None,)
                    if entry is not None:
                        reported.add(entry.id)
                        filled = {keyword.arg for keyword in node.keywords} & {"values", "commands"}
                        blanks = any("{" in command for command in entry.commands)
                        assert attr in ("ok", "skip") or filled or not blanks, f"{path.name}:{node.lineno}"
                case ast.Subscript(value=ast.Name(id=name)) if name.isupper():
                    reported |= {entry.id for entry in _entries(getattr(module, name))}
    assert made == reported == {entry.id for entry in declared}
    assert {f"gpu.{kind}" for kind in Kind} | {f"store.{fault}" for fault in Fault} <= reported


def _entries(value: object) -> list[Entry]:
    match value:
        case Entry():
            return [value]
        case dict():
            return [each for each in value.values() if isinstance(each, Entry)]
    return []


def test_the_list_shows_them_all(home: Home) -> None:
    shown = home.run("doctor", "--list").stdout
    assert all(name in shown for name in registry.meanings())
    listed = json.loads(home.run("doctor", "--list", "--json").stdout)
    assert [entry["id"] for entry in listed] == list(registry.meanings())
    assert all(entry["means"] and entry["remedy"] for entry in listed)


def test_the_document_has_its_shape(home: Home) -> None:
    """Programs depend on these names; they may grow, never change."""
    document = json.loads(home.run("doctor", "queue", "gpu", "--json", check=False).stdout)
    assert {key: type(value) for key, value in document.items()} == {
        "vbatch": str,
        "verdict": str,
        "exit_code": int,
        "story": type(None),
        "next": type(None),
        "findings": list,
    }
    for finding in document["findings"]:
        assert {key: type(value) for key, value in finding.items()} == {
            "id": str,
            "group": str,
            "level": str,
            "what": str,
            "why": str,
            "evidence": list,
            "commands": list,
            "repairable": bool,
            "passing": bool,
        }
        assert finding["level"] in ("ok", "info", "skip", "warn", "fail", "fixed")


@pytest.mark.usefixtures("gpu_build")
def test_one_line_a_check_and_the_next_command_last(home: Home, driver: StandInDriver) -> None:
    with engines.child() as holder:
        driver.has((holder.pid, 14 * GIB))
        home.submit(chats(3))
        done = home.run("doctor", "queue", "gpu", check=False)
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert "Queue" in lines
    assert any(line.startswith("  ✓ no chunk is leased to a dead worker") for line in lines)
    assert any(
        line.startswith("  ✗ GPU 0 (NVIDIA GeForce RTX 4080) has 1.57 of 15.57 GiB free") for line in lines
    )
    assert lines[-2] == "1 problem"
    assert (
        lines[-1] == f"next: kill {holder.pid}   # only if you may end it: it belongs to {getpass.getuser()}"
    )


@pytest.mark.parametrize(
    ("environment", "plain"),
    [
        ({"LC_ALL": "C"}, True),
        ({"LC_ALL": "POSIX"}, True),
        ({"LC_ALL": "", "LC_CTYPE": "", "LANG": "C"}, True),
        ({"LC_ALL": "C.UTF-8", "LANG": "C"}, False),
        ({"LC_ALL": "", "LC_CTYPE": "", "LANG": "C.UTF-8"}, False),
        ({"LC_ALL": "C.UTF-8", "PYTHONIOENCODING": "ascii"}, True),
    ],
)
def test_without_utf_8_the_marks_are_ascii(home: Home, environment: dict[str, str], plain: bool) -> None:
    """Mutant: asking Python alone, which writes UTF-8 in the C locale too."""
    home.extra |= environment
    done = home.run("doctor", "queue", check=False)
    assert done.stdout.isascii() is plain
    assert f"  {'+' if plain else '✓'} no chunk is leased to a dead worker" in done.stdout


@pytest.mark.parametrize(("answer", "ended"), [("y", True), ("n", False), ("", False)])
def test_a_person_is_asked_before_a_repair(
    home: Home, driver: StandInDriver, answer: str, *, ended: bool
) -> None:
    with engines.orphan() as engine:
        store = Store(home.database_url, patience=COMMAND_PATIENCE)
        engines.in_ledger(store, engine.identity, worker=engines.dead_identity(), state_dir=home.state_dir)
        driver.has((engine.pid, 14 * GIB))
        terminal = pexpect.spawn(
            sys.executable,
            ["-m", "vbatch", "doctor", "gpu", "--fix"],
            env=home.env,
            timeout=SILENCE,
            encoding="utf-8",
        )
        terminal.expect(rf"End the engine that a dead worker left behind \(process {engine.pid}\)\? \[y/N\] ")
        terminal.sendline(answer)
        terminal.expect(pexpect.EOF)
        terminal.close()
        assert terminal.exitstatus == (0 if ended else 1)
        assert engine.alive() is not ended


def test_a_report_that_cannot_be_written_costs_no_verdict(home: Home, tmp_path: Path) -> None:
    """Mutant: writing it before the verdict is shown."""
    done = home.run("doctor", "queue", "--report", tmp_path / "none" / "report.txt", check=False)
    assert done.returncode == 1
    assert "all is well" in done.stdout
    assert "cannot be written" in done.stderr


@pytest.mark.parametrize("arguments", [("--list", "nonsense"), ("--yes",), ("--min-free-gb", "inf")])
def test_options_that_say_nothing_are_refused(home: Home, arguments: tuple[str, ...]) -> None:
    done = home.run("doctor", *arguments, check=False)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_a_name_that_is_none_is_a_usage_error(home: Home) -> None:
    done = home.run("doctor", "gpus", check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: doctor has no check 'gpus'; its groups are ")


def test_nothing_is_made_where_nothing_is(tmp_path: Path) -> None:
    """Without --fix nothing is changed: not even an empty store is left behind. Mutant: opening the store to look."""
    home = Home(tmp_path, f"sqlite:///{tmp_path / 'store' / 'vbatch.db'}")
    before = sorted(tmp_path.rglob("*"))
    home.run("doctor", "store", "host", "queue", "gpu", check=False)
    assert sorted(tmp_path.rglob("*")) == before


def test_the_report_holds_no_secret_and_no_prompt(home: Home, tmp_path: Path) -> None:
    """Mutants: no ``clean`` of the settings; keeping every line of the engine's log."""
    logs = tmp_path / "state" / "vbatch" / "logs"
    logs.mkdir(parents=True)
    (logs / "m.log").write_text(
        "INFO 11-25 03:52:01 [core.py:58] loading weights\nReceived request cmpl-1: 'my diary', params\n"
        "INFO 11-25 03:52:01 [core.py:58] connecting to postgresql://me:hunter2@host/db\n"
        "INFO 11-25 03:52:01 [core.py:58] HF_TOKEN=hf_abcdefghijklmnop\n"
    )
    config = tmp_path / "config" / "vbatch" / "config.toml"
    config.parent.mkdir(parents=True)
    config.write_text('[models."secret/m"]\nargs = ["--api-key", "topsecret"]\n')
    home.extra["VBATCH_PRELOAD"] = "some/model"
    home.run("doctor", "queue", "--report", tmp_path / "report.txt", check=False)
    report = (tmp_path / "report.txt").read_text()
    assert "loading weights" in report
    assert "preload = some/model" in report
    assert "vllm" in report
    assert "secret/m" in report
    for secret in ("my diary", "hunter2", "abcdefghijklmnop", "topsecret"):
        assert secret not in report
    assert (tmp_path / "report.txt").stat().st_mode & 0o777 == 0o600


def test_wrong_settings_are_told_with_their_place(home: Home) -> None:
    home.extra["VBATCH_LEASE"] = "soon"
    done = home.run("doctor", check=False)
    assert done.returncode == 78
    assert "VBATCH_LEASE" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("planted", ["file", "link", "dangling"])
def test_a_report_overwrites_nothing_and_follows_no_link(home: Home, tmp_path: Path, planted: str) -> None:
    """Mutant: the report opened with O_TRUNC; what a link in a shared folder points to is then lost."""
    victim, place = tmp_path / "victim", tmp_path / "report.txt"
    if planted != "dangling":
        victim.write_text("precious")
    if planted == "file":
        place.write_text("precious")
    else:
        place.symlink_to(victim)
    done = home.run("doctor", "queue", "--report", place, check=False)
    assert done.returncode == ExitCode.USAGE
    assert "already exists" in done.stderr
    assert victim.exists() is (planted != "dangling")
    if planted != "dangling":
        assert place.read_text() == "precious"
