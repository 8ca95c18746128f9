"""The packet filter and the address translation of a router, as one transaction for ``nft -f -``. Pure.

Tables are made anew in each transaction: packets meet the old rules or the new ones, and connections go on, because
those are known to conntrack and not to the tables. Interfaces are named, not numbered: rules stand before NICs do.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from ipaddress import IPv4Network, collapse_addresses

from pileus.node.router.model import Balancer, Config, Forward, Rule

VXLAN_PORT = 4789
SYNC_PORT = 3780
"""Where conntrackd hears of the other's connections."""

GUEST = '{ "guest", "guests" }'
"""The guest link: the NIC, or the bridge that it is a port of while a network is stretched."""

INSIDE = '{ "guest", "guests", "wg*" }'


def ruleset(config: Config) -> str:
    """Return the transaction."""
    return "\n".join(
        [
            *("table inet router", "delete table inet router", "table bridge router", "delete table bridge router"),
            "table inet router {",
            *_networks(config),
            *_input(config),
            *_forward(),
            *_judged("ingress", config),
            *_judged("egress", config),
            *_translate_destinations(config.forwards),
            *_translate_sources(config),
            "}",
            *_stretches(config),
            "",
        ]
    )


def _networks(config: Config) -> Iterator[str]:
    yield from _set("networks", "ipv4_addr", (network.range for network in config.networks.values()))
    yield from _set("own", "ipv4_addr", (address.address for address in config.addresses))


def _input(config: Config) -> Iterator[str]:
    yield "chain input { type filter hook input priority filter; policy drop;"
    yield "ct state established,related accept"
    yield "ct state invalid drop"
    yield 'iifname "lo" accept'
    yield "icmp type echo-request limit rate 200/second burst 100 packets accept"
    yield f"iifname {GUEST} udp dport 67 accept"
    yield f"iifname {INSIDE} meta l4proto {{ tcp, udp }} th dport 53 accept"
    if config.pair is not None:
        yield f"iifname {GUEST} ip saddr {config.pair.peer} ip protocol 112 accept"
        yield f"iifname {GUEST} ip saddr {config.pair.peer} udp dport {SYNC_PORT} accept"
    tunnels = {tunnel.id: tunnel for tunnel in config.tunnels}
    for stretch in config.stretches:
        interface = tunnels[stretch.tunnel].interface
        yield f'iifname "{interface}" ip saddr {stretch.remote} udp dport {VXLAN_PORT} accept'
    if config.tunnels:
        ports = ", ".join(str(tunnel.port) for tunnel in config.tunnels)
        yield f"ip daddr @own udp dport {{ {ports} }} accept"
    yield from (_open(balancer) for balancer in config.balancers)
    yield "}"


def _open(balancer: Balancer) -> str:
    return f"{_from(balancer.sources)}ip daddr {balancer.address} tcp dport {balancer.port} accept"


def _forward() -> Iterator[str]:
    """What is passed on. Nothing gets from the public link to a guest that was not translated."""
    yield "chain forward { type filter hook forward priority filter; policy drop;"
    yield "ct state established,related accept"
    yield "ct state invalid drop"
    yield f"iifname {GUEST} ip saddr != @networks drop"
    yield f'iifname "public" oifname {GUEST} ct status dnat goto arriving'
    yield f'iifname "wg*" oifname {GUEST} goto arriving'
    yield f'iifname {INSIDE} oifname {{ "public", "wg*" }} goto leaving'
    yield f"iifname {GUEST} oifname {GUEST} accept"
    yield "}"
    yield "chain arriving { jump ingress; accept; }"
    yield "chain leaving { jump egress; accept; }"


def _judged(direction: str, config: Config) -> Iterator[str]:
    """The tenant's rules of one direction, in their order; the first that fits decides."""
    yield f"chain {direction} {{"
    for rule in config.firewall:
        if rule.direction == direction:
            yield _judge(rule, config)
    yield "}"


def _judge(rule: Rule, config: Config) -> str:
    inside, outside = ("daddr", "saddr") if rule.direction == "ingress" else ("saddr", "daddr")
    parts = []
    if rule.network:
        parts.append(f"ip {inside} {config.networks[rule.network].range}")
    if rule.locals:
        parts.append(f"ip {inside} {_one_of(rule.locals)}")
    if rule.remotes:
        parts.append(f"ip {outside} {_one_of(rule.remotes)}")
    if rule.last:
        parts.append(f"{rule.protocol} dport {_ports(rule.first, rule.last)}")
    elif rule.protocol != "any":
        parts.append(f"ip protocol {rule.protocol}")
    return " ".join([*parts, rule.action])


