"""What a router's document says, read once and checked whole: everything after this trusts it. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address
from itertools import pairwise
from typing import Any, NamedTuple, TypeVar

from pileus.node.document import Document
from pileus.node.role import RoleRefused
from pileus.node.router import words
from pileus.node.router.words import Entry

T = TypeVar("T")

SHIFTED_PORTS_MAX = 1024
"""A forward of a range to other ports needs an entry per port."""


class Address(NamedTuple):
    """An address of the router on one of its links."""

    address: str
    link: str
    prefix: int
    gateway: str
    is_shared: bool


class Network(NamedTuple):
    """A network of guests; several may be on the guest link."""

    id: str
    range: str
    netmask: str
    first: str
    gateway: str
    domain: str
    dns: tuple[str, ...]


class Guest(NamedTuple):
    """A guest's NIC: its lease and its names."""

    mac: str
    network: str
    address: str
    names: tuple[str, ...]


class Forward(NamedTuple):
    """Ports of a public address that lead to a guest."""

    address: str
    protocol: str
    first: int
    last: int
    to_address: str
    to_port: int
    sources: tuple[str, ...]


class Check(NamedTuple):
    """How a balancer looks whether a member lives."""

    protocol: str
    path: str
    interval_ms: int
    fall: int
    rise: int


class Member(NamedTuple):
    """A server behind a balancer."""

    id: str
    address: str
    port: int


class Balancer(NamedTuple):
    """A port of a public address that is spread over members."""

    id: str
    address: str
    port: int
    protocol: str
    algorithm: str
    members: tuple[Member, ...]
    check: Check
    sources: tuple[str, ...]


class Rule(NamedTuple):
    """A rule of the firewall; ``network`` is empty for any."""

    direction: str
    action: str
    network: str
    protocol: str
    remotes: tuple[str, ...]
    locals: tuple[str, ...]
    first: int
    last: int


class Peer(NamedTuple):
    """The other end of a tunnel."""

    key: str
    allowed: tuple[str, ...]
    endpoint: str
    keepalive_s: int


class Tunnel(NamedTuple):
    """A WireGuard device."""

    id: str
    interface: str
    private_key: str
    port: int
    address: str
    peers: tuple[Peer, ...]


class Stretch(NamedTuple):
    """A network that goes on at another site."""

    id: str
    range: str
    gateway: str
    tunnel: str
    vni: int
    local: str
    remote: str


class Pair(NamedTuple):
    """This router's part in a redundant pair; ``own`` has its prefix length."""

    router_id: int
    priority: int
    own: str
    peer: str
    yields: bool


class Config(NamedTuple):
    """A whole document."""

    hostname: str
    links: dict[str, str]
    """``guest``, ``public`` -> MAC."""
    addresses: tuple[Address, ...]
    networks: dict[str, Network]
    resolvers: tuple[str, ...]
    guests: tuple[Guest, ...]
    source: str
    forwards: tuple[Forward, ...]
    balancers: tuple[Balancer, ...]
    firewall: tuple[Rule, ...]
    tunnels: tuple[Tunnel, ...]
    stretches: tuple[Stretch, ...]
    pair: Pair | None


class Reader:
    """Reads documents; sections that did not change since the last one are not read again."""

    def __init__(self) -> None:
        self._read: dict[str, tuple[Any, Any]] = {}

    def read(self, document: Document) -> Config:
        """Return what the document says. Raises RoleRefused, naming the entry and the field."""
        self._document = document
        networks = {network.id: network for network in self._section("networks", _network)}
        tunnels = self._section("tunnels", _tunnel)
        pairs = self._section("redundancy", _pair)
        config = Config(
            hostname=next(iter(self._section("node", _hostname)), ""),
            links=dict(self._section("links", _link)),
            addresses=self._section("addresses", _address),
            networks=networks,
            resolvers=self._section("resolvers", _resolver),
            guests=self._section("hosts", _guest),
            source=next(iter(self._section("nat", _source)), ""),
            forwards=self._section("forwards", _forward),
            balancers=self._section("balancers", _balancer),
            firewall=self._section("firewall", _rule),
            tunnels=tunnels,
            stretches=tuple(_stretch(key, entry, networks) for key, entry in self._entries("stretches")),
            pair=next(iter(pairs), None),
        )
        _check_references(config)
        return config

    def _section(self, name: str, read: Callable[[str, Entry], T]) -> tuple[T, ...]:
        section = self._document.get(name, {})
        known = self._read.get(name)
        if known is None or known[0] != section:
            known = (section, tuple(read(key, entry) for key, entry in self._entries(name)))
            self._read[name] = known
        found: tuple[T, ...] = known[1]
        return found

    def _entries(self, name: str) -> Iterator[tuple[str, Entry]]:
        section = self._document.get(name, {})
        if not isinstance(section, dict):
            raise RoleRefused(f"section {name} is no object")
        for key in sorted(section):
            yield key, Entry(f"{name} {key[:60]!r}", section[key])


