"""A network namespace by name, and what is done inside it: taps made, opened, counted and deleted, uplinks prepared.

Every piece of work runs in a thread of its own that enters the namespace and ends there: a thread of a pool that failed
to come back would do other people's work in the wrong network.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import fcntl
import os
import re
import socket
import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from msgspec import Struct

from pileus.drivers.host import netlink
from pileus.drivers.host.errors import DriverError
from pileus.drivers.host.ovs.command import run

FOLDER = Path("/run/netns")
"""Where ``ip netns`` keeps names (ip-netns(8))."""

CLONE_NEWNET = 0x40000000
SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 0x1
SIOCGIFMTU, SIOCETHTOOL, ETHTOOL_SGRO = 0x8921, 0x8946, 0x2C
TUNSETIFF, TUNSETPERSIST, TUNSETOFFLOAD = 0x400454CA, 0x400454CB, 0x400454D0
IFF_TAP, IFF_NO_PI = 0x0002, 0x1000
RTM_DELLINK = 17

TAP = re.compile(r"p[0-9a-f]{12}")

QUIET = {
    "ipv6/conf/all/disable_ipv6": "1",
    "ipv6/conf/default/disable_ipv6": "1",
    "ipv4/ip_forward": "0",
    "ipv4/conf/all/arp_ignore": "0",
    "ipv4/conf/default/arp_ignore": "8",
    "ipv4/conf/default/rp_filter": "1",
}
"""A device's other end is the kernel's own IP stack: it must neither answer a guest nor say anything to it.

