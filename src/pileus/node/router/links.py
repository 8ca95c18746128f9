"""The links of a router: what there should be, what there is, and the commands of ``ip`` between the two. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from pileus.node.router.firewall import VXLAN_PORT
from pileus.node.router.model import Config

BRIDGE = "guests"
MADE = ("guests", "wg", "vx")
"""How the names of devices begin that are made here."""


class Device(NamedTuple):
    """A network device as it is."""

    name: str
    mac: str
    is_up: bool
    master: str
    addresses: frozenset[str]
    """With prefix length."""


class Seen(NamedTuple):
    """What ``ip -json`` says."""

    devices: dict[str, Device]
    routes: frozenset[tuple[str, str, str]]
    """Destination, gateway (or empty), device; those that were made here only."""


class Steps(NamedTuple):
    """Commands for ``ip -batch``, and what cannot be done yet."""

    commands: list[str]
    waiting: list[str]
    added: list[tuple[str, str]]
    """Device and address: neighbours are told of it."""


def guest_interface(config: Config) -> str:
    """Return the device that has the guest link's addresses."""
    return BRIDGE if config.stretches else "guest"


def seen(addresses: list[dict[str, Any]], routes: list[dict[str, Any]]) -> Seen:
    """Read the answers to ``ip -json address`` and ``ip -json route show proto static``."""
    devices = {}
    for each in addresses:
        held = {
            f"{one['local']}/{one['prefixlen']}" for one in each.get("addr_info", ()) if one.get("family") == "inet"
        }
        devices[each["ifname"]] = Device(
            name=each["ifname"],
            mac=each.get("address", ""),
            is_up="UP" in each.get("flags", ()),
            master=each.get("master", ""),
            addresses=frozenset(held),
        )
    found = frozenset((each["dst"], each.get("gateway", ""), each.get("dev", "")) for each in routes)
    return Seen(devices=devices, routes=found)


def names(config: Config, now: Seen) -> Steps:
    """Return the steps that give NICs their names: ``guest`` and ``public``, by MAC."""
    by_mac = {device.mac: device.name for device in now.devices.values() if not device.name.startswith(MADE)}
    macs = {name: mac for mac, name in by_mac.items()}
    commands, waiting = [], []
    for name, mac in sorted(config.links.items()):
        found = by_mac.get(mac)
        if found is None:
            waiting.append(f"link {name}: no NIC has the MAC {mac}")
        elif found != name:
            if name in macs:
                by_mac[macs.pop(name)] = f"not{name}"
                commands += [f"link set {name} down", f"link set {name} name not{name}"]
            macs.pop(found, None)
            commands += [f"link set {found} down", f"link set {found} name {name}"]
    for name in ("guest", "public"):
        if name in now.devices and name not in config.links:
            commands.append(f"link set {name} down")
    return Steps(commands, waiting, [])


def devices(config: Config, now: Seen) -> Steps:
    """Return the steps that make and remove tunnels, stretches and the bridge; NICs have their names already."""
    vxlans = {f"vx{stretch.vni}": stretch for stretch in config.stretches}
    wanted = {*vxlans, *(tunnel.interface for tunnel in config.tunnels), *([BRIDGE] if vxlans else [])}
    made = {name for name in now.devices if name.startswith(MADE)}
    commands = [f"link delete {name}" for name in sorted(made - wanted)]
    guest = now.devices.get("guest")
    for name in sorted(wanted - made):
        if name.startswith("wg"):
            commands.append(f"link add {name} type wireguard")
        elif name == BRIDGE:
            mac = f"address {guest.mac} " if guest else ""
            commands.append(f"link add {BRIDGE} {mac}type bridge stp_state 0 mcast_snooping 0 forward_delay 0")
        else:
            one = vxlans[name]
            # Bound to no device, so that it takes whole Ethernet frames; what is too long for the tunnel is cut there.
            ends = f"local {one.local} remote {one.remote} dstport {VXLAN_PORT}"
            commands.append(f"link add {name} mtu 1500 type vxlan id {one.vni} {ends}")
    if vxlans:
        ports = [*vxlans, *(["guest"] if guest else [])]
        masters = {device.name: device.master for device in now.devices.values()}
        commands += [f"link set {port} master {BRIDGE}" for port in sorted(ports) if masters.get(port) != BRIDGE]
        if guest and BRIDGE in now.devices and now.devices[BRIDGE].mac != guest.mac:
            commands.append(f"link set {BRIDGE} address {guest.mac}")
    return Steps(commands, [], [])


def addresses(config: Config, now: Seen, *, keeps_shared: bool) -> Steps:
    """Return the steps to addresses, links that are up, and routes. What a pair shares is keepalived's."""
    wanted = _addresses(config)
    shared = {f"{one.address}/{one.prefix}" for one in config.addresses if one.is_shared and keeps_shared}
    commands, waiting, added = [], [], []
    for name, held in wanted.items():
        device = now.devices.get(name)
        if device is None:
            waiting.append(f"addresses of {name}: there is no such device")
            continue
        gone = device.addresses - held - shared
        commands += [f"address delete {address} dev {name}" for address in sorted(gone)]
        for address in sorted(held - device.addresses):
            scope = " scope link" if address.startswith("169.254.") else ""
            commands.append(f"address add {address} dev {name}{scope}")
            added.append((name, address.partition("/")[0]))
        if not device.is_up:
            commands.append(f"link set {name} up")
    commands += _routes(config, now, {name for name in wanted if name in now.devices})
    return Steps(commands, waiting, added)


def _addresses(config: Config) -> dict[str, set[str]]:
    """Return the addresses of each device that is not keepalived's affair."""
    guest = guest_interface(config)
    held: dict[str, set[str]] = {name: set() for name in config.links}
    held |= {tunnel.interface: {tunnel.address} - {""} for tunnel in config.tunnels}
    held |= {f"vx{stretch.vni}": set() for stretch in config.stretches}
    held.setdefault(guest, set())
    for address in config.addresses:
        if config.pair is None or not address.is_shared:
            name = guest if address.link == "guest" else "public"
            held.setdefault(name, set()).add(f"{address.address}/{address.prefix}")
    if config.pair is not None:
        held[guest].add(config.pair.own)
    return held


def _routes(config: Config, now: Seen, present: Iterable[str]) -> Iterator[str]:
    wanted: dict[str, tuple[str, str]] = {}
    for tunnel in config.tunnels:
        # ``ip`` names a range of one address without its length.
        ranges = (range_.removesuffix("/32") for peer in tunnel.peers for range_ in peer.allowed)
        wanted |= {range_: ("", tunnel.interface) for range_ in ranges if range_ != "0.0.0.0/0"}
    for address in config.addresses:
        if address.gateway and not (config.pair and address.is_shared):
            wanted["default"] = (address.gateway, "public" if address.link == "public" else guest_interface(config))
    have = {to: (gateway, device) for to, gateway, device in now.routes}
    for to, way in sorted(have.items()):
        if wanted.get(to) != way:
            yield f"route delete {to} dev {way[1]} proto static"
    for to, (gateway, device) in sorted(wanted.items()):
        if have.get(to) != (gateway, device) and device in present:
            via = f"via {gateway} " if gateway else ""
            yield f"route replace {to} {via}dev {device} proto static{' onlink' if gateway else ''}"
