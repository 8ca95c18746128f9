"""Evidence of a real VM: its disk as it was while it ran, read later in another VM when the first one is long gone."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.vm.realcloud import RealCloud
    from tests.vm.terminal import Terminal
else:
    from realcloud import RealCloud
    from terminal import Terminal


@pytest.mark.long
def test_what_a_vm_had_on_its_disks_is_read_in_another_after_it_is_gone(cloud: RealCloud) -> None:
    cloud.pileus("create", "volume", "seen", "--account", "acme", "--size-gib", "1")
    cloud.pileus("create", "vm", "suspect", "--account", "acme", "--volume", "seen", "--wait", "--timeout", "120",
                 timeout_s=130)  # fmt: skip
    cloud.until_printed("suspect", r"PILEUS-READY (\S+) [0-9.]+$")
    with Terminal(cloud, "suspect") as suspect:
        disk = re.search(r"^/dev/vd[b-z]$", suspect.shell("ls -1 /dev/vd[b-z]"), re.MULTILINE)
        assert disk is not None
        suspect.shell(f"echo GUILTY | dd of={disk.group()} bs=512 seek=4096 conv=notrunc,fsync 2>/dev/null")
        cloud.pileus("create", "snapshot", "proof", "--account", "acme", "--volume", "seen", "--reason", "calls home",
                     "--wait", "--timeout", "60", timeout_s=70)  # fmt: skip
        suspect.shell(f"echo nothing | dd of={disk.group()} bs=512 seek=4096 conv=notrunc,fsync 2>/dev/null")
    assert "calls home" in cloud.pileus("get", "snapshot", "proof", "--account", "acme", "-o", "wide")
    cloud.pileus("delete", "vm", "suspect", "--account", "acme", "-y", "--wait")
    cloud.pileus("delete", "volume", "seen", "--account", "acme", "-y", "--wait")
    cloud.pileus("create", "volume", "exhibit", "--account", "acme", "--size-gib", "1", "--snapshot", "proof", "--wait")
    cloud.pileus("create", "vm", "expert", "--account", "acme", "--volume", "exhibit", "--wait", "--timeout", "120",
                 timeout_s=130)  # fmt: skip
    cloud.until_printed("expert", r"PILEUS-READY (\S+) [0-9.]+$")
    with Terminal(cloud, "expert") as expert:
        said = expert.shell(f"dd if={disk.group()} bs=512 skip=4096 count=1 2>/dev/null | tr -d '\\0'")
    assert said.strip() == "GUILTY"
    cloud.pileus("delete", "vm", "expert", "--account", "acme", "-y", "--wait")
    for kind, name in (("volume", "exhibit"), ("snapshot", "proof")):
        cloud.pileus("delete", kind, name, "--account", "acme", "-y", "--wait")
