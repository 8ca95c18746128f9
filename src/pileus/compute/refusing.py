"""Why hosts do not take a machine, grouped; and the parts of a machine's need by server. Pure."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from math import inf
from typing import NamedTuple

from pileus.compute.offers import Machine, Offer, Refusal, ServerKind
from pileus.compute.room import Need, Room, together

FIRST = 3
"""So many names are given of the hosts that refuse for one reason."""
WORDS = {
    "memory_mib": ("NoMemory", "MiB of memory"),
    "vcpus": ("NoVcpus", "vCPUs"),
    "rate_kbps": ("NoRate", "kbit/s of its network"),
    "disk_gib": ("NoDisk", "GiB of disk"),
    "iops": ("NoIops", "disk operations a second"),
}


class Parts(NamedTuple):
    """What a machine needs of each server; what it needs none of is left out."""

    host: Need
    pool: Need
    networks: Need
    whole: Need
    """Of a host that has no pool: what it needs of host and pool."""

    @classmethod
    def of(cls, machine: Machine) -> Parts:
        """Return the parts of a machine's need."""
        host = tuple((name, getattr(machine, name)) for name in ("memory_mib", "vcpus", "rate_kbps"))
        pool = tuple((name, getattr(machine, name)) for name in ("disk_gib", "iops"))
        host, pool = tuple(each for each in host if each[1] > 0), tuple(each for each in pool if each[1] > 0)
        return cls(host, pool, tuple(sorted(Counter(machine.networks).items())), host + pool)

    def servers(self, machine: Machine, host: Offer, images: str) -> list[tuple[str, dict[str, int], str]]:
        """Return what each server gives: its id, how much, and of the host the group."""
        found = [(host.server, dict(self.host if host.pool else self.whole), machine.apart)]
        if host.pool and self.pool:
            found.append((host.pool, dict(self.pool), ""))
        if images:
            found.append((images, {machine.image: 1}, ""))
        return found + [(network, {"addresses": count}, "") for network, count in self.networks]


def usable(offer: Offer, kind: ServerKind, machine: Machine, zone: str) -> bool:
    """Tell whether a pool, network or image server serves such a machine in ``zone``, room left aside."""
    return (
        offer.kind == kind
        and not offer.refuses
        and offer.zone in ("", zone)
        and (machine.service == "best-effort" or offer.service == "guaranteed")
    )


def said(reason: str, message: str) -> Refusal:
    """Return a refusal that is not about hosts."""
    return Refusal(reason=reason, message=message, count=0, first=())


def refusals(
    machine: Machine, offers: Mapping[str, Offer], room: Callable[[str], Room], now: float
) -> tuple[Refusal, ...]:
    """Return why no host takes the machine, each host in one of them; the reason of most hosts first."""
    names: dict[tuple[str, str], list[str]] = defaultdict(list)
    judge = _Judge(machine, offers, room, now)
    for offer in offers.values():
        if offer.kind == "host":
            names[judge.why(offer)].append(offer.name)
    if not names:
        return (said("NoHost", "there is no host yet"),)
    grouped = [
        Refusal(reason=reason, message=message, count=len(hosts), first=tuple(sorted(hosts)[:FIRST]))
        for (reason, message), hosts in names.items()
    ]
    return tuple(sorted(grouped, key=lambda each: (-each.count, each.reason, each.message)))


class _Judge:
    """Says why a host does not take a machine."""

    def __init__(self, machine: Machine, offers: Mapping[str, Offer], room: Callable[[str], Room], now: float) -> None:
        self._machine = machine
        self._offers = offers
        self._room = room
        self._window = (max(machine.start_from, now), machine.start_by, machine.duration_s or inf)
        self._parts = Parts.of(machine)
        self._shared: dict[str, tuple[str, str] | None] = {}

    def why(self, offer: Offer) -> tuple[str, str]:
        """Return the reason and words for it."""
        if offer.zone not in self._shared:
            self._shared[offer.zone] = self._network(offer.zone) or self._image(offer.zone)
        return (
            self._host(offer)
            or self._scarce(offer.server, self._parts.host if offer.pool else self._parts.whole)
            or self._pool(offer)
            or self._shared[offer.zone]
            or ("NoCommonTime", "it has room, but not when all others that the machine needs have")
        )

    def _host(self, offer: Offer) -> tuple[str, str] | None:
        machine = self._machine
        checks = (
            (machine.zone not in ("", offer.zone), "OtherZone", "is in another zone"),
            (
                bool(machine.only_host) and offer.server != machine.only_host,
                "VolumeElsewhere",
                "another host is wished",
            ),
            (bool(offer.refuses), offer.refuses, "takes no machines now"),
            (offer.server in machine.not_on, "RefusedBefore", "refused one of the machines"),
            (machine.role not in offer.roles, f"Not{machine.role.capitalize()}", f"is not for {machine.role}"),
            (machine.uefi == "yes" and offer.uefi == "no", "NoUefi", "has no UEFI firmware"),
            (
                machine.service != "best-effort" and offer.service != "guaranteed",
                "BestEffortOnly",
                "guarantees nothing",
            ),
        )
        return next(((reason, message) for refused, reason, message in checks if refused), None)

    def _scarce(self, server: str, need: Need) -> tuple[str, str] | None:
        room = self._room(server)
        if room.earliest((), *self._window) is None:
            return "NotInTime", "is not there for as long, or not when it may start"
        for name, amount in need:
            if room.earliest(((name, amount),), *self._window) is None:
                reason, unit = WORDS[name]
                return reason, f"{amount} {unit} are needed and not free when it may start"
        if room.earliest(need, *self._window) is None:
            return "NoCommonTime", "what it needs is free, but never at the same time"
        return None

    def _pool(self, offer: Offer) -> tuple[str, str] | None:
        if not offer.pool or not self._parts.pool:
            return None
        pool = self._offers.get(offer.pool)
        if pool is None or not usable(pool, "pool", self._machine, offer.zone):
            return "NoPool", "its pool takes no such volumes now"
        return self._scarce(offer.pool, self._parts.pool)

    def _network(self, zone: str) -> tuple[str, str] | None:
        for network, count in self._parts.networks:
            offer = self._offers.get(network)
            if offer is None or not usable(offer, "network", self._machine, zone):
                return "NoNetwork", f"network {offer.name if offer else network} is not to be had there"
            need = (("addresses", count),)
            if self._room(network).earliest(need, *self._window) is None:
                return "NoAddress", f"network {offer.name} has no address left when it may start"
        return None

    def _image(self, zone: str) -> tuple[str, str] | None:
        image = self._machine.image
        if not image:
            return None
        servers = [
            offer.server
            for offer in self._offers.values()
            if offer.kind == "images"
            and offer.quantity.get(image, 0) > 0
            and usable(offer, "images", self._machine, zone)
        ]
        parts = [[(self._room(server), ((image, 1),))] for server in servers]
        if all(together(part, *self._window) is None for part in parts):
            return "NoImage", "no server has the image there"
        return None
