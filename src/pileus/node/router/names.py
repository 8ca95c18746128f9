"""DHCP and DNS of a router: the files of dnsmasq. Pure.

``settings`` is read once, at its start; ``leases``, ``hosts`` and ``resolvers`` again whenever it is told to.
"""

from __future__ import annotations

from pileus.node.router.model import Config, Network

FOLDER = "/run/dnsmasq"
"""Not below the folder that only root can look into: dnsmasq is nobody."""

LEASE = "12h"
"""Guests keep their addresses for as long without a router; each asks again after half of it."""

_FIXED = f"""\
user=nobody
group=nogroup
pid-file
keep-in-foreground
bind-dynamic
interface=guest
interface=guests
interface=wg*
no-dhcp-interface=wg*
except-interface=lo
no-resolv
no-hosts
no-poll
servers-file={FOLDER}/resolvers
addn-hosts={FOLDER}/hosts
dhcp-hostsfile={FOLDER}/leases
leasefile-ro
dhcp-authoritative
dhcp-ignore=tag:!known
dhcp-lease-max=8192
no-ping
quiet-dhcp
domain-needed
bogus-priv
cache-size=2000
dns-forward-max=300
"""


def settings(config: Config) -> str:
    """Return dnsmasq.conf: what it serves to whom."""
    lines = []
    for number, network in enumerate(config.networks.values()):
        lines += _network(f"n{number}", network)
    return _FIXED + "".join(f"{line}\n" for line in lines)


def leases(config: Config) -> str:
    """Return the guests' leases, one per MAC."""
    return "".join(_lease(guest.mac, guest.address, guest.names) for guest in config.guests)


def hosts(config: Config) -> str:
    """Return the guests' names; the full name comes first, because the answer to a reverse question is that one."""
    lines = []
    for guest in config.guests:
        domain = config.networks[guest.network].domain
        names = " ".join(f"{name}.{domain} {name}" for name in guest.names)
        if names:
            lines.append(f"{guest.address} {names}\n")
    return "".join(lines)


def resolvers(config: Config) -> str:
    """Return whom to ask for what is not known here; nobody: the answer is "refused", at once."""
    return "".join(f"server={address}\n" for address in config.resolvers)


def _network(tag: str, network: Network) -> list[str]:
    dns = ",".join(network.dns or (network.gateway,))
    return [
        f"dhcp-range=set:{tag},{network.first},static,{network.netmask},{LEASE}",
        f"dhcp-option=tag:{tag},option:router,{network.gateway}",
        f"dhcp-option=tag:{tag},option:dns-server,{dns}",
        f"domain={network.domain},{network.range}",
        f"local=/{network.domain}/",
    ]


def _lease(mac: str, address: str, names: tuple[str, ...]) -> str:
    return f"{mac},{address},{names[0]}\n" if names else f"{mac},{address}\n"
