"""install-service and uninstall-service on a real machine: what they write, keep, refuse and take back."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.rigs.commands import chats
from tests.rigs.guest import HOME, PERSON, UNIT, VBATCH, Guest

pytestmark = pytest.mark.root

TEMPLATE = "/etc/systemd/system/vbatch-worker@.service"
ENVIRONMENT = "/etc/vbatch/worker.env"
STATE = "/var/lib/vbatch"


def test_a_dry_run_prints_the_plan_and_the_unit_and_changes_nothing(guest: Guest) -> None:
    before = guest.machine.written()
    done = guest.sudo("install-service", "--dry-run")
    assert f"User={PERSON}" in done.stdout
    assert f"{TEMPLATE} (new)" in done.stderr
    assert f"SQLite file, {HOME}/.local/share/vbatch/vbatch.db" in done.stderr
    assert changes(before, guest.machine.written()) == set()


def test_uninstall_leaves_the_file_system_as_it_was(guest: Guest) -> None:
    """The mutant: without removing the environment file or the emptied folders, they are found here."""
    before = guest.machine.written()
    guest.sudo("install-service", "--no-now", "--gpu", "0", "--gpu", "1", env={"VBATCH_ENGINE": "echo"})
    installed = changes(before, guest.machine.written())
    assert installed >= {TEMPLATE, ENVIRONMENT}
    guest.sudo("uninstall-service")
    assert changes(before, guest.machine.written()) == set()


def test_installing_again_changes_nothing(guest: Guest) -> None:
    guest.sudo("install-service", "--no-now")
    before = guest.machine.written()
    done = guest.sudo("install-service", "--no-now")
    assert "already current" in done.stdout
    assert changes(before, guest.machine.written()) == set()


def test_an_outdated_unit_is_replaced_and_the_difference_shown(guest: Guest) -> None:
    guest.sudo("install-service", "--no-now")
    done = guest.sudo("install-service", "--no-now", "--", "--max-inflight", "7")
    assert "+ExecStart=" in done.stderr
    assert "--max-inflight 7" in guest.machine.read(TEMPLATE)


def test_a_hand_edited_unit_is_kept_until_forced(guest: Guest) -> None:
    guest.sudo("install-service", "--no-now")
    edited = guest.machine.read(TEMPLATE).replace("WatchdogSec=3min", "WatchdogSec=9min")
    guest.machine.write(TEMPLATE, edited)
    done = guest.sudo("install-service", "--no-now")
    assert "changed by hand" in done.stderr
    assert "systemctl edit vbatch-worker@.service" in done.stderr
    assert guest.machine.read(TEMPLATE) == edited
    refused = guest.sudo("uninstall-service", check=False)
    assert refused.returncode == 1
    assert "vbatch uninstall-service --force --system" in refused.stderr
    guest.sudo("install-service", "--no-now", "--force")
    assert "WatchdogSec=3min" in guest.machine.read(TEMPLATE)


def test_a_persons_drop_in_survives_everything(guest: Guest) -> None:
    guest.sudo("install-service", "--no-now")
    guest.drop_in("[Unit]\nStartLimitIntervalSec=1h\nStartLimitBurst=5\n")
    guest.sudo("install-service", "--no-now", "--", "--max-inflight", "7")
    assert guest.machine.show(UNIT)["StartLimitBurst"] == "5"
    assert "test.conf: it is yours" in guest.sudo("uninstall-service").stdout
    assert "StartLimitBurst=5" in guest.machine.read(f"{TEMPLATE}.d/test.conf")


def test_one_instance_for_each_gpu_and_none_for_one_taken_away(guest: Guest) -> None:
    guest.sudo("install-service", "--no-now", "--gpu", "0", "--gpu", "2")
    assert enabled(guest) == ["vbatch-worker@0.service", "vbatch-worker@2.service"]
    guest.sudo("install-service", "--no-now", "--gpu", "2", "--gpu", "0,1")
    assert enabled(guest) == ["vbatch-worker@0_1.service", "vbatch-worker@2.service"]
    guest.sudo("install-service", "--no-now")
    assert enabled(guest) == ["vbatch-worker@0_1.service", "vbatch-worker@2.service"]
    shown = guest.machine.show("vbatch-worker@0_1.service")
    assert "VBATCH_GPU=0_1" in shown["Environment"]
    guest.sudo("install-service", "--no-now", "--gpu", "2")
    assert enabled(guest) == ["vbatch-worker@2.service"]


def test_secrets_are_in_a_file_of_mode_0600_and_nowhere_else(guest: Guest) -> None:
    """The mutant: Environment= in the unit shows the password to everybody on the machine."""
    url = "postgresql://alice:s3cr%40t@127.0.0.1:5432/vbatch"
    done = guest.sudo("install-service", "--no-now", env={"VBATCH_DATABASE_URL": url, "HF_TOKEN": "hf_s3cr"})
    assert "s3cr" not in done.stdout + done.stderr
    assert "s3cr" not in guest.machine.read(TEMPLATE)
    assert guest.machine.run(["stat", "-c", "%a %U", ENVIRONMENT]).stdout == "600 root\n"
    guest.sudo("install-service", "--no-now")  # from a shell that does not know the URL: it is kept
    assert f'VBATCH_DATABASE_URL="{url}"' in guest.machine.read(ENVIRONMENT)


def test_what_root_runs_at_boot_has_nothing_of_a_hostile_environment(guest: Guest) -> None:
    """A person who may call sudo for this one command sets variables and the PATH; the worker gets its libraries.

    Mutants: worth_keeping without ``_can_be_written``; LD_LIBRARY_PATH in the environment file.
    """
    hostile = {
        "LD_LIBRARY_PATH": "/home/alice/lib",
        "HF_X\nLD_PRELOAD": "/home/alice/x.so",
        "HF_HOME": "/srv/a\nLD_AUDIT=/home/alice/x.so",
    }
    done = guest.sudo("install-service", "--no-now", env=hostile)
    assert "is not kept for the service" in done.stderr
    guest.drop_in("[Service]\nExecStartPre=+/usr/bin/sh -c 'env -0 >/run/of-root'\n")
    guest.machine.run(["systemctl", "start", UNIT])
    worker = guest.machine.show(UNIT)["MainPID"]
    of_root = guest.machine.read("/run/of-root").split("\0")
    assert "HF_HOME=/srv/a\nLD_AUDIT=/home/alice/x.so" in of_root  # one variable of two lines
    assert [variable for variable in of_root if variable.startswith("LD_")] == []
    seen = guest.machine.read(f"/proc/{worker}/environ").split("\0")
    assert "LD_LIBRARY_PATH=/home/alice/lib" in seen
    guest.sudo("install-service", "--no-now")  # from a shell that does not know it: it is kept
    assert "LD_LIBRARY_PATH=/home/alice/lib" in guest.machine.read(TEMPLATE)


def test_paths_and_arguments_reach_the_worker_letter_for_letter(guest: Guest) -> None:
    """An interpreter below a folder with spaces, % and $, run by systemd itself. The mutant: no ``%%``."""
    odd = "/opt/my %h $HOME env"
    python = f"{odd}/bin/python"
    copy = 'mkdir -p "$1/bin" && cp "$2/pyvenv.cfg" "$1/" && ln -s "$2/lib" "$1/lib" && ln -s "$3" "$1/bin/python"'
    venv = VBATCH[0].removesuffix("/bin/python").rsplit("/bin/", 1)[0]
    guest.machine.run(["sh", "-c", copy, "sh", odd, venv, VBATCH[0]])
    value = "a \"b\" \\c $HOME %h `d` 'e'"
    arguments = ["--preload", value]
    guest.machine.run(
        [python, "-m", "vbatch", "install-service", "--no-now", "--", *arguments],
        env={"SUDO_USER": PERSON, "VBATCH_PRELOAD": value},
    )
    shown = "import json, os, sys; json.dump([sys.executable, sys.argv[1:], os.environ['VBATCH_PRELOAD']], sys.stdout)"
    unit = guest.machine.read(TEMPLATE).replace("-P -m vbatch run-worker", f'-P -c "{shown}"')
    guest.machine.write(
        TEMPLATE, unit.replace("Type=notify", "Type=oneshot").replace("Restart=on-failure", "")
    )
    guest.machine.run(["systemctl", "daemon-reload"])
    guest.machine.run(["systemctl", "start", UNIT])
    said = next(
        entry["MESSAGE"] for entry in guest.machine.journal("--unit", UNIT) if "[" in entry["MESSAGE"]
    )
    assert json.loads(said) == [python, arguments, value]


def test_an_account_that_cannot_run_this_python_is_told_so_at_once(guest: Guest) -> None:
    guest.machine.run(["useradd", "bob"])
    guest.machine.run(["install", "-d", "-m", "700", "/opt/closed"])
    guest.machine.run(["ln", "-s", VBATCH[0], "/opt/closed/python"])
    done = guest.machine.run(
        ["/opt/closed/python", "-m", "vbatch", "install-service", "--run-as", "bob"],
        env={"PYTHONPATH": ":".join(__import__("sys").path)},
        check=False,
    )
    assert done.returncode == 2
    assert "user bob cannot run vbatch" in done.stderr


def test_an_account_without_a_home_finds_its_batches(guest: Guest) -> None:
    """Submit and service use one store, after a second install too. Mutant: XDG_DATA_HOME=%S in the unit."""
    run = guest.machine.run
    run(["useradd", "--system", "--home-dir", "/var/lib/vbatch", "vbatch"])
    install = ("install-service", "--run-as", "vbatch", "--", "--engine", "echo")
    planned = guest.sudo(*install).stdout
    assert "/var/lib/vbatch/.local/share/vbatch/vbatch.db" in planned
    run(["sh", "-c", "cat > prompts.jsonl"], user="vbatch", home=STATE, stdin=json.dumps(chats(1)[0]))
    submit = [*VBATCH, "submit", "prompts.jsonl", "--wait"]
    run(submit, user="vbatch", home=STATE)
    assert "already current" in guest.sudo(*install).stdout


def test_the_disk_of_the_store_and_of_a_model_is_waited_for(guest: Guest) -> None:
    """Mutant: wait for the default folder of the store only."""
    run = guest.machine.run
    for disk in ("/mnt/a big one", "/mnt/models"):
        run(["mkdir", disk])
        run(["mount", "--bind", "/var/tmp", disk])
    guest.machine.write("/etc/vbatch/config.toml", '[models.big]\npath = "/mnt/models/big"\n')
    url = "sqlite:////mnt/a big one/q/vbatch.db"
    text = guest.sudo("install-service", "--dry-run", env={"VBATCH_DATABASE_URL": url}).stdout
    (wanted,) = [line for line in text.splitlines() if line.startswith("Wants=") and ".mount" in line]
    assert {r"mnt-a\x20big\x20one.mount", "mnt-models.mount"} <= set(wanted.removeprefix("Wants=").split())


@pytest.mark.parametrize("mounted_by", ["systemd", "hand"])
def test_a_disk_that_comes_late_is_waited_for(guest: Guest, mounted_by: str) -> None:
    """After its own failure, too, and nothing is written where it is not. Mutant: RequiresMountsFor=."""
    run, machine = guest.machine.run, guest.machine
    run(["mkdir", "-p", "/mnt/big", "/var/disk"])
    run(["chown", PERSON, "/var/disk"])
    machine.write(
        "/etc/systemd/system/mnt-big.mount",
        "[Unit]\nAssertPathExists=/var/disk.plugged\n[Mount]\nWhat=/var/disk.plugged\nWhere=/mnt/big\nType=none\nOptions=bind\n",
    )
    run(["mount", "--bind", "/var/disk", "/mnt/big"])
    guest.store_url = "sqlite:////mnt/big/vbatch.db"
    guest.install()
    guest.drop_in("[Service]\nRestartSec=15s\nRestartSteps=0\n")
    batch_id = guest.submit(3)
    machine.wait_for("the batch is done", guest.finished(batch_id))
    machine.sync()
    machine.cut_power()
    machine.boot()
    machine.wait_for("it says what is missing", guest.journal_has("/mnt/big is not a mountpoint"))
    assert run(["ls", "-A", "/mnt/big"]).stdout == ""
    machine.wait_for(
        "doctor reports it between two tries", reported(guest, "two tries: /mnt/big is not a mountpoint")
    )
    if mounted_by == "hand":
        run(["mount", "--bind", "/var/disk", "/mnt/big"])
    else:
        run(["ln", "-s", "/var/disk", "/var/disk.plugged"])
    machine.wait_for("it is ready", guest.is_active())
    assert guest.batch(batch_id)["status"] == "completed"


def reported(guest: Guest, words: str) -> Iterator[bool]:
    while True:
        yield words in guest.sudo("doctor", "service", check=False).stdout


def enabled(guest: Guest) -> list[str]:
    listed = guest.machine.run(["ls", "/etc/systemd/system/multi-user.target.wants"]).stdout.split()
    return [name for name in listed if name.startswith("vbatch")]


def changes(before: dict[str, str], after: dict[str, str]) -> set[str]:
    """Return the paths that differ, but for what any command leaves: logs, caches, machine state."""
    passing = ("/var/log/", "/var/cache/", "/var/tmp/", "/var/lib/systemd/random-seed", f"{HOME}/.cache")
    differing = {path for path in before.keys() | after.keys() if before.get(path) != after.get(path)}
    return {path for path in differing if not path.startswith(passing) and "__pycache__" not in path}
