"""Who holds GPU memory, in words that its owner understands, with the owner's own polite command."""

from __future__ import annotations

import pytest

from tests.rigs import engines
from tests.rigs.nvml import GIB, TOTAL
from vbatch.gpu import Gpu
from vbatch.gpu import Holder as Listed
from vbatch.gpu_memory import holders
from vbatch.gpu_memory.holders import Kind
from vbatch.recovery.orphans import Suspect, Verdict
from vbatch.store.records import EngineProcess
from vbatch.system import processes
from vbatch.system.processes import Description
from vbatch.text import MIB


def card(*listed: Listed, used: int = 0) -> Gpu:
    return Gpu(
        index=0,
        uuid="GPU-0",
        name="RTX 4080",
        total=TOTAL,
        free=TOTAL - used,
        used=used,
        memory_known=True,
        holders=listed,
    )


def compute(pid: int, used: int | None = GIB) -> Listed:
    return Listed(pid=pid, used=used, kind="compute")


@pytest.mark.parametrize(
    ("cgroup", "place", "command"),
    [
        ("/system.slice/ollama.service", "service ollama", "sudo systemctl stop ollama"),
        (
            "/user.slice/user-1000.slice/user@1000.service/app.slice/jupyter.service",
            "service jupyter",
            "systemctl --user stop jupyter",
        ),
        (
            "/system.slice/docker-0123456789abcdef0123.scope",
            "container 0123456789ab",
            "docker stop 0123456789ab",
        ),
        ("/docker/0123456789abcdef0123", "container 0123456789ab", "docker stop 0123456789ab"),
        (
            "/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-fedcba98765432100000.scope",
            "container fedcba987654",
            "podman stop fedcba987654",
        ),
        ("/user.slice/user-1000.slice/session-2.scope", "user ann", "kill 4711"),
        (None, "user ann", "kill 4711"),
    ],
)
def test_a_holder_is_named_by_what_runs_it(
    monkeypatch: pytest.MonkeyPatch, cgroup: str | None, place: str, command: str
) -> None:
    described = Description(
        pid=4711, name="x", title="x --serve", user="ann", state="sleeping", cgroup=cgroup,
    )  # fmt: skip
    monkeypatch.setattr(processes, "describe", lambda pid: described if pid == 4711 else None)
    monkeypatch.setattr("os.geteuid", lambda: 0)
    (holder,) = holders.holders(card(compute(4711)), [])
    assert holder.kind is Kind.PROCESS
    assert place in holder.who
    assert holder.remedies[0].startswith(command)


def test_titles_of_strangers_are_made_harmless(monkeypatch: pytest.MonkeyPatch) -> None:
    described = Description(
        pid=1, name="x", title="\x1b[31mx\n" * 50, user="ann", state="sleeping", cgroup=None,
    )  # fmt: skip
    monkeypatch.setattr(processes, "describe", lambda _pid: described)
    (holder,) = holders.holders(card(compute(1)), [])
    assert holder.who.isprintable()
    assert len(holder.who) < 120


@pytest.mark.parametrize("title", [engines.TITLE, engines.FOREIGN_TITLE])
def test_a_vllm_engine_without_a_parent_was_left_behind(title: str) -> None:
    """Mutant: knowing only what vLLM's own server calls it; another account's vbatch leaves one, too."""
    with engines.orphan(title=title) as foreign:
        (holder,) = holders.holders(card(compute(foreign.pid)), [])
        assert holder.kind is Kind.FOREIGN_ENGINE
        assert not any("--fix" in command for command in holder.remedies)


@pytest.mark.parametrize(
    ("verdict", "kind"),
    [
        (Verdict.ORPHAN, Kind.ORPHAN),
        (Verdict.WORKER_LIVES, Kind.WORKER),
        (Verdict.BELOW_A_WORKER, Kind.WORKER),
        (Verdict.WORKER_UNKNOWN, Kind.PROCESS),
    ],
)
def test_the_ledger_decides_what_is_vbatchs(verdict: Verdict, kind: Kind) -> None:
    with engines.child() as process:
        entry = EngineProcess(worker="worker_1", identity=process.identity, title="")
        (holder,) = holders.holders(card(compute(process.pid)), [Suspect(process=entry, verdict=verdict)])
        assert holder.kind is kind
        assert ("vbatch doctor --fix" in holder.remedies) is (kind is Kind.ORPHAN)


