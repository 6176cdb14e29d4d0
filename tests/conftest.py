"""What all tests share: a clean environment, a PostgreSQL for the run, a store of each kind."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from itertools import count
from pathlib import Path

import prometheus_client
import pytest
from hypothesis import HealthCheck, settings
from prometheus_client import CollectorRegistry
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling

from tests.rigs.commands import Home
from tests.rigs.nvml import COMPILER, StandInDriver
from tests.rigs.postgres import Postgres
from tests.rigs.stores import fresh_url
from vbatch.store import COMMAND_PATIENCE, Store

VLLM_LIMIT = 3600  # seconds for one test on a machine that is slow and busy

_numbers = count()

settings.register_profile(
    "vbatch", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)  # a busy machine
settings.load_profile("vbatch")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files of the real vLLM: whoever gets them is busy while the other process does the rest.

    A test of it gets more time than others: its waits follow the progress of the engine (tests/rigs/waiting.py).
    """
    items.sort(key=lambda item: not _has_real_vllm(item.path))
    for item in items:
        if item.get_closest_marker("vllm") is not None:
            item.add_marker(pytest.mark.timeout(VLLM_LIMIT))


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadFileScheduling:
    """Deal tests out file by file, all of the real vLLM to one process: two engines at once thrash each other."""
    return _VllmInOneProcess(config, log)


class _VllmInOneProcess(LoadFileScheduling):
    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return "vllm" if _has_real_vllm(ROOT / file) else file


ROOT = Path(__file__).parent.parent
INHERITED = dict(os.environ)


@cache
def _has_real_vllm(path: Path) -> bool:
    return "mark.vllm" in path.read_text()


@pytest.fixture(autouse=True)
def clean_environment(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Begin with the environment of the test run, less the user's own settings: a test must not reach their store.

    An engine that an earlier test loaded in this process has set variables (HF_HUB_OFFLINE, VLLM_*): they are for
    the tests of the real vLLM alone.
    """
    for name in os.environ.keys() | INHERITED.keys():
        if name.startswith("VBATCH_"):
            monkeypatch.delenv(name, raising=False)
        elif name.startswith("PYTEST_") or request.node.get_closest_marker("vllm") is not None:
            continue
        elif name not in INHERITED:
            monkeypatch.delenv(name)
        elif os.environ.get(name) != INHERITED[name]:
            monkeypatch.setenv(name, INHERITED[name])


@pytest.fixture(autouse=True)
def clean_logging() -> Iterator[None]:
    """Take back what a command run in this process did to logging: its stderr is not the next test's."""
    root, ours = logging.getLogger(), logging.getLogger("vbatch")
    before = root.handlers[:], root.level, ours.level
    yield
    root.handlers[:] = before[0]
    root.setLevel(before[1])
    ours.setLevel(before[2])


@pytest.fixture
def own_registry(monkeypatch: pytest.MonkeyPatch) -> CollectorRegistry:
    """A Prometheus registry without the metrics of an engine that another test loaded in this process."""
    registry = CollectorRegistry()
    monkeypatch.setattr(prometheus_client, "REGISTRY", registry)
    return registry


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """The PostgreSQL of this test run. A test that stops or kills it uses ``own_postgres``."""
    with tempfile.TemporaryDirectory(prefix="vbatch-pg-") as folder:
        Path(folder).chmod(0o755)
        server = Postgres(Path(folder) / "server")
        server.start()
        url = server.url("template1")
        Store(url, patience=COMMAND_PATIENCE).prepare()  # every database is a copy of the migrated template
        server.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'template1'")
        yield server
        server.stop()


@pytest.fixture
def own_postgres() -> Iterator[Postgres]:
    """A PostgreSQL that the test may stop, kill and restart."""
    with tempfile.TemporaryDirectory(prefix="vbatch-pg-") as folder:
        Path(folder).chmod(0o755)
        server = Postgres(Path(folder) / "server")
        server.start()
        yield server
        server.stop()


@pytest.fixture
def postgresql_url(postgres: Postgres) -> Iterator[str]:
    """A fresh PostgreSQL database with the schema in it."""
    name = f"test_{next(_numbers)}"
    postgres.execute(f"CREATE DATABASE {name}")
    yield postgres.url(name)
    postgres.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a fresh store, once of each kind."""
    return fresh_url(request, tmp_path)


@pytest.fixture
def store(database_url: str) -> Iterator[Store]:
    """A fresh, migrated store, once of each kind."""
    opened = Store(database_url, patience=COMMAND_PATIENCE)
    opened.prepare()
    yield opened
    opened.close()


@pytest.fixture
def home(tmp_path: Path, database_url: str) -> Home:
    """A user's home on a fresh store, once of each kind."""
    return Home(tmp_path, database_url)


@pytest.fixture(scope="session")
def driver_library(tmp_path_factory: pytest.TempPathFactory) -> StandInDriver:
    """The stand-in driver, compiled once."""
    if COMPILER is None:
        pytest.skip("needs a C compiler for the stand-in driver")
    return StandInDriver.build(tmp_path_factory.mktemp("driver"))


@pytest.fixture
def driver(driver_library: StandInDriver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StandInDriver:
    """A stand-in NVIDIA driver for this test's processes; it knows no GPU until it is told of one."""
    driver = replace(driver_library, facts=tmp_path / "driver.txt")
    driver.says()
    for name, value in driver.environment.items():
        monkeypatch.setenv(name, value)
    return driver


@pytest.fixture
def gpu_build(home: Home, tmp_path: Path) -> None:
    """Have vbatch take the vLLM of the tests for the build for GPUs: only the looks at GPU memory depend on that."""
    metadata = tmp_path / "site" / "vllm-0.32.0.dist-info" / "METADATA"
    metadata.parent.mkdir(parents=True)
    metadata.write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0\n")
    home.extra["PYTHONPATH"] = ":".join(
        [str(tmp_path / "site"), *filter(None, [os.environ.get("PYTHONPATH")])]
    )
