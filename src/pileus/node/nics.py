"""Addresses of an appliance whose role does not set them up itself: as the host decided them, by what the seed says."""

from __future__ import annotations

import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

PATIENCE_S = 60.0
"""Drivers of NICs are loaded while this runs."""

_PAUSE_S = 0.1
_COMMAND_S = 10.0


@dataclass(frozen=True, slots=True)
class Nic:
    """One NIC: addresses with prefix length; a gateway only for the one that has the default route."""

    mac: str
    addresses: tuple[str, ...] = ()
    gateway: str = ""
    dns: tuple[str, ...] = ()


def set_up(nics: tuple[Nic, ...], sys: Path = Path("/sys/class/net"), resolv: Path = Path("/etc/resolv.conf")) -> None:
    """Give each NIC its addresses; called again, it changes nothing. One that never comes is left out after a while."""
    until = time.monotonic() + PATIENCE_S
    missing = list(nics)
    while missing and time.monotonic() < until:
        for nic in list(missing):
            name = find(nic.mac, sys)
            if name:
                missing.remove(nic)
                for command in commands(name, nic):
                    subprocess.run(command, check=False, timeout=_COMMAND_S, stdin=subprocess.DEVNULL)
        if missing:
            time.sleep(_PAUSE_S)
    servers = [server for nic in nics for server in nic.dns]
    if servers:
        resolv.write_text("".join(f"nameserver {server}\n" for server in dict.fromkeys(servers)))


def find(mac: str, sys: Path) -> str:
    """Return the name of the interface with this MAC; empty when it is not there."""
    for place in sorted(sys.glob("*/address")):
        try:
            if place.read_text().strip().lower() == mac.lower():
                return place.parent.name
        except OSError:
            continue  # it went while we looked
    return ""


def commands(name: str, nic: Nic) -> list[list[str]]:
    """Return what sets the interface up, in order."""
    found = [["ip", "link", "set", "dev", name, "up"]]
    found += [["ip", "address", "replace", address, "dev", name] for address in nic.addresses]
    if nic.gateway:
        found.append(["ip", "route", "replace", "default", "via", nic.gateway, "dev", name])
    return found
