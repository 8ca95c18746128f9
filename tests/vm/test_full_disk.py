"""The disk under a cloud is full: what still works, what is said, and that nothing is lost or half-made."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pileus.compute.vm.plan import DISK_RETRY_S

if TYPE_CHECKING:
    from tests.vm import realcloud
    from tests.vm.realcloud import RealCloud, until
    from tests.vm.terminal import Terminal
else:
    import realcloud
    from realcloud import RealCloud, until
    from terminal import Terminal

ROOM_MIB = 3072
"""The pool counts whole GiB; what is not used of a tmpfs costs nothing."""

MIB = 2**20


class SmallDisk:
    """A file system in memory whose size can be changed while it is used."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @contextmanager
    def mounted(self) -> Iterator[SmallDisk]:
        """Have it there for the block."""
        options = f"size={ROOM_MIB}m,mode={self.folder.stat().st_mode & 0o777:o}"
        command = ["mount", "-t", "tmpfs", "-o", options, "pileus-test", str(self.folder)]
        if subprocess.run(command, check=False, capture_output=True).returncode != 0:
            pytest.skip("a full disk needs a tmpfs, which cannot be mounted here")
        try:
            yield self
        finally:
            subprocess.run(["umount", str(self.folder)], check=True)

    @contextmanager
    def full(self, left_bytes: int = 0) -> Iterator[None]:
        """Leave only so much room for the block."""
        facts = os.statvfs(self.folder)
        used = (facts.f_blocks - facts.f_bfree) * facts.f_frsize
        self._resize(str(used + left_bytes))
        try:
            yield
        finally:
            self._resize(f"{ROOM_MIB}m")

    def _resize(self, size: str) -> None:
        subprocess.run(["mount", "-o", f"remount,size={size}", str(self.folder)], check=True)


@pytest.fixture(scope="module")
def disk() -> Iterator[SmallDisk]:
    """A disk of its own for the cloud."""
    realcloud.need_host()
    with realcloud.temporary("pileus-vm-small-") as folder, SmallDisk(folder).mounted() as small:
        yield small


@pytest.fixture(scope="module")
def cloud(disk: SmallDisk) -> Iterator[RealCloud]:
    """A cloud on the small disk."""
    with realcloud.upped_in(disk.folder) as running:
        running.pileus("create", "account", "acme")
        yield running


def test_a_server_on_a_full_disk_answers_and_refuses_to_write(cloud: RealCloud, disk: SmallDisk) -> None:
    before = cloud.json("get", "vm", "-A")["items"], len(cloud.json("get", "account")["items"])
    with disk.full():
        for command in (("create", "account", "umbrella"), ("create", "vm", "half", "--account", "acme")):
            done = cloud.run(*command)
            assert (done.returncode, done.stdout) == (6, "")
            assert done.stderr.startswith("error: the database did not take the write: ")
            assert "the server cannot do it now; try again" in done.stderr
        assert (cloud.json("get", "vm", "-A")["items"], len(cloud.json("get", "account")["items"])) == before
        assert "host local: ready" in cloud.pileus("status")
    cloud.pileus("create", "vm", "half", "--account", "acme", "--wait", "--timeout", "60")
    cloud.pileus("delete", "vm", "half", "--account", "acme", "-y", "--wait")


def test_an_upload_without_room_is_refused_before_it_begins(cloud: RealCloud, disk: SmallDisk) -> None:
    image = cloud.folder / "empty.raw"
    with image.open("wb") as file:
        file.truncate(64 * MIB)
    with disk.full(left_bytes=32 * MIB):
        said = cloud.run("create", "image", "big", "--account", "acme", "--format", "raw", "--file", str(image))
    assert said.returncode == 1, said  # a server that failed
    assert "the server's disk has room for " in said.stderr
    assert "its operator must free some" in said.stderr
    cloud.pileus("delete", "image", "big", "--account", "acme", "-y", "--wait")
    image.unlink()


@pytest.fixture
def pool(cloud: RealCloud) -> Iterator[SmallDisk]:
    """A disk of its own for the volumes, so that the database and the log have room."""
    assert not cloud.volume_files()
    with SmallDisk(cloud.paths.pool / "volumes").mounted() as small:
        yield small
        cloud.pileus("delete", "vm", "writer", "--account", "acme", "-y", "--wait")


def test_a_guest_waits_for_room_on_its_hosts_disk_and_loses_nothing(cloud: RealCloud, pool: SmallDisk) -> None:
    cloud.pileus("create", "vm", "writer", "--account", "acme", "--wait", "--timeout", "60")
    with Terminal(cloud, "writer") as terminal:
        terminal.shell("echo ready")
        with pool.full(left_bytes=8 * MIB):
            terminal.type(b"dd if=/dev/zero bs=1M count=32 | tr '\\0' 'x' > /root/big; sync; echo wri''tten\n")
            waiting, _ = cloud.until_vm("writer", lambda vm: vm["observed"]["problem"] is not None)
            assert waiting["observed"]["problem"]["reason"] == "DiskError"
            ready = next(one for one in waiting["conditions"] if one["type"] == "Ready")
            assert (ready["status"], ready["reason"]) == ("false", "DiskError")
            assert "a write to its disk failed on the host, which may be full" in ready["message"]
            log = cloud.data / "pileus.log"
            tries = _resumes(log)
            until("it was tried again", lambda: _resumes(log) >= tries + 1, 4 * DISK_RETRY_S)
            assert _resumes(log) <= tries + 2  # and not as fast as the host can
        began = time.monotonic()
        terminal.until(r"^written$")
        print(f"measured: the guest goes on {time.monotonic() - began:.2f} s after there is room")
        cloud.until_vm("writer", lambda vm: vm["observed"]["problem"] is None)
        assert terminal.shell("tr -d x < /root/big | wc -c; wc -c < /root/big").split() == ["0", str(32 * MIB)]
    assert cloud.vm("writer")["observed"]["boots"] == 1


def _resumes(log: Path) -> int:
    return log.read_text().count('"step":"resume"')
