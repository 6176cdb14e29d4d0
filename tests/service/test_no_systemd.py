"""Without systemd there is a clear error and what to do instead, for each kind of machine."""

from __future__ import annotations

import os
import shlex
import subprocess

import pytest

from tests.rigs.guest import VBATCH
from tests.rigs.waiting import SILENCE

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to hide systemd in a mount namespace"),
]

# The host itself may be a container: a file that says so can be hidden only by another root.
OTHER_ROOT = """
set -e
mount -t tmpfs tmpfs /mnt && mkdir /mnt/upper /mnt/work /mnt/root
mount -t overlay overlay -o lowerdir=/,upperdir=/mnt/upper,workdir=/mnt/work /mnt/root
mount --rbind /proc /mnt/root/proc && mount --rbind /dev /mnt/root/dev
rm -rf /mnt/root/.dockerenv /mnt/root/run && mkdir /mnt/root/run
exec chroot /mnt/root sh -c "$1"
"""
WSL = "echo 6.6.87.2-microsoft-standard-WSL2 >/run/release; mount --bind /run/release /proc/sys/kernel/osrelease"


@pytest.mark.parametrize(
    ("make", "message", "hint"),
    [
        ("true", "is not run by systemd", "cron can start it: @reboot /"),
        ("touch /run/.containerenv", "a container without systemd", "--restart unless-stopped"),
        (WSL, "WSL without systemd", "systemd=true"),
    ],
    ids=["other init", "container", "WSL"],
)
@pytest.mark.parametrize("command", ["install-service", "uninstall-service"])
def test_what_to_do_instead(command: str, make: str, message: str, hint: str) -> None:
    run = f"{make} && exec {shlex.join([*VBATCH, command])}"
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", OTHER_ROOT, "sh", run],
        capture_output=True,
        text=True,
        timeout=SILENCE,
        check=False,
    )
    assert done.returncode == 1
    assert message in done.stderr
    assert hint in done.stderr
    assert "Traceback" not in done.stderr