def _check_references(config: Config) -> None:
    tunnels = {tunnel.id: tunnel for tunnel in config.tunnels}
    names = [tunnel.interface for tunnel in config.tunnels] + [f"vx{stretch.vni}" for stretch in config.stretches]
    ports = [str(tunnel.port) for tunnel in config.tunnels]
    for what, values in (("interface", names), ("port", ports)):
        if len(set(values)) < len(values):
            raise RoleRefused(f"two tunnels or stretches have the same {what}")
    ends = sorted((each.address, each.protocol, each.first, each.last) for each in config.forwards)
    for one, other in pairwise(ends):
        if one[:2] == other[:2] and other[2] <= one[3]:
            raise RoleRefused(f"forwards: {other[1]} port {other[2]} of {other[0]} leads to two places")
    for stretch in config.stretches:
        if stretch.tunnel not in tunnels:
            raise RoleRefused(f"stretches {stretch.id!r}: there is no tunnel {stretch.tunnel[:60]!r}")
    for kind, wanted in (("hosts", config.guests), ("firewall", config.firewall)):
        missing = {each.network for each in wanted} - config.networks.keys() - {""}
        if missing:
            raise RoleRefused(f"{kind}: there is no network {min(missing)[:60]!r}")


def _key(key: str, pattern: re.Pattern[str], where: str) -> str:
    if pattern.fullmatch(key):
        return key
    raise RoleRefused(f"{where}: this name cannot be")


def _address_key(key: str, where: str) -> str:
    if words.address(key):
        return key
    raise RoleRefused(f"{where}: this is no address")


def _hostname(key: str, entry: Entry) -> str:
    return entry.word("hostname", words.DOMAIN)


def _link(key: str, entry: Entry) -> tuple[str, str]:
    if key not in ("guest", "public"):
        raise RoleRefused(f"{entry.where}: links are guest and public")
    return key, entry.word("mac", words.MAC)


def _address(key: str, entry: Entry) -> Address:
    return Address(
        address=_address_key(key, entry.where),
        link=entry.choice("link", "guest", "public"),
        prefix=entry.number("prefix", 1, 32),
        gateway=entry.address("gateway", ""),
        is_shared=entry.is_set("shared"),
    )


def _network(key: str, entry: Entry) -> Network:
    found = entry.network("range")
    gateway = entry.address("gateway")
    if IPv4Address(gateway) not in found:
        raise entry.refused("gateway", gateway)
    return Network(
        id=_key(key, words.ID, entry.where),
        range=str(found),
        netmask=str(found.netmask),
        first=str(found.network_address),
        gateway=gateway,
        domain=entry.word("domain", words.DOMAIN),
        dns=entry.addresses("dns"),
    )


def _resolver(key: str, entry: Entry) -> str:
    return _address_key(key, entry.where)


def _guest(key: str, entry: Entry) -> Guest:
    return Guest(
        mac=_key(key, words.MAC, entry.where),
        network=entry.word("network", words.ID),
        address=entry.address("address"),
        names=entry.words("names", words.LABEL),
    )


def _source(key: str, entry: Entry) -> str:
    return entry.address("address")


