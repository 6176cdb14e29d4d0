"""A server with a certificate of its own."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A key and its own certificate for ``localhost``, in one file."""
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl for a certificate")
    file = tmp_path / "localhost.pem"
    made = ["openssl", "req", "-x509", "-nodes", "-newkey", "rsa:2048", "-subj", "/CN=localhost"]
    named = ["-addext", "subjectAltName=DNS:localhost", "-keyout", str(file), "-out", f"{file}.certificate"]
    subprocess.run([*made, *named], check=True, capture_output=True)
    file.write_text(file.read_text() + Path(f"{file}.certificate").read_text())
    return file
