"""Which setting wins, and what a wrong one says."""

from __future__ import annotations

import grp
import os
import pwd
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
        ('engine = "vlm"', "engine: it must be 'vllm', 'echo' or 'endpoint'"),
        ("gpu = -1", "gpu: it must be the number of a GPU (0), several for one engine (0,1), or all, not -1"),
        ('gpu = "0,0"', "gpu: 0,0 names a GPU twice"),
        ('lease = "soon"', "lease: 'soon' is not a duration"),
        ("request_timeout = -5", "request_timeout: it must be more than 0"),
        ("idle_unload = 0", "idle_unload: it must be more than 0"),
        ('idle_unload = "0s"', "idle_unload: '0s' is not a duration above zero"),
        ('data_base_url = "x"', "data_base_url is not a setting; did you mean database_url?"),
        ('[models."a/b"]\narg = []', 'models."a/b".arg is not a setting; did you mean args?'),
        ('[models."a/b"]\nargs = "--x"', 'models."a/b".args: it must be a list of texts'),
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
    with pytest.raises(ConfigError, match=r"^VBATCH_GPU: it must be the number of a GPU"):
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


def test_without_a_home_a_person_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
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


COMMAND = '[notify.done]\ncommand = ["true"]\n'


@pytest.mark.parametrize("mode", [0o646, 0o666, 0o602])
def test_commands_of_a_file_that_everyone_can_write_are_not_run(file: Path, mode: int) -> None:
    """Without commands such a file is read as before. Mutant: ``_read_file`` without require_own."""
    file.write_text('engine = "echo"\n')
    file.chmod(mode)
    assert config.load().engine == "echo"
    file.write_text(COMMAND)
    with pytest.raises(ConfigError, match="another user can change them: everyone can write it") as refused:
        config.load()
    assert f"chmod go-w {file}" in str(refused.value.hint)
    file.chmod(0o644)
    assert config.load().notify["done"].command == ("true",)


@pytest.mark.root
def test_commands_of_a_file_of_another_user_are_not_run(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with sudo that keeps HOME, or a link that leads to another's file. Mutant: ``_stranger`` without st_uid."""
    if os.geteuid() != 0:
        pytest.skip("giving a file to another user needs root")
    other = tmp_path / "other.toml"
    other.write_text(COMMAND)
    os.chown(other, 1, 1)
    named = tmp_path / "link.toml"
    named.symlink_to(other)
    monkeypatch.setenv("VBATCH_CONFIG", str(named))
    with pytest.raises(ConfigError, match="it belongs to daemon"):
        config.load()
    os.chown(other, 0, 12)  # root's own, for a group of several
    other.chmod(0o664)
    with pytest.raises(ConfigError, match="its group can write it"):
        config.load()
    os.chown(other, 0, 0)
    assert config.load().notify["done"].command == ("true",)


@pytest.mark.root
@pytest.mark.parametrize(
    ("group", "own_group", "members", "allowed"),
    [
        ("ann", 1000, [], True),
        ("ann", 1000, ["ann"], True),
        ("ann", 1000, ["ann", "bob"], False),
        ("staff", 1000, [], False),
        ("ann", 50, [], False),
    ],
)
def test_the_group_of_one_user_may_write(
    file: Path,
    monkeypatch: pytest.MonkeyPatch,
    group: str,
    own_group: int,
    members: list[str],
    *,
    allowed: bool,
) -> None:
    """As distributions make one for each user, with a umask of 002.

    Mutants: ``_is_of_one_user`` without the user's own group, without the name, without the members.
    """
    status = file.parent.stat()
    person = pwd.struct_passwd(("ann", "x", status.st_uid, own_group, "", "/", ""))
    monkeypatch.setattr(pwd, "getpwuid", lambda _uid: person)
    monkeypatch.setattr(grp, "getgrgid", lambda gid: grp.struct_group((group, "x", gid, members)))
    file.write_text(COMMAND)
    if os.geteuid() != 0:
        pytest.skip("giving a file to a group needs root")
    os.chown(file, -1, 1000)
    file.chmod(0o664)
    if allowed:
        assert config.load().notify
        return
    with pytest.raises(ConfigError, match="its group can write it"):
        config.load()
