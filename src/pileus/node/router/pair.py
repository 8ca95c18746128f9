"""A router's part in a redundant pair: the configurations of keepalived and conntrackd. Pure.

The active one holds every shared address, on both links, and the default route: they move together. Connections are
told to the standby as they change and lie in its kernel already when it takes over.
"""

from __future__ import annotations

from collections.abc import Iterator

from pileus.node.router.firewall import SYNC_PORT
from pileus.node.router.links import guest_interface
from pileus.node.router.model import Address, Config, Pair

STATE = "/run/pileus/pair"
"""Holds what keepalived said last: MASTER, BACKUP, FAULT or STOP."""

ADVERT_S = 0.6
"""The standby takes over after three missed adverts and a part of one: within 2.4 s."""

YIELDING = 1
"""The priority of one that hands over: it takes the addresses back only when nobody else is there."""


_GLOBAL = (
    "global_defs {",
    "    vrrp_version 3",
    "    dynamic_interfaces",
    "    vrrp_garp_master_repeat 3",
    "    vrrp_garp_master_refresh 30",
    "    script_user root",
    "    enable_script_security",
    "}",
)


def keepalived(config: Config, pair: Pair) -> str:
    """Return keepalived.conf. Source: keepalived.conf(5)."""
    return "".join(f"{line}\n" for line in _keepalived(config, pair))


def conntrackd(config: Config, pair: Pair) -> str:
    """Return conntrackd.conf: what passes through is told to the other; what ends here is not.

    Source: conntrackd.conf(5): without an external cache, states are put into the kernel as they come.
    """
    own = pair.own.partition("/")[0]
    here = [own, pair.peer, "127.0.0.1", *(address.address for address in config.addresses)]
    ignored = "".join(f"            IPv4_address {address}\n" for address in here)
    return f"""\
Sync {{
    Mode FTFW {{
        ResendQueueSize 4096
        DisableExternalCache On
        StartupResync yes
    }}
    UDP {{
        IPv4_address {own}
        IPv4_Destination_Address {pair.peer}
        Port {SYNC_PORT}
        Interface {guest_interface(config)}
        SndSocketBuffer 262144
        RcvSocketBuffer 262144
        Checksum on
    }}
}}
General {{
    HashSize 4096
    HashLimit 16384
    LockFile /run/pileus/conntrackd.lock
    UNIX {{
        Path /run/pileus/conntrackd.ctl
    }}
    NetlinkBufferSize 524288
    NetlinkBufferSizeMaxGrowth 2097152
    Filter From Kernelspace {{
        Protocol Accept {{
            TCP
            UDP
            ICMP
        }}
        Address Ignore {{
{ignored}        }}
    }}
}}
"""


def _keepalived(config: Config, pair: Pair) -> Iterator[str]:
    yield from _GLOBAL
    yield "vrrp_instance pair {"
    yield "    state BACKUP"
    if not pair.yields:
        yield "    nopreempt"
    yield f"    interface {guest_interface(config)}"
    yield f"    virtual_router_id {pair.router_id}"
    yield f"    priority {YIELDING if pair.yields else pair.priority}"
    yield f"    advert_int {ADVERT_S}"
    yield f"    unicast_src_ip {pair.own.partition('/')[0]}"
    yield f"    unicast_peer {{\n        {pair.peer}\n    }}"
    yield from _held(config)
    yield '    notify "/lib/pileus/pair-state"'
    yield "}"


def _held(config: Config) -> Iterator[str]:
    """What the active one has: addresses of both links, and the way out."""
    shared = [address for address in config.addresses if address.is_shared]
    interface = guest_interface(config)
    # An advert names only these, which both sides always agree on; the others may be changing.
    yield from _addresses("virtual_ipaddress", shared[:1], interface)
    yield from _addresses("virtual_ipaddress_excluded", shared[1:], interface)
    gateway = next((address.gateway for address in shared if address.gateway), "")
    if gateway:
        yield "    virtual_routes {"
        yield f"        0.0.0.0/0 via {gateway} dev public onlink"
        yield "    }"


def _addresses(block: str, addresses: list[Address], guest: str) -> Iterator[str]:
    if addresses:
        yield f"    {block} {{"
        for address in addresses:
            yield f"        {address.address}/{address.prefix} dev {guest if address.link == 'guest' else 'public'}"
        yield "    }"
