"""NICs and disks that come and go while a guest runs, by the command and as the guest sees them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.vm import realcloud
    from tests.vm.realcloud import RealCloud, until
    from tests.vm.terminal import Terminal
else:
    import realcloud
    from realcloud import RealCloud, until
    from terminal import Terminal

ACME = ("--account", "acme")


@pytest.fixture(scope="module")
def cloud() -> Iterator[RealCloud]:
    """A cloud with a booted VM, a second network and a volume."""
    with realcloud.upped() as cloud:
        cloud.pileus("create", "account", "acme")
        cloud.pileus("create", "network", "back", "--range", "10.2.0.0/24", *ACME)
        cloud.pileus("create", "volume", "more", "--size-gib", "1", *ACME)
        cloud.pileus("create", "vm", "web", *ACME)
        cloud.until_printed("web", "^PILEUS-READY")
        yield cloud


def macs(cloud: RealCloud) -> dict[str, str]:
    """Return the address of each of the VM's ports by its MAC."""
    ports = [port["assigned"] for port in cloud.json("get", "port", *ACME)["items"] if not port["deleting_at"]]
    return {port["mac"]: port["address"] for port in ports}


def test_a_nic_comes_and_any_nic_goes_while_the_guest_runs(cloud: RealCloud) -> None:
    with Terminal(cloud, "web") as guest:

        def seen() -> set[str]:
            return set(guest.shell("cat /sys/class/net/eth*/address").split())

        first = macs(cloud)
        assert seen() == set(first)
        said = cloud.pileus("attach", "vm/web", "--network", "back", "--address", "10.2.0.9", "--wait", *ACME)
        assert said == "network back is attached to vm web of account acme\n"
        both = macs(cloud)
        assert set(both) > set(first)
        until("the guest has the NIC", lambda: seen() == set(both))
        said = cloud.pileus("detach", "vm/web", "--network", "default", "--wait", *ACME)
        assert said == "network default is detached from vm web of account acme\n"
        until("the guest let go of the first", lambda: seen() == set(both) - set(first))
        assert list(macs(cloud).values()) == ["10.2.0.9"]
    vm = cloud.vm("web")
    assert (vm["observed"]["boots"], vm["observed"]["addresses"]) == (1, ["10.2.0.9"])


def test_a_disk_comes_is_used_and_goes_while_the_guest_runs(cloud: RealCloud) -> None:
    with Terminal(cloud, "web") as guest:
        disks = "ls /sys/block | grep ^vd"
        before = guest.shell(disks).split()
        assert "is attached to" in cloud.pileus("attach", "vm/web", "--volume", "more", "--wait", *ACME)
        (new,) = until("the guest has the disk", lambda: (set(guest.shell(disks).split()) - set(before)) or None)
        said = guest.shell(
            f"echo kept | dd of=/dev/{new} conv=fsync 2>/dev/null; dd if=/dev/{new} bs=5 count=1 2>/dev/null"
        )
        assert said.strip() == "kept"
        assert "is detached from" in cloud.pileus("detach", "vm/web", "--volume", "more", "--wait", *ACME)
        until("the guest let go of it", lambda: guest.shell(disks).split() == before)
        cloud.pileus("delete", "volume", "more", "-y", "--wait", *ACME)
    assert cloud.vm("web")["observed"]["boots"] == 1
