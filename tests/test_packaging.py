"""What is installed is what is here: the wheel and the sdist, a clean installation, the version, the licences."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from collections.abc import Iterable
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.rigs.commands import Home, chats
from tests.rigs.docs import ROOT
from vbatch import __version__

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

# What is no module, and is needed at run time all the same: one file of each kind.
DATA = {
    "vbatch/py.typed",
    "vbatch/cli/demo_data/chat.jsonl",
    "vbatch/docs/live.svg",
    "vbatch/docs/models.md",
    "vbatch/docs/service.md",
    "vbatch/server/static/page.css",
    "vbatch/server/templates/base.html",
    "vbatch/service/alerts.yml",
    f"vbatch-{__version__}.data/data/share/bash-completion/completions/vbatch",
    f"vbatch-{__version__}.data/data/share/fish/vendor_completions.d/vbatch.fish",
    f"vbatch-{__version__}.data/data/share/zsh/site-functions/_vbatch",
    f"vbatch-{__version__}.dist-info/licenses/LICENSE",
}

# Permissive licences, and the LGPL for a library that is only imported.
_FITTING = r"(MIT|BSD|BSD-[23]-Clause|Apache-2\.0|ISC|PSF-2\.0|LGPL-3\.0-only)( Licen[sc]e)?"
FITS = re.compile(rf"{_FITTING}( (AND|OR) {_FITTING})*")


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the sdist of this checkout."""
    folder = tmp_path_factory.mktemp("dist")
    build(ROOT, folder)
    return folder


def build(source: Path, target: Path, *options: str) -> None:
    """Build with this environment's hatchling: no network, no environment of its own."""
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-d", target, *options], cwd=source, check=True
    )


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def the(folder: Path, pattern: str) -> Path:
    (found,) = folder.glob(pattern)
    return found


def test_the_wheel_holds_every_file_of_the_package(dist: Path) -> None:
    """Mutant: a line of .gitignore, or of the build's settings, that leaves a file out."""
    there = contents(the(dist, "*.whl"))
    here = {
        str(path.relative_to(ROOT)): path.read_bytes()
        for path in (ROOT / "vbatch").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {name: there.get(name) for name in here} == here
    assert set(there) >= DATA
    strangers = {name for name in there if not name.startswith(("vbatch/", f"vbatch-{__version__}."))}
    assert strangers == set()


def test_the_sdist_builds_the_same_wheel(dist: Path, tmp_path: Path) -> None:
    """Mutant: an sdist without completions/."""
    with tarfile.open(the(dist, "*.tar.gz")) as archive:
        archive.extractall(tmp_path, filter="data")
    unpacked = tmp_path / f"vbatch-{__version__}"
    assert {path.name for path in unpacked.iterdir()} >= {
        "README.md",
        "CHANGELOG.md",
        "LICENSE",
        "tests",
        ".ci",
    }
    build(unpacked, tmp_path / "again", "-t", "wheel")
    assert contents(the(tmp_path / "again", "*.whl")) == contents(the(dist, "*.whl"))


def test_a_clean_installation_works(dist: Path, tmp_path: Path) -> None:
    """The wheel alone in a fresh environment, which finds only the dependencies elsewhere: a batch runs to its end."""
    environment = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    bin_ = environment / "bin"
    subprocess.run(
        [bin_ / "pip", "install", "--quiet", "--no-deps", "--no-index", the(dist, "*.whl")], check=True
    )
    site = the(environment, "lib/python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")

    home = Home(tmp_path / "home", f"sqlite:///{tmp_path}/vbatch.db", {"VBATCH_ENGINE": "echo"})
    home.path.mkdir()
    home.write("prompts", chats(20))
    variables = {name: value for name, value in home.env.items() if name != "PYTHONPATH"}

    def run(*command: str | Path) -> str:
        done = subprocess.run(
            command, cwd=home.path, env=variables, stdout=subprocess.PIPE, text=True, timeout=120, check=True
        )
        return done.stdout

    vbatch = bin_ / "vbatch"
    where = run(bin_ / "python", "-c", "import vbatch; print(vbatch.__file__)").strip()
    assert Path(where).is_relative_to(site)
    assert run(vbatch, "--version").strip().endswith(__version__)
    assert "store.reach" in run(vbatch, "doctor", "--list")
    run(vbatch, "submit", "prompts.jsonl")
    run(vbatch, "run-worker", "--drain")
    assert len((home.path / "prompts.output.jsonl").read_text().splitlines()) == 20
    assert (environment / "share" / "bash-completion" / "completions" / "vbatch").exists()


def test_the_version_is_the_changelogs() -> None:
    """Mutant: a release whose changelog has another number. What is not released yet stands above it."""
    headings = re.findall(r"^## \[([^]]+)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert PROJECT["version"] == __version__
    assert headings
    assert [heading for heading in headings if heading != "Unreleased"][:1] in ([], [__version__])


def test_every_requirement_has_a_licence_that_fits() -> None:
    """Mutant: a dependency under the GPL, or under no licence that its metadata names."""
    licences = {name: licence(name) for name in requirements("vbatch", ["serve"])}
    assert {canonicalize_name(Requirement(line).name) for line in PROJECT["dependencies"]} <= set(licences)
    assert {name: found for name, found in licences.items() if not FITS.fullmatch(found)} == {}


def licence(distribution: str) -> str:
    """Return what a distribution's metadata has: an SPDX expression, or older words for it, or nothing."""
    metadata = importlib.metadata.metadata(distribution).json
    trove = [
        line.rpartition(" :: ")[2] for line in metadata.get("classifier", ()) if line.startswith("License")
    ]
    return str(metadata.get("license_expression") or metadata.get("license") or " AND ".join(trove))


def requirements(distribution: str, extras: Iterable[str] = ()) -> set[str]:
    """Return all that an installation brings along, here and now, in canonical names."""
    found: set[str] = set()
    for requirement in map(Requirement, importlib.metadata.requires(distribution) or ()):
        wanted = requirement.marker is None or any(
            requirement.marker.evaluate({"extra": extra}) for extra in ("", *extras)
        )
        if wanted:
            found |= {canonicalize_name(requirement.name)} | requirements(
                requirement.name, requirement.extras
            )
    return found
