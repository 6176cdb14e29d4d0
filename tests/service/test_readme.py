"""The README's screens of a service, played on a real machine; the compose file of the docs, read as YAML."""

from __future__ import annotations

import itertools
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.rigs.commands import chats
from tests.rigs.guest import HOME, PERSON, Guest
from tests.rigs.readme import SERVICE, blocks, consoles
from tests.test_docs import pattern, shape
from vbatch.store.database.backends import backend_of

PATH = f"{Path(sys.executable).parent}:/usr/bin:/bin:/usr/sbin:/sbin"

# What sudo makes of a command: a search path without the virtual environment, and none of the person's variables
# but what the test needs. Its words are the person's shell's to expand.
SUDO = f"""
sudo() {{
    env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root SUDO_USER={PERSON} \\
        VBATCH_ENGINE=echo VBATCH_ECHO_LATENCY_MS=250 "$@"
}}
"""


@pytest.mark.root
def test_the_screens_of_a_service(guest: Guest) -> None:
    guest.write_prompts(chats(5000))
    guest.machine.run(["usermod", "--append", "--groups", "systemd-journal", PERSON])
    real_id = ""
    for step in itertools.chain.from_iterable(consoles("guest")):  # each begins where the one before ended
        if step.command is None:
            guest.machine.sync()
            guest.machine.cut_power()
            guest.machine.boot()
            guest.machine.wait_for("the worker is ready", guest.is_active())
            continue
        if "Status" in step.command:
            guest.recorded(1000)
        printed = play(guest, step.command.replace("6a3f90", real_id.removeprefix("batch_")))
        real_id = real_id or next(iter(re.findall(r"batch_[0-9a-f]{24}", printed)), "")
        assert re.fullmatch(pattern(step.expected), shape(printed)), f"$ {step.command}\n{printed}"


def play(guest: Guest, command: str) -> str:
    """Run a command as the person would type it. Mutant of the README: sudo vbatch, which sudo does not find."""
    done = guest.machine.run(
        ["bash", "-c", f"{SUDO}\n{command} 2>&1"],
        user=None if command.startswith("sudo ") else PERSON,
        home=HOME,
        env={"PATH": PATH},
    )
    return done.stdout


def test_the_compose_files() -> None:
    """Their syntax, by YAML and, where there is one, by docker compose; and the things that matter at boot."""
    yaml = pytest.importorskip("yaml")
    server_file, postgres_file = blocks("yaml", SERVICE)
    server = yaml.safe_load(server_file)["services"]["vbatch"]
    assert server["healthcheck"]["test"][-1] == "http://127.0.0.1:8088/health"
    postgres = yaml.safe_load(postgres_file)["services"]["postgres"]
    assert server["restart"] == postgres["restart"] == "unless-stopped"
    assert postgres["healthcheck"]["test"][:4] == ["CMD", "psql", "-h", "127.0.0.1"]
    assert postgres["ports"] == ["127.0.0.1:4332:5432"]
    url = re.search(r"VBATCH_DATABASE_URL=(postgresql://vbatch:PASSWORD@\S+)`", SERVICE.read_text())
    assert url is not None
    assert backend_of(url[1]).address == ("127.0.0.1", 4332)
    assert backend_of(url[1]).url.database == postgres["environment"]["POSTGRES_DB"]
    compose = ["docker", "compose"]
    if shutil.which("docker") and subprocess.run([*compose, "version"], check=False).returncode == 0:
        for text in (server_file, postgres_file):
            checked = subprocess.run(
                [*compose, "-f", "-", "config", "--quiet"], input=text, text=True, check=False
            )
            assert checked.returncode == 0


def test_the_drop_in_of_five_restarts_is_what_systemd_reads() -> None:
    assert blocks("ini", SERVICE) == ["[Unit]\nStartLimitIntervalSec=1h\nStartLimitBurst=5\n"]
