"""Taking a cloud down asks its guests first, keeps what they were given from others, and starts them again."""

from __future__ import annotations

import stat
from pathlib import Path

from tests.vm.realcloud import RealCloud, upped

SECRET = "word-of-the-tenant"


def test_down_asks_the_guests_and_up_starts_them_again(tmp_path: Path) -> None:
    with upped() as cloud:
        cloud.pileus("create", "account", "acme")
        script = cloud.file("start.sh", f"#!/bin/sh\necho {SECRET}\n")
        cloud.pileus("create", "vm", "web", "--account", "acme", "--user-data", script, "--wait")
        cloud.until_printed("web", "PILEUS-USER-DATA exit 0")
        cloud.pileus("down", "--data", str(cloud.data))
        console = next((cloud.paths.state / "machines").glob("*/console.log")).read_text(errors="replace")
        assert "reboot: Power down" in console
        assert cloud.qemus() == {}
        assert readable_by_others(cloud) == []
        cloud.pileus("up", "--data", str(cloud.data), "--port", "0", "--detach")
        cloud.until_vm("web", lambda vm: vm["observed"]["power"] == "running")
        cloud.until_printed("web", "PILEUS-READY", count=2)


def readable_by_others(cloud: RealCloud) -> list[Path]:
    """Return the files that another user of the machine could read: none, because the folder above them is closed."""
    if not stat.S_IMODE(cloud.data.stat().st_mode) & 0o077:
        return []
    return [path for path in cloud.data.rglob("*") if path.is_file() and path.stat().st_mode & stat.S_IROTH]
