"""The machine, as doctor finds it."""

from __future__ import annotations

import os
import re
import resource
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.rigs.filling import take_in
from vbatch import config
from vbatch.doctor.checks import host
from vbatch.doctor.facts import Facts
from vbatch.doctor.findings import Finding, Level
from vbatch.store import Store, registry
from vbatch.system import processes
from vbatch.system.disks import Mount, hub_cache, mount_of

root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount")


@pytest.fixture
def facts(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Facts:
    monkeypatch.setenv("VBATCH_DATABASE_URL", store.url.render_as_string(hide_password=False))
    for name in ("DATA", "STATE", "CACHE", "CONFIG"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(tmp_path / name))
    return Facts(settings=config.load())


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MB."""
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", place], check=True)
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def by_id(findings: Iterator[Finding]) -> dict[str, Finding]:
    return {finding.id: finding for finding in findings}


def test_the_clock_is_not_behind(facts: Facts, store: Store) -> None:
    registry.register(store, identity=processes.current(), engine="echo")
    assert by_id(host._clock(facts))["host.clock"].level in (Level.OK, Level.INFO)


def test_a_clock_that_was_set_back(facts: Facts, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutant: asking timedatectl alone; an empty battery sets the clock back and no network sets it right."""
    monkeypatch.setattr(host, "_newest_record", lambda _facts: datetime.now(UTC) + timedelta(hours=30))
    found = by_id(host._clock(facts))["host.clock"]
    assert found.level is Level.WARN
    assert re.search(r"1 d [56] h behind", found.what)  # 30 h, and rounded


@root
def test_a_full_disk(facts: Facts, store: Store, small: Path) -> None:
    """Mutant: looking at the store's disk alone."""
    take_in(store, 3, output_path=str(small / "out.jsonl"), error_path=str(small / "err.jsonl"))
    found = [finding for finding in host._disks(facts) if str(small) in finding.what]
    assert [(one.id, one.level) for one in found] == [("host.disk", Level.FAIL)]
    assert "outputs" in found[0].what


@root
def test_a_disk_that_became_read_only(facts: Facts, store: Store, small: Path) -> None:
    take_in(store, 3, output_path=str(small / "out.jsonl"), error_path=str(small / "err.jsonl"))
    subprocess.run(["mount", "-o", "remount,ro", small], check=True)
    assert by_id(host._disks(facts))["host.read_only"].level is Level.FAIL


@root
@pytest.mark.parametrize("how", ["full", "read-only"])
def test_the_disk_that_models_are_loaded_from(
    facts: Facts, small: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """What is there can be loaded all the same: a warning. Mutant: looking at vbatch's own folder alone."""
    monkeypatch.setenv("HF_HUB_CACHE", str(small / "hub"))
    if how == "read-only":
        subprocess.run(["mount", "-o", "remount,ro", small], check=True)
    (found,) = [finding for finding in host._disks(facts) if str(small) in finding.what]
    assert (found.id, found.level) == ("host.disk" if how == "full" else "host.read_only", Level.WARN)


def test_where_huggingface_keeps_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert hub_cache() == Path.home() / ".cache" / "huggingface" / "hub"
    for name, expected in (("XDG_CACHE_HOME", "huggingface/hub"), ("HF_HOME", "hub"), ("HF_HUB_CACHE", "")):
        monkeypatch.setenv(name, str(tmp_path / name))
        assert hub_cache() == tmp_path / name / expected


def test_each_disk_once(facts: Facts) -> None:
    lines = [finding.what for finding in host._disks(facts)]
    assert len(lines) == len(set(lines))


def test_few_open_files() -> None:
    script = (
        "import resource\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (512, 512))\n"
        "from vbatch.doctor.checks import host\n"
        "print([str(one.level) for one in host._limits(None) if one.id == 'host.files'])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['warn']"
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[1] != 512


@root
def test_little_shared_memory() -> None:
    """A container's 64 MiB, made for one process. Mutant: no look; an engine dies of it with words of its own."""
    script = (
        'mount -t tmpfs -o size=64m tmpfs /dev/shm && exec "$0" -c \''
        "from vbatch.doctor.checks import host\n"
        'print([(str(one.level), one.what) for one in host._limits(None) if one.id == "host.shm"])\''
    )
    command = ["unshare", "--mount", "sh", "-c", script, sys.executable]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "unshare" in done.stderr:
        pytest.skip(done.stderr)
    assert done.stdout.strip() == "[('warn', '/dev/shm has 64 MiB')]", done.stderr


@pytest.mark.parametrize(
    ("there", "level"),
    [((), Level.SKIP), (("_SYSTEMD",), Level.INFO), (("_SYSTEMD", "_JOURNAL"), Level.OK)],
)
def test_a_journal_that_a_power_cut_ends(
    facts: Facts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: tuple[str, ...], level: Level
) -> None:
    """Without systemd there is nothing to advise."""
    for name in ("_SYSTEMD", "_JOURNAL"):
        monkeypatch.setattr(host, name, tmp_path / name)
        if name in there:
            (tmp_path / name).mkdir()
    assert by_id(host._journal(facts))["host.journal"].level is level


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("echo no", "the clock is not set by the network"),
        ("echo yes", "the clock is set"),
        ("exit 1", "the clock is not behind any record"),
        ("exec sleep 30", "the clock is not behind any record"),
    ],
)
def test_what_timedatectl_says(
    facts: Facts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, words: str
) -> None:
    """Early in a boot its service may not answer. Mutant: no time limit."""
    program = tmp_path / "bin" / "timedatectl"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setattr(host, "_SYSTEMD", tmp_path)
    monkeypatch.setattr(host, "PATIENCE", timedelta(seconds=1))
    found = by_id(host._clock(facts))["host.clock"]
    assert found.what == words
    assert (found.level is Level.INFO) == (script == "echo no")


@root
@pytest.mark.parametrize("name", ["my disk", "Données", "back\\slash"])
def test_a_mount_of_any_name_is_found(tmp_path: Path, name: str) -> None:
    """The kernel writes blanks and backslashes as octal and leaves the rest. Mutant: taking it for Latin-1."""
    place = tmp_path / name
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", place], check=True)
    try:
        assert mount_of(place / "vbatch.db").place == place
    finally:
        subprocess.run(["umount", "-l", place], check=True)


@pytest.mark.parametrize(
    ("kind", "network"),
    [("nfs4", True), ("fuse.sshfs", True), ("9p", True), ("ext4", False), ("fuse.mergerfs", False)],
)
def test_file_systems_of_other_machines(kind: str, network: bool) -> None:
    mount = Mount(place=Path("/"), kind=kind, read_only=False, free=0, total=0)
    assert mount.over_network is network


def test_a_path_with_blanks_is_on_its_disk(tmp_path: Path) -> None:
    assert mount_of(tmp_path / "not yet" / "there").total == mount_of(tmp_path).total


@root
def test_the_mount_itself_is_found(small: Path) -> None:
    mount = mount_of(small / "folder" / "file")
    assert (mount.place, mount.kind, mount.total) == (small, "tmpfs", 2 << 20)
    assert not mount.over_network
