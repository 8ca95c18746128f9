"""Limits of network and disk as a guest measures them, and how soon a change holds on a VM that runs."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.vm import realcloud
    from tests.vm.realcloud import RealCloud
    from tests.vm.terminal import Terminal
else:
    import realcloud
    from realcloud import RealCloud
    from terminal import Terminal

RATE_KBPS, IOPS = 20_000, 200
SLOWER_KBPS, FEWER_IOPS = 8_000, 80
WITHIN = 0.10
SOON_S = 2.0
TRIES = 3
WEB, DB = "10.1.1.10", "10.1.1.20"
PORT = 5001
NOW = "cut -d' ' -f1 /proc/uptime"
RX = "/sys/class/net/eth0/statistics/rx_bytes"


@pytest.fixture(scope="module")
def limited() -> Iterator[RealCloud]:
    """A cloud with a VM that has limits and another that has none, both booted."""
    with realcloud.upped() as cloud:
        cloud.pileus("create", "account", "acme")
        cloud.pileus("create", "offering", "thin", "--vcpus", "1", "--memory-mib", "128", "--disk-gib", "1",
                     "--rate-limit-kbps", str(RATE_KBPS), "--iops-limit", str(IOPS))  # fmt: skip
        cloud.pileus("create", "vm", "web", "--account", "acme", "--address", WEB, "--offering", "thin")
        cloud.pileus("create", "vm", "db", "--account", "acme", "--address", DB)
        for name in ("web", "db"):
            cloud.until_printed(name, "^PILEUS-READY")
        yield cloud


@pytest.fixture(autouse=True)
def unchanged(limited: RealCloud) -> Iterator[None]:
    """Leave the account without limits."""
    yield
    limited.pileus("patch", "account", "acme", "--reset", "limits")
    time.sleep(SOON_S)


def iops(terminal: Terminal) -> float:
    """Return the reads per second that the guest's root disk gives, over some seconds."""
    count = 2 * IOPS
    said = terminal.shell(f"{NOW}; dd if=/dev/vda of=/dev/null bs=4096 count={count} iflag=direct 2>/dev/null; {NOW}")
    began, ended = (float(line) for line in said.split())
    return count / (ended - began)


def kbps(receiver: Terminal, sender: Terminal, address: str, seconds: int = 5) -> float:
    """Return the rate at which a guest receives what another sends, once TCP has found its pace."""
    receiver.shell(f"(tail -f /dev/null | nc -l -p {PORT} >/dev/null &)")  # its input must not end
    sender.shell(f"(timeout {seconds + 6} nc {address} {PORT} </dev/zero >/dev/null 2>&1 &)")
    look = f"{NOW}; cat {RX}"
    said = receiver.shell(f"sleep 3; {look}; sleep {seconds}; {look}; killall nc tail")
    sender.shell("killall nc 2>/dev/null")
    began, first, ended, last = (float(line) for line in re.findall(r"^[0-9.]+$", said, re.MULTILINE))
    return (last - first) * 8 / 1000 / (ended - began)


def assert_within(measure: Callable[[], float], wanted: float, what: str) -> None:
    """Raises: AssertionError when the limit does not hold; a machine busy with other things may need another look."""
    found: list[float] = []
    for _ in range(TRIES):
        found.append(measure())
        print(f"measured: {what} {found[-1]:.0f}, limit {wanted}")
        if wanted * (1 - WITHIN) <= found[-1] <= wanted * (1 + WITHIN):
            return
        assert found[-1] < wanted, f"{what}: {found[-1]:.0f}, more than {wanted}"
    raise AssertionError(f"{what}: {found} instead of {wanted}")


@pytest.mark.long
def test_disk_operations_hold_and_change_on_the_running_vm(limited: RealCloud) -> None:
    with Terminal(limited, "web") as web:
        assert_within(lambda: iops(web), IOPS, "operations per second")
        limited.pileus("patch", "account", "acme", "--limits-iops-limit", str(FEWER_IOPS))
        time.sleep(SOON_S)
        assert_within(lambda: iops(web), FEWER_IOPS, "operations per second after a change")
        limited.pileus("patch", "account", "acme", "--reset", "limits")
        time.sleep(SOON_S)
        assert_within(lambda: iops(web), IOPS, "operations per second after the change back")
    assert limited.vm("web")["observed"]["boots"] == 1


@pytest.mark.parametrize("way", ["receives", pytest.param("sends", marks=pytest.mark.long)])
def test_the_rate_holds_each_way_and_changes_on_the_running_vm(limited: RealCloud, way: str) -> None:
    with Terminal(limited, "web") as web, Terminal(limited, "db") as db:
        receiver, sender, address = (web, db, WEB) if way == "receives" else (db, web, DB)
        assert_within(lambda: kbps(receiver, sender, address), RATE_KBPS, f"kbit/s that the VM {way}")
        limited.pileus("patch", "account", "acme", "--limits-rate-limit-kbps", str(SLOWER_KBPS))
        time.sleep(SOON_S)
        assert_within(lambda: kbps(receiver, sender, address), SLOWER_KBPS, f"kbit/s that the VM {way} after a change")