def _translate_destinations(forwards: Iterable[Forward]) -> Iterator[str]:
    """Forwards: those for everybody are found in one look-up however many there are.

    ``kept`` has ports that stay what they are, ``moved`` single ports that become others.
    """
    kept: dict[str, list[str]] = {"tcp": [], "udp": []}
    moved: dict[str, list[str]] = {"tcp": [], "udp": []}
    rules: list[str] = []
    for forward in forwards:
        if forward.sources:
            rules += _limited(forward)
        elif forward.to_port == forward.first:
            ports = _ports(forward.first, forward.last)
            kept[forward.protocol].append(f"{forward.address} . {ports} : {forward.to_address}")
        else:
            moved[forward.protocol] += [
                f"{forward.address} . {port} : {forward.to_address} . {to}" for port, to in _pairs(forward)
            ]
    for protocol in ("tcp", "udp"):
        yield from _map(f"kept_{protocol}", "ipv4_addr . inet_service : ipv4_addr", kept[protocol], "flags interval; ")
        yield from _map(f"moved_{protocol}", "ipv4_addr . inet_service : ipv4_addr . inet_service", moved[protocol])
    yield "chain arrival { type nat hook prerouting priority dstnat;"
    yield from rules
    for protocol in ("tcp", "udp"):
        if kept[protocol]:
            yield f"dnat ip to ip daddr . {protocol} dport map @kept_{protocol}"
        if moved[protocol]:
            yield f"dnat ip to ip daddr . {protocol} dport map @moved_{protocol}"
    yield "}"


def _limited(forward: Forward) -> Iterator[str]:
    matched = f"{_from(forward.sources)}ip daddr {forward.address} {forward.protocol} dport"
    if forward.to_port == forward.first:
        yield f"{matched} {_ports(forward.first, forward.last)} dnat ip to {forward.to_address}"
    else:
        yield from (f"{matched} {port} dnat ip to {forward.to_address}:{to}" for port, to in _pairs(forward))


def _translate_sources(config: Config) -> Iterator[str]:
    yield "chain departure { type nat hook postrouting priority srcnat;"
    # A guest that reaches another one by a public address must be answered through the router.
    yield "ip saddr @networks ip daddr @networks ct status dnat masquerade"
    if config.source:
        yield f'oifname "public" ip saddr != @own snat ip to {config.source}'
    yield "}"
    if not config.source:
        yield 'chain bare { type filter hook postrouting priority srcnat; oifname "public" ip saddr != @own drop; }'


def _stretches(config: Config) -> Iterator[str]:
    """Between the guest link and another site: ARP and IPv4 of the range, no DHCP, nothing of the gateway."""
    if not config.stretches:
        return
    yield "table bridge router {"
    yield "chain forward { type filter hook forward priority filter; policy drop;"
    yield 'iifname "vx*" oifname "vx*" drop'
    for stretch in config.stretches:
        for side in ("iifname", "oifname"):
            port, range_ = f'{side} "vx{stretch.vni}"', stretch.range
            yield f"{port} arp saddr ip {stretch.gateway} drop"
            yield f"{port} arp daddr ip {stretch.gateway} drop"
            yield f"{port} ip saddr {stretch.gateway} drop"
            yield f"{port} ip daddr {stretch.gateway} drop"
            yield f"{port} udp dport {{ 67, 68 }} drop"
            yield f"{port} ether type arp arp saddr ip {range_} arp daddr ip {range_} accept"
            yield f"{port} ether type ip ip saddr {range_} ip daddr {range_} accept"
    yield "}"
    yield 'chain input { type filter hook input priority filter; iifname "vx*" drop; }'
    yield 'chain output { type filter hook output priority filter; oifname "vx*" drop; }'
    yield "}"


def _set(name: str, type_: str, elements: Iterable[str]) -> Iterator[str]:
    """A set of ranges, which may lie within each other."""
    listed = ", ".join(elements)
    yield f"set {name} {{ type {type_}; flags interval; auto-merge; {_elements(listed)}}}"


def _map(name: str, type_: str, elements: list[str], flags: str = "") -> Iterator[str]:
    if elements:
        yield f"map {name} {{ type {type_}; {flags}{_elements(', '.join(elements))}}}"


def _elements(listed: str) -> str:
    return f"elements = {{ {listed} }}; " if listed else ""


def _from(sources: tuple[str, ...]) -> str:
    return f"ip saddr {_one_of(sources)} " if sources else ""


def _one_of(ranges: tuple[str, ...]) -> str:
    """Ranges within others are left out: nft refuses a set whose elements overlap."""
    if len(ranges) == 1:
        return ranges[0]
    return f"{{ {', '.join(map(str, collapse_addresses(map(IPv4Network, ranges))))} }}"


def _ports(first: int, last: int) -> str:
    return str(first) if first == last else f"{first}-{last}"


def _pairs(forward: Forward) -> Iterator[tuple[int, int]]:
    for port in range(forward.first, forward.last + 1):
        yield port, forward.to_port + port - forward.first
