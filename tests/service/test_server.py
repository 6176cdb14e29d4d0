"""The server as a service on a real machine: installed, confined, started at boot, missed by doctor, taken back.

What serves is a stand-in that answers ``/health``, put into the place of ``vbatch serve`` by a drop-in; the last test
has the real one.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from importlib.util import find_spec

import pytest

from tests.rigs.guest import Guest
from tests.service.test_install import changes

pytestmark = pytest.mark.root

SERVER = "vbatch-serve.service"
FILE = f"/etc/systemd/system/{SERVER}"
DROP_IN = f"{FILE}.d/test.conf"
PORT = 18088
STAND_IN = """
import http.server, os, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(503 if os.path.exists("/run/unwell") else 200)
        self.end_headers()
if os.path.exists("/run/refuse"):
    sys.exit("error: there is no port\\nhint: choose another one")
http.server.HTTPServer(("0.0.0.0", int(sys.argv[1])), Handler).serve_forever()
"""
INSTALL = ("install-service", "--serve", "--", "--engine", "echo")


def stand_in(guest: Guest) -> None:
    """Have the unit start the stand-in; systemd finds the drop-in with the unit."""
    guest.machine.write("/opt/stand_in.py", STAND_IN)
    start = f"ExecStart=\nExecStart={sys.executable} -I /opt/stand_in.py {PORT}\n"
    guest.machine.write(DROP_IN, f"[Service]\n{start}RestartSec=1s\nRestartSteps=0\n")


def finding(guest: Guest) -> dict[str, object]:
    document = json.loads(guest.sudo("doctor", "server", "--json", check=False).stdout)
    return next(each for each in document["findings"] if each["id"] == "server.unit")


def found(guest: Guest, level: str, words: str) -> Iterator[bool]:
    while True:
        seen = finding(guest)
        yield seen["level"] == level and words in str(seen)


def test_it_is_installed_beside_the_worker_serves_after_a_boot_and_is_taken_back(guest: Guest) -> None:
    """Mutants: a server that is not enabled; an install that waits for no answer; an uninstall that forgets it."""
    before = guest.machine.written()
    stand_in(guest)
    dry = guest.sudo("install-service", "--serve", "--dry-run")
    assert f"{FILE} (new)" in dry.stderr
    assert " -m vbatch serve\n" in dry.stdout
    assert guest.machine.run(["test", "-e", FILE], check=False).returncode == 1
    done = guest.sudo(*INSTALL)
    assert f"vbatch-serve is ready: http://127.0.0.1:{PORT}" in done.stdout
    assert "vbatch-worker@0 is ready" in done.stdout
    again = guest.sudo("install-service")  # it stays, though this call does not name it
    assert "already current" in again.stdout
    guest.machine.sync()
    guest.machine.cut_power()
    guest.machine.boot()
    guest.machine.wait_for("it answers after the boot", found(guest, "ok", f"http://127.0.0.1:{PORT}"))
    guest.machine.run(["touch", "/run/unwell"])
    guest.machine.wait_for("doctor sees 503", found(guest, "warn", "503"))
    guest.machine.run(["touch", "/run/refuse"])
    guest.machine.run(["systemctl", "restart", SERVER])
    guest.machine.wait_for("doctor has its last words", found(guest, "warn", "there is no port"))
    guest.machine.run(["rm", "/run/unwell", "/run/refuse"])
    guest.machine.wait_for("systemd has tried again", found(guest, "ok", "answers"))
    guest.machine.run(["systemctl", "stop", SERVER])
    assert finding(guest)["level"] == "info"
    edited = guest.machine.read(FILE).replace("TimeoutStopSec=1min", "TimeoutStopSec=2min")
    guest.machine.write(FILE, edited)
    assert f"{FILE} was changed by hand" in guest.sudo("uninstall-service", check=False).stderr
    removed = guest.sudo("uninstall-service", "--force")
    assert f"stopped {SERVER}" in removed.stdout
    assert f"kept {DROP_IN}: it is yours" in removed.stdout
    guest.machine.run(["rm", "-r", "/opt/stand_in.py", f"{FILE}.d"])
    left = {path for path in changes(before, guest.machine.written()) if "systemd/system" in path}
    assert left == set()


@pytest.mark.skipif(find_spec("vbatch.server") is None, reason="this version has no vbatch serve")
def test_the_real_server_answers_in_its_confinement(guest: Guest) -> None:
    """Mutant: a key of the sandbox that keeps it from its store or its socket."""
    done = guest.sudo(*INSTALL)
    assert "vbatch-serve is ready: http://127.0.0.1:" in done.stdout
    assert finding(guest)["level"] == "ok"
    guest.machine.run(["systemctl", "stop", SERVER])
    assert guest.machine.show(SERVER)["Result"] == "success"
    guest.sudo("uninstall-service")
