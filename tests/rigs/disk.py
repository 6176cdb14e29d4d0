"""Disks that fail: a loop-mounted ext4 whose power is cut under the writer, and a file system of a few MB.

Needs root and loop devices; the fixtures that use it skip with the reason where there are none.
"""

from __future__ import annotations

import fcntl
import os
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.rigs.waiting import until

# FS_IOC_SHUTDOWN with NOLOGFLUSH (what xfstests uses): the file system forgets what was not synced.
_FS_IOC_SHUTDOWN = 0x8004587D
_NOLOGFLUSH = 2


class Unavailable(Exception):
    """This machine cannot mount such a disk; the words say why."""


class Disk:
    """One ext4 file system on a loop device."""

    def __init__(self, folder: Path, *, megabytes: int) -> None:
        self.mount_point = folder / "disk"
        self.mount_point.mkdir()
        image = folder / "disk.img"
        with image.open("wb") as file:
            file.truncate(megabytes << 20)
        self._device = _run("losetup", "-f", "--show", str(image))
        try:
            _run("mkfs.ext4", "-q", self._device)
            self._mount()
        except BaseException:
            _run("losetup", "-d", self._device)
            raise

    def stop(self) -> None:
        """Lose everything that was not synced: every write fails from here on."""
        handle = os.open(self.mount_point, os.O_RDONLY)
        try:
            fcntl.ioctl(handle, _FS_IOC_SHUTDOWN, struct.pack("I", _NOLOGFLUSH))
        finally:
            os.close(handle)

    def fail(self) -> None:
        """Have the kernel find an error on it, which makes the file system read-only until it is mounted again."""
        _run("mount", "-o", "remount,errors=remount-ro", str(self.mount_point))
        os.sync()
        Path("/sys/fs/ext4", Path(self._device).name, "trigger_fs_error").write_text("1")

    def start(self) -> None:
        """Come back after the journal's recovery. Nobody may have a file open on it any more."""
        _run("umount", str(self.mount_point))
        # Who makes a mount namespace meanwhile (a guest of another test) has a copy of this mount. As long as that is
        # there, a new mount would be of the same file system, which is shut down.
        until(lambda: not Path("/sys/fs/ext4", Path(self._device).name).exists())
        self._mount()

    def cut_power(self) -> None:
        """Stop and start: processes that had files open on it must be dead."""
        self.stop()
        self.start()

    def close(self) -> None:
        """Unmount it, whoever still uses it, and free its loop device: a test may have been interrupted."""
        with suppress(subprocess.CalledProcessError):  # not mounted
            _run("umount", "-l", str(self.mount_point))
        _run("losetup", "-d", self._device)

    def _mount(self) -> None:
        _run("mount", "-t", "ext4", self._device, str(self.mount_point))


@contextmanager
def ext4(folder: Path, *, megabytes: int = 400) -> Iterator[Disk]:
    """A disk whose power can be cut. Raises Unavailable without root or loop devices."""
    if os.geteuid() != 0:
        raise Unavailable("mounting a loop device needs root")
    try:
        disk = Disk(folder, megabytes=megabytes)
    except (subprocess.CalledProcessError, FileNotFoundError) as error:
        raise Unavailable(f"no loop-mounted ext4 here: {error}") from error
    try:
        yield disk
    finally:
        disk.close()


@contextmanager
def small_disk(folder: Path, *, megabytes: int, inodes: int = 0) -> Iterator[Path]:
    """A tmpfs of a few MB and inodes (0: any number): a disk that is soon full. Raises Unavailable without root."""
    if os.geteuid() != 0:
        raise Unavailable("mounting a tmpfs needs root")
    mount_point = folder / "small"
    mount_point.mkdir()
    try:
        _run("mount", "-t", "tmpfs", "-o", f"size={megabytes}m,nr_inodes={inodes}", "tmpfs", str(mount_point))
    except (subprocess.CalledProcessError, FileNotFoundError) as error:
        raise Unavailable(f"no tmpfs here: {error}") from error
    try:
        yield mount_point
    finally:
        _run("umount", "-l", str(mount_point))


def _run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
