"""Documents of routers for tests: 10.1.1.0/24 behind 203.0.113.5."""

from __future__ import annotations

from typing import Any

Json = dict[str, Any]

WEB_MAC, DB_MAC = "52:54:00:01:00:01", "52:54:00:01:00:02"


def macs(number: int = 1) -> tuple[str, str]:
    """Return the MACs of the guest and the public NIC of router ``number``."""
    return f"52:54:00:00:{number:02x}:01", f"52:54:00:00:{number:02x}:02"


def router(number: int = 1, *, net: int = 1, public: str = "203.0.113.5", **more: Json) -> Json:
    """Return the document of a router with the guests web (.10) and db (.11) in 10.1.``net``.0/24."""
    guest, outside = macs(number)
    return {
        "node": {"self": {"hostname": f"router-{number}"}},
        "links": {"guest": {"mac": guest}, "public": {"mac": outside}},
        "addresses": {
            f"10.1.{net}.1": {"link": "guest", "prefix": 24},
            public: {"link": "public", "prefix": 24, "gateway": "203.0.113.1"},
        },
        "networks": {
            "n1": {"range": f"10.1.{net}.0/24", "gateway": f"10.1.{net}.1", "domain": "a.acme.internal", "dns": []}
        },
        "hosts": {
            WEB_MAC: {"network": "n1", "address": f"10.1.{net}.10", "names": ["web"]},
            DB_MAC: {"network": "n1", "address": f"10.1.{net}.11", "names": ["db"]},
        },
        "nat": {"source": {"address": public}},
        **more,
    }


def forward(outside: int, inside: int, *, last: int = 0, to: str = "10.1.1.10", sources: tuple[str, ...] = ()) -> Json:
    """Return an entry of ``forwards``."""
    ports = {"port_first": outside, "port_last": last or outside, "to_port": inside}
    return {"address": "203.0.113.5", "protocol": "tcp", "to_address": to, "sources": list(sources), **ports}


def balancer(protocol: str = "http", port: int = 80) -> Json:
    """Return an entry of ``balancers`` over web and db."""
    return {
        "address": "203.0.113.5",
        "port": port,
        "protocol": protocol,
        "algorithm": "round-robin",
        "members": {"web:80": {"address": "10.1.1.10", "port": 80}, "db:80": {"address": "10.1.1.11", "port": 80}},
        "check": {"protocol": protocol, "path": "/", "interval_ms": 1000, "fall": 2, "rise": 2},
        "sources": [],
    }


def rule(direction: str, action: str, **more: Any) -> Json:
    """Return an entry of ``firewall``."""
    fields = {"network": "", "protocol": "any", "remotes": [], "locals": [], "port_first": 0, "port_last": 0}
    return {"direction": direction, "action": action, **fields, **more}


def redundant(document: Json, own: int) -> Json:
    """Return the document of one of a pair (1 or 2), with all addresses shared."""
    guest, outside = macs(own)
    shared = {address: {**entry, "shared": True} for address, entry in document["addresses"].items()}
    pair = {"router_id": 7, "priority": 100 + own, "own": f"169.254.1.{own}/30", "peer": f"169.254.1.{3 - own}"}
    links = {"guest": {"mac": guest}, "public": {"mac": outside}}
    return {**document, "links": links, "addresses": shared, "redundancy": {"pair": pair}}


def large(guests: int, rules: int) -> Json:
    """Return a document with so many guests and rules."""
    document = router()
    document["networks"]["n2"] = {"range": "10.2.0.0/16", "gateway": "10.2.0.1", "domain": "b.acme.internal", "dns": []}
    document["addresses"]["10.2.0.1"] = {"link": "guest", "prefix": 16}
    for number in range(guests):
        high, low = divmod(number, 200)
        entry = {"network": "n2", "address": f"10.2.{high}.{low + 10}", "names": [f"vm{number}"]}
        document["hosts"][f"52:54:00:02:{high:02x}:{low:02x}"] = entry
    document["firewall"] = {
        f"r,{number:04d}": rule(
            "ingress",
            "drop",
            protocol="tcp",
            remotes=[f"198.18.{number % 250}.0/24"],
            port_first=1000 + number,
            port_last=1000 + number,
        )
        for number in range(rules)
    }
    return document
