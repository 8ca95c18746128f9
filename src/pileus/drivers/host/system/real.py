"""The machine as Linux shows it: /proc and /sys, and the versions of QEMU and Open vSwitch."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import socket
import struct
from pathlib import Path

from pileus.drivers.host.qemu.firmware import has_uefi
from pileus.drivers.host.system.base import NicFact, SystemFacts

_NET = Path("/sys/class/net")


class LinuxSystem:
    """This machine. Versions are asked for once, the rest each time."""

    def __init__(self) -> None:
        self._versions: tuple[str, str] | None = None

    async def facts(self) -> SystemFacts:
        """Return what this machine is now."""
        if self._versions is None:
            qemu = await _first_line("qemu-system-x86_64", "--version")
            switch = await _first_line("ovs-vswitchd", "--version")
            self._versions = (qemu.removeprefix("QEMU emulator version ").split(" ")[0], switch.rpartition(" ")[2])
        return SystemFacts(
            cpus=len(os.sched_getaffinity(0)),
            memory_mib=_memory_mib(),
            kernel=os.uname().release,
            hypervisor=f"QEMU {self._versions[0]}",
            switch=f"Open vSwitch {self._versions[1]}",
            nics=_nics(),
            has_uefi=has_uefi(),
        )


async def _first_line(*command: str) -> str:
    try:
        child = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
    except FileNotFoundError:
        return ""
    printed, _ = await child.communicate()
    return printed.decode(errors="replace").partition("\n")[0]


def _memory_mib() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "MemTotal":
            return int(value.split()[0]) // 1024
    return 0


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:  # not every interface has every file, and speed fails while the link is down
        return ""


def _nics() -> tuple[NicFact, ...]:
    """Return the physical and bonded interfaces, loopback and virtual ones of guests left out."""
    found = []
    addresses = _addresses()
    for folder in sorted(_NET.iterdir()) if _NET.is_dir() else ():
        physical = (folder / "device").exists() or (folder / "bonding").exists()
        if not physical:
            continue
        speed = _read(folder / "speed")
        master = (folder / "master").resolve().name if (folder / "master").exists() else ""
        found.append(
            NicFact(
                name=folder.name,
                mac=_read(folder / "address"),
                mtu=int(_read(folder / "mtu") or 0),
                addresses=tuple(addresses.get(folder.name, ())),
                speed_mbps=int(speed) if speed.isdigit() else 0,
                bond=master if (_NET / master / "bonding").exists() else "",
            )
        )
    return tuple(found)


def _addresses() -> dict[str, list[str]]:
    """Return the IPv6 addresses of each interface, and its first IPv4 address. Source: if_inet6, netdevice(7)."""
    result: dict[str, list[str]] = {}
    for line in _read(Path("/proc/net/if_inet6")).splitlines():
        words = line.split()
        result.setdefault(words[5], []).append(str(ipaddress.IPv6Address(bytes.fromhex(words[0]))))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        for _, name in socket.if_nameindex():
            address = _ipv4(asking, name)
            if address:
                result.setdefault(name, []).insert(0, address)
    return result


def _ipv4(asking: socket.socket, name: str) -> str:
    import fcntl

    request = struct.pack("256s", name.encode()[:15])
    try:
        answer = fcntl.ioctl(asking.fileno(), 0x8915, request)  # SIOCGIFADDR
    except OSError:
        return ""
    return socket.inet_ntoa(answer[20:24])
