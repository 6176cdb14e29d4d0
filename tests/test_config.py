"""Which setting wins, and what a wrong one says."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from vbatch import config
from vbatch.errors import ConfigError, ExitCode, UsageError
from vbatch.store.database.backends import backend_of


@pytest.fixture(autouse=True)
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty configuration file of the user, and no variable."""
    for name in config.variables():
        monkeypatch.delenv(name, raising=False)
    for kind in ("CONFIG", "DATA", "CACHE", "STATE"):
        monkeypatch.setenv(f"XDG_{kind}_HOME", str(tmp_path / kind.lower()))
    path = config.user_file()
    path.parent.mkdir(parents=True)
    path.touch()
    return path


def test_flag_over_variable_over_file_over_default(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert config.load().engine == "vllm"
    file.write_text('engine = "echo"\nmax_inflight = 1\nlease = "30s"\n')
    monkeypatch.setenv("VBATCH_MAX_INFLIGHT", "2")
    monkeypatch.setenv("VBATCH_LEASE", "20")
    settings = config.load(lease="10s", max_inflight=None)
    assert (settings.engine, settings.max_inflight, settings.lease) == ("echo", 2, timedelta(seconds=10))


def test_the_default_store_is_a_file_of_the_user(tmp_path: Path) -> None:
    assert config.load().store_url == f"sqlite:///{tmp_path}/data/vbatch/vbatch.db"


def test_models(file: Path) -> None:
    file.write_text('[defaults]\nargs = ["--x"]\n[models."org/name"]\npath = "~/m"\nargs = ["--y", "1"]\n')
    settings = config.load()
    assert settings.defaults.args == ("--x",)
    assert settings.models["org/name"].args == ("--y", "1")
    assert settings.models["org/name"].path == "~/m"
    assert settings.engine_args("org/name") == ("--x", "--y", "1")
    assert settings.engine_args("another") == ("--x",)


def test_a_models_files_are_where_it_says_in_the_cache_or_in_the_hub(file: Path, tmp_path: Path) -> None:
    """Mutants: a cached model is downloaded again; a ``~`` is taken for a folder's name."""
    file.write_text('[models."mine"]\npath = "~/mine"\n')
    settings = config.load(cache_dir=tmp_path)
    (tmp_path / "models" / "cached").mkdir(parents=True)
    paths = [settings.model_path(model) for model in ("mine", "cached", "org/name")]
    assert paths == [str(Path.home() / "mine"), str(tmp_path / "models" / "cached"), "org/name"]


def test_never(file: Path) -> None:
    file.write_text('idle_unload = "never"\nrequest_timeout = "2m"\n')
    settings = config.load()
    assert settings.idle_unload is None
    assert settings.request_timeout == timedelta(minutes=2)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('engine = "vlm"', "engine: input should be 'vllm' or 'echo'"),
        ("gpu = -1", "gpu: input should be greater than or equal to 0"),
        ('lease = "soon"', "lease: 'soon' is not a duration"),
        ("request_timeout = -5", "request_timeout: input should be greater than 0"),
        ("idle_unload = 0", "idle_unload: input should be greater than 0"),
        ('idle_unload = "0s"', "idle_unload: '0s' is not a duration above zero"),
        ('data_base_url = "x"', "data_base_url is not a setting; did you mean database_url?"),
        ('[models."a/b"]\narg = []', 'models."a/b".arg is not a setting; did you mean args?'),
        ('[models."a/b"]\nargs = "--x"', 'models."a/b".args: input should be a valid tuple'),
        ("[defaults]\nx = 1", "defaults.x is not a setting"),
        ("a = \nb", "is not valid TOML: Invalid value (at line 1, column 5)"),
        ("\xff", "is not valid TOML"),
    ],
)
def test_a_wrong_file_is_named_with_its_key(file: Path, content: str, words: str) -> None:
    file.write_bytes(content.encode("latin-1"))
    with pytest.raises(ConfigError) as caught:
        config.load()
    assert str(file) in caught.value.message
    assert words in caught.value.message
    assert caught.value.exit_code == ExitCode.MISCONFIGURED


def test_a_wrong_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VBATCH_GPU", "first")
    with pytest.raises(ConfigError, match=r"^VBATCH_GPU: input should be a valid integer"):
        config.load()


def test_a_wrong_flag_is_named() -> None:
    with pytest.raises(UsageError, match=r"^--max-inflight: "):
        config.load(max_inflight=0)


def test_the_named_file_must_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VBATCH_CONFIG", str(tmp_path / "none.toml"))
    with pytest.raises(ConfigError, match=r"none\.toml does not exist"):
        config.load()


def test_the_named_file_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "other.toml").write_text('preload = "m"')
    monkeypatch.setenv("VBATCH_CONFIG", str(tmp_path / "other.toml"))
    assert config.load().preload == "m"


def test_misspelt_variables_get_the_nearest_name() -> None:
    environ = {
        "VBATCH_DATABSE_URL": "",
        "VBATCH_ZZZZZZ": "",
        "VBATCH_GPU": "",
        "VBATCH_CONFIG": "",
        "HOME": "",
    }
    assert config.misspelt_variables(environ) == [
        "VBATCH_DATABSE_URL is not a setting of vbatch; did you mean VBATCH_DATABASE_URL?",
        "VBATCH_ZZZZZZ is not a setting of vbatch",
    ]


def test_a_table_has_no_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VBATCH_MODELS", '{"a": {}}')
    assert config.load().models == {}
    assert config.misspelt_variables({"VBATCH_MODELS": ""})


def test_a_password_is_in_no_representation(file: Path) -> None:
    file.write_text('database_url = "postgresql://me:hunter2@h/d"\n')
    settings = config.load()
    assert "hunter2" not in repr(settings) + str(settings)
    assert settings.store_url == "postgresql://me:hunter2@h/d"


def test_a_wrong_secret_is_not_quoted(file: Path) -> None:
    file.write_text('database_url = ["postgresql://me:hunter2@h/d"]\n')
    with pytest.raises(ConfigError) as caught:
        config.load()
    assert "hunter2" not in caught.value.message


def test_without_a_home_a_person_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A container's user without an entry in passwd. Mutant: no ``except RuntimeError``."""
    for name in ("HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_CACHE_HOME", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("os.getuid", lambda: 54321)
    with pytest.raises(ConfigError, match="no home directory"):
        config.load()


def test_any_folder_can_hold_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutant: a path pasted into a URL; the store is then in a folder that nobody named."""
    folder = tmp_path / "a #1 100%20?"
    monkeypatch.setenv("VBATCH_DATA_DIR", str(folder))
    assert backend_of(config.load().store_url).file == folder / "vbatch.db"
