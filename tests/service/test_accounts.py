"""Whose account, and which home: what the next install decides must not depend on what this one did."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

import pytest

from vbatch.service import accounts


def entry(home: Path) -> pwd.struct_passwd:
    return pwd.struct_passwd(("vbatch", "x", os.geteuid(), os.getegid(), "", str(home), "/bin/sh"))


def test_a_home_that_the_service_made_is_none_of_the_accounts_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mutant: ask only who owns it. The second install then gives the service another home than the first."""
    state = tmp_path / "vbatch"
    monkeypatch.setattr(accounts, "STATE_HOME", state)
    monkeypatch.setattr(pwd, "getpwnam", lambda _name: entry(state))
    before = accounts.account("vbatch")
    state.mkdir()
    assert accounts.account("vbatch") == before
    assert not before.has_home


def test_a_folder_of_somebody_else_is_no_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as /usr/sbin, the home of daemon. Mutant: plan the store below it."""
    monkeypatch.setattr(pwd, "getpwnam", lambda _name: entry(tmp_path / "missing"))
    assert accounts.account("daemon").service_home == "/var/lib/vbatch"


def test_a_persons_home_is_the_services_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pwd, "getpwnam", lambda _name: entry(tmp_path))
    found = accounts.account("alice")
    assert found.has_home
    assert found.service_home == str(tmp_path)