def _forward(key: str, entry: Entry) -> Forward:
    forward = Forward(
        address=entry.address("address"),
        protocol=entry.choice("protocol", "tcp", "udp"),
        first=(first := entry.number("port_first", 1, 65535)),
        last=entry.number("port_last", first, 65535),
        to_address=entry.address("to_address"),
        to_port=entry.number("to_port", 1, 65535),
        sources=entry.networks("sources"),
    )
    count = forward.last - forward.first + 1
    if forward.to_port + count - 1 > 65535 or (forward.to_port != first and count > SHIFTED_PORTS_MAX):
        raise RoleRefused(f"{entry.where}: {count} ports cannot be moved to {forward.to_port} and on")
    return forward


def _balancer(key: str, entry: Entry) -> Balancer:
    members = tuple(
        Member(id=_key(name, words.ID, member.where), address=member.address("address"), port=_port(member))
        for name, member in entry.entries("members")
    )
    return Balancer(
        id=_key(key, words.ID, entry.where),
        address=entry.address("address"),
        port=_port(entry),
        protocol=entry.choice("protocol", "tcp", "http"),
        algorithm=entry.choice("algorithm", "round-robin", "least-connections", "source"),
        members=members,
        check=_check(entry.entry("check")),
        sources=entry.networks("sources"),
    )


def _check(entry: Entry) -> Check:
    return Check(
        protocol=entry.choice("protocol", "tcp", "http"),
        path=entry.word("path", words.URL_PATH, "/"),
        interval_ms=entry.number("interval_ms", 100, 3_600_000),
        fall=entry.number("fall", 1, 100),
        rise=entry.number("rise", 1, 100),
    )


def _port(entry: Entry) -> int:
    return entry.number("port", 1, 65535)


def _rule(key: str, entry: Entry) -> Rule:
    protocol = entry.choice("protocol", "any", "tcp", "udp", "icmp")
    rule = Rule(
        direction=entry.choice("direction", "ingress", "egress"),
        action=entry.choice("action", "accept", "drop"),
        network=entry.word("network", words.ID, ""),
        protocol=protocol,
        remotes=entry.networks("remotes"),
        locals=entry.networks("locals"),
        first=(first := entry.number("port_first", 0, 65535, 0)),
        last=entry.number("port_last", first, 65535, first),
    )
    if rule.last and protocol not in ("tcp", "udp"):
        raise RoleRefused(f"{entry.where}: ports need the protocol tcp or udp")
    return rule


def _tunnel(key: str, entry: Entry) -> Tunnel:
    peers = tuple(
        Peer(
            key=_key(name, words.KEY, peer.where),
            allowed=peer.networks("allowed"),
            endpoint=_endpoint(peer),
            keepalive_s=peer.number("keepalive_s", 0, 65535, 0),
        )
        for name, peer in entry.entries("peers")
    )
    return Tunnel(
        id=_key(key, words.ID, entry.where),
        interface=entry.word("interface", words.INTERFACE),
        private_key=entry.word("private_key", words.KEY),
        port=_port(entry),
        address=entry.interface("address", ""),
        peers=peers,
    )


def _endpoint(entry: Entry) -> str:
    text = entry.word("endpoint", re.compile(r"[0-9.]{7,15}:[0-9]{1,5}"), "")
    host, _, port = text.partition(":")
    if text and (words.address(host) is None or not 1 <= int(port) <= 65535):
        raise entry.refused("endpoint", text)
    return text


def _stretch(key: str, entry: Entry, networks: dict[str, Network]) -> Stretch:
    network = networks.get(entry.word("network", words.ID))
    if network is None:
        raise RoleRefused(f"{entry.where}: there is no such network")
    return Stretch(
        id=_key(key, words.ID, entry.where),
        range=str(entry.network("range")),
        gateway=network.gateway,
        tunnel=entry.word("tunnel", words.ID),
        vni=entry.number("vni", 1, (1 << 24) - 1),
        local=entry.address("local"),
        remote=entry.address("remote"),
    )


def _pair(key: str, entry: Entry) -> Pair:
    return Pair(
        router_id=entry.number("router_id", 1, 255),
        priority=entry.number("priority", 1, 254),
        own=entry.interface("own"),
        peer=entry.address("peer"),
        yields=entry.is_set("yields"),
    )
