"""A real Label Studio, installed once beside the small model (``VBATCH_TEST_CACHE``): 1 GB, some minutes."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from tests.rigs.label_studio import TOKEN
from tests.rigs.model import CACHE
from tests.rigs.waiting import cpu_seconds, until
from vbatch.outbound.api import Api, Unreachable

VERSION = "1.23.2"
USER = "me@example.com"


def installed() -> Path:
    """Return the folder of its environment; make it where it is not there yet."""
    folder = CACHE / f"label-studio-{VERSION}"
    if not (folder / "bin" / "label-studio").exists():
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        subprocess.run([folder / "bin" / "pip", "install", "-q", f"label-studio=={VERSION}"], check=True)
    return folder


@contextlib.contextmanager
def label_studio(data: Path) -> Iterator[Api]:
    """Keep one running on a fresh SQLite file, without a browser and without calls to the internet."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("VBATCH_", "PYTHON"))}
    environment = kept | {
        "LABEL_STUDIO_BASE_DATA_DIR": str(data),
        "DJANGO_DB": "sqlite",
        "LABEL_STUDIO_USERNAME": USER,
        "LABEL_STUDIO_PASSWORD": "verysecret1",
        "LABEL_STUDIO_USER_TOKEN": TOKEN,
        "LABEL_STUDIO_ENABLE_LEGACY_API_TOKEN": "true",  # read when the organization is made
        "COLLECT_ANALYTICS": "false",
        "LATEST_VERSION_CHECK": "false",
        "SENTRY_DSN": "",
        "FRONTEND_SENTRY_DSN": "",
    }
    command = ["start", "--no-browser", "--internal-host", "127.0.0.1", "--port", str(port)]
    api = Api(url=f"http://127.0.0.1:{port}", headers={"Authorization": f"Token {TOKEN}"})

    def answers() -> bool:
        with contextlib.suppress(Unreachable):
            return api.get("/api/version").succeeded
        return False

    with (data / "server.log").open("ab") as log:
        process = subprocess.Popen(
            [installed() / "bin" / "label-studio", *command],
            env=environment,
            cwd=data,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
        try:
            until(answers, progress=lambda: cpu_seconds(process.pid), pause=1)
            yield api
        finally:
            process.kill()
            process.wait()


if __name__ == "__main__":  # for a person: python -m tests.rigs.label_studio_real; Ctrl-C ends it
    with tempfile.TemporaryDirectory() as folder, label_studio(Path(folder)) as running:
        print(f"export VBATCH_LABEL_STUDIO_URL={running.url} VBATCH_LABEL_STUDIO_TOKEN={TOKEN}", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()
