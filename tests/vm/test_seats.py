"""Two real VMs and one seat: the second is held and boots by itself once the first is gone; an end stops it in order."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest

from pileus.kernel.clock import iso

if TYPE_CHECKING:
    from tests.vm.realcloud import RealCloud, until
else:
    from realcloud import RealCloud, until

pytestmark = pytest.mark.long
BOOTED = r"PILEUS-READY (\S+) [0-9.]+$"
NEED = '{"product": "db"}'


def reason(vm: dict[str, Any]) -> str:
    """Return why a VM is as it is."""
    return str(vm["conditions"][0]["reason"])


def make(cloud: RealCloud, name: str) -> None:
    """Ask for a VM that needs a seat."""
    cloud.pileus("create", "vm", name, "--account", "acme", "--label", "product=db")


def license(cloud: RealCloud, name: str, *options: str) -> None:
    """Register one seat."""
    about = ("--product", "Database", "--limit", "1", "--needed-by", NEED)
    cloud.pileus("create", "entitlement", name, "--account", "acme", *about, *options)


def remove(cloud: RealCloud, kind: str, name: str) -> None:
    """Delete something, and wait until it is gone."""
    cloud.pileus("delete", kind, name, "--account", "acme", "--wait")


def test_the_second_vm_boots_when_the_first_ones_seat_comes_free(cloud: RealCloud) -> None:
    license(cloud, "one")
    make(cloud, "seat-first")
    cloud.until_printed("seat-first", BOOTED)
    make(cloud, "seat-second")
    held, _ = cloud.until_vm("seat-second", lambda vm: reason(vm) == "NoSeat")
    assert "no seat of entitlement one (1 of 1 instances in use)" in held["conditions"][0]["message"]
    cloud.pileus("reboot", "vm", "seat-second", "--account", "acme")
    cloud.pileus("stop", "vm", "seat-second", "--account", "acme", "--wait")
    cloud.pileus("start", "vm", "seat-second", "--account", "acme")
    cloud.until_vm("seat-second", lambda vm: reason(vm) == "NoSeat")
    assert held["id"] not in cloud.qemus()
    began = time.monotonic()
    remove(cloud, "vm", "seat-first")
    cloud.until_printed("seat-second", BOOTED)
    print(f"measured: deletion of the first to the second's own word {time.monotonic() - began:.2f} s")
    assert list(cloud.qemus()) == [held["id"]]
    remove(cloud, "vm", "seat-second")
    remove(cloud, "entitlement", "one")


def test_a_vm_is_shut_down_at_the_end_and_boots_with_the_next_licence(cloud: RealCloud) -> None:
    ends = time.time() + 40
    license(cloud, "term", "--ends", iso(ends), "--at-end", "stop")
    make(cloud, "seat-third")
    vm = cloud.vm("seat-third")
    cloud.until_printed("seat-third", BOOTED)
    assert time.time() < ends, "the machine is too slow for this test"
    stopped, _ = cloud.until_vm("seat-third", lambda vm: vm["observed"]["power"] == "stopped", limit_s=120)
    assert time.time() >= ends
    assert stopped["observed"]["exit"]["reason"] == "guest-shutdown"  # it was asked, not ended
    assert stopped["desired"]["power"] == "running"
    assert reason(stopped) == "NoSeat"
    until("its process is gone", lambda: vm["id"] not in cloud.qemus())
    license(cloud, "next")
    cloud.until_printed("seat-third", BOOTED, count=2)
    remove(cloud, "vm", "seat-third")
    for name in ("term", "next"):
        remove(cloud, "entitlement", name)
