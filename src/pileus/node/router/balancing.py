"""The balancers of a router: haproxy's configuration, and what haproxy says of the members. Pure."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator

from pileus.node.router.model import Balancer

SOCKET = "/run/pileus/haproxy.sock"

_ALGORITHMS = {"round-robin": "roundrobin", "least-connections": "leastconn", "source": "source"}

_FIXED = f"""\
global
    user nobody
    group nogroup
    nbthread 1
    maxconn 1000
    tune.bufsize 8192
    hard-stop-after 1h
    stats socket {SOCKET} mode 600 level operator expose-fd listeners
defaults
    timeout connect 2s
    timeout check 1s
    timeout client 10m
    timeout server 10m
    timeout tunnel 1h
    timeout http-request 10s
    timeout http-keep-alive 10s
    timeout queue 5s
    option redispatch 1
    option dontlognull
    retries 3
"""


def settings(balancers: Iterable[Balancer]) -> str:
    """Return haproxy.cfg. A balancer is number in it, so that no name of anybody gets there."""
    lines = [line for number, balancer in enumerate(balancers) for line in _balancer(number, balancer)]
    return _FIXED + "".join(f"{line}\n" for line in lines)


def health(stats: str, balancers: tuple[Balancer, ...]) -> dict[str, dict[str, str]]:
    """Return ``up`` or ``down`` of each member, from the answer to ``show stat``.

    Source: haproxy management guide, 9.1: CSV with names in its first line, status "UP", "UP 1/2", "DOWN", "no check".
    """
    said = {
        (row["pxname"], row["svname"]): "up" if row["status"].startswith(("UP", "no check")) else "down"
        for row in csv.DictReader(stats.removeprefix("# ").splitlines())
        if row.get("svname", "").startswith("m")
    }
    return {
        balancer.id: {
            member.id: said[key]
            for place, member in enumerate(balancer.members)
            if (key := (f"b{number}", f"m{place}")) in said
        }
        for number, balancer in enumerate(balancers)
    }


def _balancer(number: int, balancer: Balancer) -> Iterator[str]:
    check = balancer.check
    yield f"listen b{number}"
    yield f"    bind {balancer.address}:{balancer.port}"
    yield f"    mode {balancer.protocol}"
    yield f"    balance {_ALGORITHMS[balancer.algorithm]}"
    if balancer.algorithm == "source":
        yield "    hash-type consistent"
    if balancer.protocol == "http":
        # What the client itself says of its origin is worth nothing to a member.
        yield "    http-request set-header X-Forwarded-For %[src]"
    if check.protocol == "http":
        yield "    option httpchk"
        yield f"    http-check send meth GET uri {check.path}"
    # Once one check failed, the next ones come faster.
    faster = min(check.interval_ms, 500)
    words = f"check inter {check.interval_ms}ms fastinter {faster}ms fall {check.fall} rise {check.rise}"
    for place, member in enumerate(balancer.members):
        yield f"    server m{place} {member.address}:{member.port} {words}"
