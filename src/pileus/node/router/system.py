"""What the router's appliance is asked and told: commands, files, kernel settings, neighbours. It decides nothing."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

TIMEOUT_S = 60
"""The longest a command may take: a large ruleset on a slow machine takes a second."""

_ENVIRONMENT = {"PATH": "/bin:/sbin:/usr/bin:/usr/sbin", "LC_ALL": "C"}
_ETH_ARP = 0x0806

SETTINGS = {
    "net/ipv4/ip_forward": "1",
    # Balancers listen on addresses that the other one of a pair may hold.
    "net/ipv4/ip_nonlocal_bind": "1",
    "net/ipv4/tcp_syncookies": "1",
    "net/ipv4/conf/all/rp_filter": "1",
    "net/ipv4/conf/default/rp_filter": "1",
    "net/ipv4/conf/all/send_redirects": "0",
    "net/ipv4/conf/default/send_redirects": "0",
    "net/ipv4/conf/all/accept_redirects": "0",
    "net/ipv4/conf/default/accept_redirects": "0",
    "net/ipv4/conf/all/arp_ignore": "1",
    # Without it, the others of a range go with the first address that is removed.
    "net/ipv4/conf/all/promote_secondaries": "1",
    "net/ipv6/conf/all/disable_ipv6": "1",
    "net/ipv6/conf/default/disable_ipv6": "1",
    # A connection costs 320 bytes: 10 MiB at most.
    "net/netfilter/nf_conntrack_max": "32768",
    "net/netfilter/nf_conntrack_tcp_timeout_established": "86400",
    # After a takeover the windows of connections are not known.
    "net/netfilter/nf_conntrack_tcp_be_liberal": "1",
}
"""Kernel settings of a router (Linux, Documentation/networking/ip-sysctl.rst, nf_conntrack-sysctl.rst)."""


class CommandFailed(Exception):
    """A command could not be done; says which, and its last words."""


def run(argv: Sequence[str], text: str = "") -> str:
    """Return what the command printed; ``text`` is its standard input. Raises CommandFailed."""
    try:
        done = subprocess.run(
            argv, input=text, capture_output=True, text=True, timeout=TIMEOUT_S, env=_ENVIRONMENT, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise CommandFailed(f"{argv[0]}: {exc}") from exc
    if done.returncode != 0:
        raise CommandFailed(f"{argv[0]}: {done.stderr.strip()[:500] or done.returncode}")
    return done.stdout


def ask(argv: Sequence[str]) -> list[dict[str, Any]]:
    """Return the JSON that a command of iproute2 printed. Raises CommandFailed."""
    found = json.loads(run(argv) or "[]")
    return [each for each in found if each]


def put(path: str, text: str) -> bool:
    """Have the file say ``text``, whole at any time, for root and the services only; return whether it did not."""
    file = Path(path)
    with contextlib.suppress(OSError):
        if file.read_text() == text:
            return False
    file.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    new = file.with_name(f"{file.name}.new")
    new.write_text(text)
    new.replace(file)
    return True


def set_kernel() -> None:
    """Make the settings; those of parts that are not loaded fail. Raises CommandFailed naming them."""
    missing = []
    for name, value in SETTINGS.items():
        try:
            Path("/proc/sys", name).write_text(value)
        except OSError:
            missing.append(name)
    if missing:
        raise CommandFailed(f"kernel settings: {', '.join(missing)}")


def links_mark() -> tuple[tuple[str, str, str], ...]:
    """Return something that changes when a device comes, goes, is renamed or set up or down."""
    found = []
    for folder in sorted(Path("/sys/class/net").iterdir()):
        with contextlib.suppress(OSError):
            found.append((folder.name, (folder / "ifindex").read_text(), (folder / "flags").read_text()))
    return tuple(found)


def device_number(name: str) -> int:
    """Return the number of the device, 0 when there is none."""
    try:
        return socket.if_nametoindex(name)
    except OSError:
        return 0


def announce(device: str, address: str) -> None:
    """Tell the neighbours where the address is now (a gratuitous ARP request, RFC 5227)."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as wire:
        wire.bind((device, _ETH_ARP))
        mac = wire.getsockname()[4]
        own = socket.inet_aton(address)
        head = b"\xff" * 6 + mac + struct.pack("!H", _ETH_ARP)
        wire.send(head + struct.pack("!HHBBH", 1, 0x0800, 6, 4, 1) + mac + own + bytes(6) + own)


def speak(path: str, text: str) -> str:
    """Return what is answered on a unix socket, all of it, empty when nobody listens."""
    parts = []
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as wire:
        wire.settimeout(2.0)
        wire.connect(path)
        wire.sendall(text.encode())
        while part := wire.recv(65536):
            parts.append(part)
    return b"".join(parts).decode(errors="replace")


def text_of(path: str) -> str:
    """Return the text of a small file, empty when it is not there."""
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def set_hostname(name: str) -> None:
    """Have the machine's name be ``name``."""
    if name and os.uname().nodename != name:
        socket.sethostname(name)