def test_in_a_container_the_drivers_pids_are_strangers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutant: naming who has the number here; an innocent, with a command to end it."""
    monkeypatch.setattr(processes, "among_all", lambda: False)
    with engines.child() as innocent:
        (holder,) = holders.holders(card(compute(innocent.pid)), [])
    assert holder.kind is Kind.HIDDEN
    assert not any("kill" in command for command in holder.remedies)


def test_without_the_ledger_an_engine_may_be_vbatchs() -> None:
    """Mutant: taking a ledger that cannot be read for an empty one."""
    with engines.orphan() as engine, engines.child() as other:
        first, second = holders.holders(card(compute(engine.pid, 2 * GIB), compute(other.pid)), None)
    assert (first.kind, second.kind) == (Kind.UNPROVEN, Kind.PROCESS)
    assert first.remedies == ("vbatch doctor store --wait 60s   # then: vbatch doctor --fix",)


def test_an_engine_below_a_running_process_was_not_left_behind() -> None:
    """Mutant: ``left_behind = True``."""
    with engines.child("bash", "-c", f"exec -a {engines.TITLE} sleep 600") as engine:
        (holder,) = holders.holders(card(compute(engine.pid)), [])
    assert holder.kind is Kind.PROCESS


@pytest.mark.parametrize(
    ("name", "cgroup"), [("Xorg", None), ("gnome-shell", None), ("x", "/system.slice/gdm.service")]
)
def test_a_desktop_is_never_proposed(monkeypatch: pytest.MonkeyPatch, name: str, cgroup: str | None) -> None:
    """Mutant: ``sudo systemctl stop gdm`` for 0.3 GiB; everything that the person has open goes with it."""
    described = Description(pid=1, name=name, title=name, user="root", state="sleeping", cgroup=cgroup)
    monkeypatch.setattr(processes, "describe", lambda _pid: described)
    (holder,) = holders.holders(card(compute(1)), [])
    assert (holder.kind, holder.remedies) == (Kind.PROCESS, ())


@pytest.mark.parametrize(("me", "command"), [(0, "kill"), (1000, "sudo kill")])
def test_a_user_who_may_not_end_it_gets_sudo(monkeypatch: pytest.MonkeyPatch, me: int, command: str) -> None:
    with engines.child() as process:
        monkeypatch.setattr("os.geteuid", lambda: me)
        monkeypatch.setattr(processes, "owner", lambda _pid: 4242)
        (holder,) = holders.holders(card(compute(process.pid)), [])
    assert holder.remedies[0].startswith(f"{command} {process.pid} ")


def test_one_that_was_killed_and_lives_needs_a_reboot(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutant: ``is_condemned`` not asked."""
    monkeypatch.setattr(processes, "is_condemned", lambda _pid: True)
    with engines.child() as process:
        (holder,) = holders.holders(card(compute(process.pid)), [])
    assert (holder.kind, holder.remedies[0].split("  ")[0]) == (Kind.UNKILLABLE, "sudo reboot")


def test_the_biggest_comes_first() -> None:
    with engines.child() as small, engines.child() as big:
        listed = card(compute(small.pid, GIB), compute(big.pid, 2 * GIB))
        assert [holder.pid for holder in holders.holders(listed, [])] == [big.pid, small.pid]


@pytest.mark.parametrize(
    ("gpu", "unlisted"),
    [
        (card(compute(1, 2 * GIB), used=14 * GIB), 12 * GIB),
        (card(compute(1, 2 * GIB), used=2 * GIB + 200 * MIB), 0),  # the driver's own, and contexts
        (
            card(compute(1, None), used=14 * GIB),
            0,
        ),  # the driver does not report how much: nothing can be known
        (card(), 0),
    ],
)
def test_memory_that_no_listed_process_holds(gpu: Gpu, unlisted: int) -> None:
    assert holders.unlisted(gpu) == unlisted