The devices that are made later never answer ARP, and take no packet that they have no address to answer from. Those
that were there before, such as a host's own way to its servers, stay as they are.
"""

T = TypeVar("T")
_libc = ctypes.CDLL(None, use_errno=True)


class LinkCounters(Struct, frozen=True):
    """Kernel counters of a tap: ``rx`` is what the kernel received, so what the guest sent."""

    rx_bytes: int
    rx_packets: int
    tx_bytes: int
    tx_packets: int


async def ensure(name: str) -> None:
    """Make sure that the namespace is there, its loopback is up and its IP stack is quiet."""
    path = FOLDER / name
    if path.exists() and not await _is_namespace(name):
        path.unlink()  # a name that lost its mount, as after a reboot with /run on disk
    if not path.exists():
        await run(["ip", "netns", "add", name])
    await inside(name, _quieten)


async def remove(name: str) -> None:
    """Delete the namespace and every tap in it; none: nothing."""
    if (FOLDER / name).exists():
        if await _is_namespace(name):
            for tap in await counters(name):
                if TAP.fullmatch(tap):
                    await delete_link(name, tap)
        await run(["ip", "netns", "delete", name])


async def make_tap(namespace: str, tap: str) -> bool:
    """Make a persistent tap, up, every offload off; return False when it was there.

    Raises: DriverError (TapRefused).
    """
    return await inside(namespace, lambda: _make_tap(tap))


async def open_tap(namespace: str, tap: str) -> int:
    """Return a file descriptor of an existing tap that carries bare Ethernet frames; the caller owns it.

    Raises: DriverError (TapRefused) when there is no such tap or another process holds it.
    """
    return await inside(namespace, lambda: _open_tap(tap, must_exist=True))


async def delete_link(namespace: str, link: str) -> None:
    """Delete a network device; none: nothing."""
    await inside(namespace, lambda: _delete_link(link))


async def numbers(namespace: str) -> dict[str, int]:
    """Return every network device by name, with its number; one that was made anew has another."""
    return await inside(namespace, lambda: {name: number for number, name in socket.if_nameindex()})


async def prepare_uplink(namespace: str, device: str) -> int:
    """Put a network device up for the switch alone, and return its MTU. Raises: DriverError (UplinkMissing)."""
    return await inside(namespace, lambda: _prepare_uplink(device))


async def let_answer(namespace: str, device: str) -> None:
    """Let the kernel answer ARP for the addresses of this device, on it."""
    await inside(namespace, lambda: _set_arp_ignore(device, "1"))


async def counters(namespace: str) -> dict[str, LinkCounters]:
    """Return the counters of every network device in the namespace."""
    return await inside(namespace, _counters)


async def inside(namespace: str, work: Callable[[], T]) -> T:
    """Return what ``work`` returns when it runs in the namespace. Raises DriverError (NoNamespace)."""
    executor = ThreadPoolExecutor(1)
    try:
        return await asyncio.get_running_loop().run_in_executor(executor, _enter_and, namespace, work)
    finally:
        executor.shutdown(wait=False)


def _enter_and(namespace: str, work: Callable[[], T]) -> T:
    try:
        descriptor = os.open(FOLDER / namespace, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError as exc:
        raise DriverError("NoNamespace", f"network namespace {namespace} is not there") from exc
    try:
        if _libc.setns(descriptor, CLONE_NEWNET) != 0:
            code = ctypes.get_errno()
            raise DriverError("NoNamespace", f"network namespace {namespace}: {os.strerror(code)}")
    finally:
        os.close(descriptor)
    return work()


async def _is_namespace(name: str) -> bool:
    try:
        return await inside(name, lambda: True)
    except DriverError:
        return False


def _quieten() -> None:
    _set_up("lo")
    for key, value in QUIET.items():
        setting = Path("/proc/sys/net") / key
        with contextlib.suppress(FileNotFoundError):  # a kernel without IPv6 is quiet already
            setting.write_text(value)

    for link in socket.if_nameindex():
        if TAP.fullmatch(link[1]):
            _set_arp_ignore(link[1], "8")


def _set_arp_ignore(device: str, mode: str) -> None:
    Path(f"/proc/sys/net/ipv4/conf/{device}/arp_ignore").write_text(mode)


def _prepare_uplink(device: str) -> int:
    try:
        _set_arp_ignore(device, "8")
        _set_up(device)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
            request = struct.pack("16sI20x", device.encode(), 0)
            (mtu,) = struct.unpack_from("I", fcntl.ioctl(control, SIOCGIFMTU, request), 16)
            # Frames that the kernel has joined are longer than what any guest can take.
            off = ctypes.create_string_buffer(struct.pack("II", ETHTOOL_SGRO, 0))
            with contextlib.suppress(OSError):  # it cannot join frames at all
                fcntl.ioctl(control, SIOCETHTOOL, struct.pack("16sQ16x", device.encode(), ctypes.addressof(off)))
    except OSError as exc:
        raise DriverError("UplinkMissing", str(exc.strerror)) from exc
    return int(mtu)


def _make_tap(tap: str) -> bool:
    if _has_link(tap):
        return False
    descriptor = _open_tap(tap, must_exist=False)
    try:
        fcntl.ioctl(descriptor, TUNSETPERSIST, 1)
        _set_up(tap)
    except OSError as exc:
        raise DriverError("TapRefused", f"tap {tap}: {exc.strerror}") from exc
    finally:
        os.close(descriptor)
    return True


def _open_tap(tap: str, *, must_exist: bool) -> int:
    if must_exist and not _has_link(tap):
        raise DriverError("TapRefused", f"tap {tap} is not there")
    try:
        descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as exc:
        raise DriverError("TapRefused", f"the kernel has no taps: {exc.strerror}") from exc
    try:
        fcntl.ioctl(descriptor, TUNSETIFF, struct.pack("16sH22x", tap.encode(), IFF_TAP | IFF_NO_PI))
        # Otherwise frames of the host arrive in the guest with unfinished checksums.
        fcntl.ioctl(descriptor, TUNSETOFFLOAD, 0)
    except OSError as exc:
        os.close(descriptor)
        why = "another program has it open" if exc.errno == errno.EBUSY else exc.strerror
        raise DriverError("TapRefused", f"tap {tap}: {why}") from exc
    return descriptor


def _has_link(link: str) -> bool:
    return any(name == link for _, name in socket.if_nameindex())


def _set_up(link: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        request = struct.pack("16sH22x", link.encode(), 0)
        (flags,) = struct.unpack_from("H", fcntl.ioctl(control, SIOCGIFFLAGS, request), 16)
        fcntl.ioctl(control, SIOCSIFFLAGS, struct.pack("16sH22x", link.encode(), flags | IFF_UP))


def _delete_link(link: str) -> None:
    """Delete a device (rtnetlink(7)); a tap goes even while a program holds it open."""
    try:
        index = socket.if_nametoindex(link)
    except OSError:
        return
    code = netlink.change(RTM_DELLINK, 0, struct.pack("=BxHiII", socket.AF_UNSPEC, 0, index, 0, 0))
    if code not in (0, errno.ENODEV):
        raise DriverError("TapRefused", f"{link} cannot be deleted: {os.strerror(code)}")


def _counters() -> dict[str, LinkCounters]:
    """Parse /proc/net/dev of this thread's namespace (proc(5)): name, 8 columns received, 8 sent."""
    found = {}
    for line in Path("/proc/thread-self/net/dev").read_text().splitlines()[2:]:
        name, _, rest = line.partition(":")
        column = [int(word) for word in rest.split()]
        found[name.strip()] = LinkCounters(column[0], column[1], column[8], column[9])
    return found
