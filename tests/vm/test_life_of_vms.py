"""The life of real VMs, each step seen from outside (processes, the API) and from inside (the guest's own words)."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from pileus.agent.run import LOG_LIMIT_BYTES, ROTATE_EVERY_S

if TYPE_CHECKING:
    from tests.vm.realcloud import RealCloud, is_qemu, until
    from tests.vm.terminal import Terminal
else:
    from realcloud import RealCloud, is_qemu, until
    from terminal import Terminal

BOOTED = r"PILEUS-READY (\S+) [0-9.]+$"
"""After a reset it follows the prompt of the shell that was there."""
SHUTDOWN_LIMIT_S = 15.0

KEEP = """#!/bin/sh
echo $(cat /proc/sys/kernel/random/boot_id) > /root/kept
echo KEPT $(cat /root/kept)
"""


def power_is(wanted: str) -> Callable[[dict[str, Any]], bool]:
    """Return the condition that a VM is so, and as wished."""
    return lambda vm: vm["observed"] is not None and vm["observed"]["power"] == wanted


@pytest.fixture(scope="module")
def vm(cloud: RealCloud) -> dict[str, Any]:
    """The VM life, whose start script has written a file."""
    began = time.monotonic()
    script = cloud.file("keep.sh", KEEP)
    cloud.pileus("create", "vm", "life", "--account", "acme", "--address", "10.1.1.40", "--user-data", script, "--wait")
    ready_s = time.monotonic() - began
    cloud.until_printed("life", BOOTED)
    print(f"measured: create to Ready {ready_s:.2f} s, to the guest's own word {time.monotonic() - began:.2f} s")
    cloud.until_printed("life", r"^KEPT (\S+)$")
    return cloud.vm("life")


def test_stop_lets_the_guest_shut_down_and_start_boots_it_with_its_files(cloud: RealCloud, vm: dict[str, Any]) -> None:
    kept = cloud.until_printed("life", r"^KEPT (\S+)$")[1]
    pid = cloud.qemus()[vm["id"]]
    began = time.monotonic()
    cloud.pileus("stop", "vm", "life", "--account", "acme", "--wait", "--timeout", "60")
    stopped_s = time.monotonic() - began
    stopped = cloud.vm("life")
    assert stopped["observed"]["exit"]["reason"] == "guest-shutdown"  # and not ended by force
    assert stopped_s < SHUTDOWN_LIMIT_S < stopped["desired"]["shutdown_timeout_s"]
    assert not is_qemu(pid)
    assert vm["id"] not in cloud.qemus()

    began = time.monotonic()
    cloud.pileus("start", "vm", "life", "--account", "acme", "--wait", "--timeout", "60")
    cloud.until_printed("life", BOOTED, count=2)
    print(f"measured: stop {stopped_s:.2f} s, start to the guest's own word {time.monotonic() - began:.2f} s")
    assert cloud.qemus()[vm["id"]] != pid
    with Terminal(cloud, "life") as terminal:
        assert terminal.shell("cat /root/kept").strip() == kept
        assert terminal.shell("cat /proc/sys/kernel/random/boot_id").strip() != kept
    assert len(re.findall(r"^KEPT ", cloud.console("life"), re.MULTILINE)) == 1  # the script runs once


def test_a_start_right_after_a_stop_wins(cloud: RealCloud, vm: dict[str, Any]) -> None:
    boots = cloud.vm("life")["observed"]["boots"]
    cloud.pileus("stop", "vm", "life", "--account", "acme")
    cloud.pileus("start", "vm", "life", "--account", "acme")
    cloud.until_vm("life", lambda now: power_is("running")(now) and now["observed"]["boots"] == boots + 1)
    cloud.until_printed("life", BOOTED, count=boots + 1)


def test_reboot_boots_the_guest_once_more_in_the_same_process(cloud: RealCloud, vm: dict[str, Any]) -> None:
    before = cloud.vm("life")["observed"]
    pid = cloud.qemus()[vm["id"]]
    cloud.pileus("reboot", "vm", "life", "--account", "acme", "--wait", "--timeout", "60")
    cloud.until_printed("life", BOOTED, count=before["boots"] + 1)
    after = cloud.vm("life")["observed"]
    assert (after["boots"], after["boot_serial"]) == (before["boots"] + 1, before["boot_serial"] + 1)
    assert cloud.qemus()[vm["id"]] == pid


def test_a_paused_guest_stands_still_and_goes_on(cloud: RealCloud, vm: dict[str, Any]) -> None:
    pid = cloud.qemus()[vm["id"]]
    with Terminal(cloud, "life") as terminal:
        terminal.shell("(while true; do echo tick; sleep 1; done) > /run/ticks & echo $! > /run/ticker")
        cloud.pileus("pause", "vm", "life", "--account", "acme", "--wait", "--timeout", "30")
        terminal.said = ""
        terminal.type(b"echo alive-$((40+2))\n")
        with pytest.raises(AssertionError, match="never showed"):
            terminal.until("alive-42", limit_s=2.0)
        cloud.pileus("resume", "vm", "life", "--account", "acme", "--wait", "--timeout", "30")
        terminal.until("alive-42")
        terminal.shell("kill $(cat /run/ticker)")
    assert cloud.qemus()[vm["id"]] == pid


def test_a_guest_that_powers_itself_off_stays_off_until_it_is_started(cloud: RealCloud, vm: dict[str, Any]) -> None:
    with Terminal(cloud, "life") as terminal:
        terminal.shell("echo going")
        terminal.type(b"poweroff\n")
        off, _ = cloud.until_vm("life", power_is("stopped"))
    ready = next(one for one in off["conditions"] if one["type"] == "Ready")
    assert (ready["status"], ready["reason"]) == ("false", "GuestShutdown")
    assert ready["message"] == "the guest powered itself off; `pileus start vm` starts it again"
    assert off["desired"]["power"] == "running"
    cloud.pileus("start", "vm", "life", "--account", "acme", "--wait", "--timeout", "60")
    again = cloud.vm("life")["observed"]
    assert (again["power"], again["boots"]) == ("running", off["observed"]["boots"] + 1)
    cloud.until_printed("life", BOOTED, count=again["boots"])


def test_a_volume_comes_and_goes_while_the_guest_runs_and_keeps_what_is_on_it(
    cloud: RealCloud, vm: dict[str, Any]
) -> None:
    cloud.pileus("create", "volume", "extra", "--account", "acme", "--size-gib", "1")
    with Terminal(cloud, "life") as terminal:
        former = set(terminal.shell("ls /sys/block").split())
        cloud.pileus("patch", "vm", "life", "--account", "acme", "--volume", "extra")
        cloud.until_vm("life", lambda now: len(now["observed"]["volumes"]) == 2)
        terminal.shell("until [ $(ls /sys/block | grep -c vd) -gt 2 ]; do usleep 100000; done")
        (disk,) = set(terminal.shell("ls /sys/block").split()) - former
        assert terminal.shell(f"cat /sys/block/{disk}/size").strip() == str(2**30 // 512)
        terminal.shell(f"echo written by the guest > /tmp/text; dd if=/tmp/text of=/dev/{disk} conv=fsync 2> /dev/null")
        volume = cloud.vm("life")["observed"]["volumes"][1]

        cloud.pileus("patch", "vm", "life", "--account", "acme", "--reset", "volumes")
        cloud.until_vm("life", lambda now: len(now["observed"]["volumes"]) == 1)
        assert set(terminal.shell("ls /sys/block").split()) == former
        cloud.pileus("wait", "volume", "extra", "--account", "acme", "--timeout", "30")

        cloud.pileus("patch", "vm", "life", "--account", "acme", "--volume", "extra")
        cloud.until_vm("life", lambda now: now["observed"]["volumes"][1:] == [volume])
        terminal.shell("until [ $(ls /sys/block | grep -c vd) -gt 2 ]; do usleep 100000; done")
        (disk,) = set(terminal.shell("ls /sys/block").split()) - former
        assert terminal.shell(f"head -n 1 /dev/{disk}").strip() == "written by the guest"
    refusal = cloud.refused("delete", "volume", "extra", "--account", "acme", "-y", code=3)
    assert refusal == "error: volume extra is used by vm life; delete or change that first\n"
    cloud.pileus("patch", "vm", "life", "--account", "acme", "--reset", "volumes", "--wait")
    cloud.until_vm("life", lambda now: len(now["observed"]["volumes"]) == 1)
    cloud.pileus("delete", "volume", "extra", "--account", "acme", "-y", "--wait")
    assert volume not in cloud.volume_files()


def test_a_second_nic_comes_and_goes_while_the_guest_runs(cloud: RealCloud, vm: dict[str, Any]) -> None:
    cloud.pileus("create", "network", "back", "--account", "acme", "--range", "10.2.2.0/24")
    first = ("--network", "default", "--address", "10.1.1.40")
    taps = cloud.taps()
    with Terminal(cloud, "life") as terminal:
        cloud.pileus("patch", "vm", "life", "--account", "acme", *first, "--network", "back", "--address", "10.2.2.5")
        cloud.until_vm("life", lambda now: len(now["observed"]["ports"]) == 2)
        terminal.shell("until [ -e /sys/class/net/eth1 ]; do usleep 100000; done")
        assert len(cloud.taps()) == len(taps) + 1
        mac = terminal.shell("cat /sys/class/net/eth1/address").strip()
        ports = cloud.json("get", "port", "--account", "acme")["items"]
        assert [port["assigned"]["address"] for port in ports if port["assigned"]["mac"] == mac] == ["10.2.2.5"]

        cloud.pileus("patch", "vm", "life", "--account", "acme", *first)
        cloud.until_vm("life", lambda now: len(now["observed"]["ports"]) == 1)
        terminal.shell("while [ -e /sys/class/net/eth1 ]; do usleep 100000; done")
    until("the tap is gone", lambda: cloud.taps() == taps)
    cloud.pileus("delete", "network", "back", "--account", "acme", "-y", "--wait")


def test_a_stopped_vm_gets_more_memory_and_a_running_one_says_how(cloud: RealCloud, vm: dict[str, Any]) -> None:
    with Terminal(cloud, "life") as terminal:
        before = int(terminal.shell("awk '/MemTotal/ { print $2 }' /proc/meminfo"))
    size = ("--vcpus", "1", "--memory-mib", "256")
    refusal = cloud.refused("patch", "vm", "life", "--account", "acme", *size, code=3)
    assert "must be stopped to change its size: `pileus stop vm life --wait`, then repeat" in refusal
    cloud.pileus("stop", "vm", "life", "--account", "acme", "--wait", "--timeout", "60")
    cloud.pileus("patch", "vm", "life", "--account", "acme", *size)
    cloud.pileus("start", "vm", "life", "--account", "acme", "--wait", "--timeout", "60")
    with Terminal(cloud, "life") as terminal:
        after = int(terminal.shell("awk '/MemTotal/ { print $2 }' /proc/meminfo"))
    assert after - before == pytest.approx(128 * 1024, abs=4 * 1024)
    assert cloud.vm("life")["observed"]["memory_mib"] == 256


@pytest.mark.long  # what limits are, test_limits shows
@pytest.mark.parametrize("iops", [100])
def test_a_guest_gets_the_disk_operations_of_its_offering_and_no_more(cloud: RealCloud, iops: int) -> None:
    size = ("--vcpus", "1", "--memory-mib", "128", "--disk-gib", "1", "--iops-limit", str(iops))
    cloud.pileus("create", "offering", f"slow-{iops}", *size)
    cloud.pileus("create", "vm", "slow", "--account", "acme", "--offering", f"slow-{iops}", "--wait")
    cloud.until_printed("slow", BOOTED)
    # Single sectors read past the cache; the first 300 use up what QEMU lets through in a burst.
    read = "dd if=/dev/vda of=/dev/null bs=4k iflag=direct"
    with Terminal(cloud, "slow") as terminal:
        terminal.shell(f"{read} count=300 2> /dev/null")
        said = terminal.shell(f"a=$(cut -d' ' -f1 /proc/uptime); {read} count={6 * iops} 2> /dev/null; "
                              "b=$(cut -d' ' -f1 /proc/uptime); echo $a $b")  # fmt: skip
    start, end = (float(word) for word in said.split())
    measured = 6 * iops / (end - start)
    print(f"measured: {measured:.1f} reads per second with a limit of {iops}")
    assert measured == pytest.approx(iops, rel=0.15)
    cloud.pileus("delete", "vm", "slow", "--account", "acme", "-y", "--wait")
    cloud.pileus("delete", "offering", f"slow-{iops}", "-y", "--wait")


def test_a_person_types_on_the_console_and_leaves_it(cloud: RealCloud, vm: dict[str, Any]) -> None:
    with Terminal(cloud, "life") as terminal:
        assert terminal.shell("echo $((6 * 7)) from $(hostname)").strip() == "42 from life"
        assert terminal.leave() == 0
    assert "42 from life" in cloud.console("life")
    with Terminal(cloud, "life") as terminal:
        assert terminal.shell("echo again").strip() == "again"


@pytest.mark.long
def test_the_console_log_of_a_guest_that_prints_on_and_on_stays_within_bounds(
    cloud: RealCloud, vm: dict[str, Any]
) -> None:
    log = cloud.paths.console_log(vm["id"])
    with Terminal(cloud, "life") as terminal:
        terminal.shell("echo before the flood")
    # As QEMU appends to it; printing this much through an emulated serial line takes minutes.
    with log.open("ab") as file:
        file.write(b"flood\n" * (3 * LOG_LIMIT_BYTES // 6))
    began = time.monotonic()
    until("the log was rotated", lambda: log.stat().st_size < LOG_LIMIT_BYTES, 2 * ROTATE_EVERY_S)
    print(f"measured: log rotated after {time.monotonic() - began:.1f} s")
    older = log.with_name(log.name + ".1")
    assert older.stat().st_size == LOG_LIMIT_BYTES
    with Terminal(cloud, "life") as terminal:
        assert terminal.shell("echo after the flood").strip() == "after the flood"
    tail = cloud.pileus("logs", "vm", "life", "--account", "acme", "--tail", "50")
    assert "after the flood" in tail
    assert "flood\nflood\n" in cloud.console("life")
    os.truncate(older, 0)  # what follows reads the log often


def test_a_deleted_vm_leaves_nothing(cloud: RealCloud, vm: dict[str, Any]) -> None:
    pid = cloud.qemus()[vm["id"]]
    cloud.pileus("delete", "vm", "life", "--account", "acme", "-y", "--wait", "--timeout", "60")
    assert not is_qemu(pid)
    assert vm["id"] not in cloud.machine_folders()
    assert not cloud.volume_files() & set(vm["assigned"]["volumes"])
    left = cloud.json("get", "port", "--account", "acme")["items"]
    assert len(cloud.taps()) == len(left)
    assert cloud.run("get", "vm", "life", "--account", "acme").returncode == 4
