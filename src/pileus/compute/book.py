"""Offers in the order in which hosts are looked at, so that few of thousands are. Pure."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from math import inf
from typing import NamedTuple

from pileus.compute.offers import Held, Machine, Offer
from pileus.compute.room import Room

NEEDED = {"host": ("vcpus", "memory_mib"), "pool": ("disk_gib",), "network": ("addresses",), "images": ()}
"""Quantities that are 0 where an offer does not name them."""

Load = tuple[int, int, str]
"""A host in the order in which it is looked at: guaranteed before best effort, then by memory, then its id."""


class Shelf(NamedTuple):
    """What hosts have in common that a machine may ask for, and (nearly) the most vCPUs that they will have free."""

    zone: str
    service: str
    roles: tuple[str, ...]
    uefi: str
    vcpus: int


class Book:
    """Offers, and what is held of them: made once, asked many times. ``choose`` leaves it as it is, ``take`` does not.

    Made for some seconds: hours that pass meanwhile still count as ahead, in what a host has left, until it is touched.
    Raises: ValueError when a server has two offers.
    """

    def __init__(self, offers: Iterable[Offer], held: Iterable[Held] = (), now: float = 0.0) -> None:
        self.offers: dict[str, Offer] = {}
        for offer in offers:
            if self.offers.setdefault(offer.server, offer) is not offer:
                raise ValueError(f"two offers of {offer.server}")
        self.rooms = _Rooms(self.offers)
        self.members: Counter[tuple[str, str]] = Counter()
        """Machines of a group on a host."""
        self.zones: dict[str, dict[Shelf, list[Load]]] = defaultdict(lambda: defaultdict(list))
        """Hosts by zone and by what they have in common, in the order in which they are looked at."""
        self.images: list[str] = []
        """Servers of images, those that guarantee first."""
        self._places: dict[str, tuple[Shelf, Load]] = {}
        for each in held:
            self._change(each, 1)
        for room in self.rooms.values():
            room.forget(now)
        for server, offer in self.offers.items():
            if offer.kind == "host" and not offer.refuses:
                self._places[server] = place = self._place(offer)
                self.zones[offer.zone][place[0]].append(place[1])
        for shelf in (shelf for shelves in self.zones.values() for shelf in shelves.values()):
            shelf.sort()
        self._sort_images()

    def hosts(self, need: Machine) -> list[list[Load]]:
        """Return the hosts that may do for such a machine, room left aside; each list in order."""
        if need.only_host:
            place = self._places.get(need.only_host)
            return [[place[1]]] if place is not None and _may_do(place[0], need) else []
        zones = [self.zones.get(need.zone, {})] if need.zone else list(self.zones.values())
        return [hosts for shelves in zones for shelf, hosts in shelves.items() if _may_do(shelf, need)]

    def take(self, held: Iterable[Held], now: float) -> None:
        """Hold more, such as what was chosen."""
        self._all(held, 1, now)

    def give(self, held: Iterable[Held], now: float) -> None:
        """Hold something no longer; it says the same as when it was taken."""
        self._all(held, -1, now)

    def put(self, offer: Offer) -> None:
        """Take a server's offer as it is now; what is held of it is not in its quantity any more."""
        self._unshelve(offer.server)
        self.offers[offer.server] = offer
        self.rooms.pop(offer.server, None)
        if offer.kind == "host" and not offer.refuses:
            self._places[offer.server] = place = self._place(offer)
            insort(self.zones[offer.zone][place[0]], place[1])
        if offer.kind == "images":
            self._sort_images()

    def drop(self, server: str) -> None:
        """Forget a server that offers nothing any more, and what is held of it."""
        self._unshelve(server)
        self.rooms.pop(server, None)
        if self.offers.pop(server).kind == "images":
            self._sort_images()

    def _unshelve(self, server: str) -> None:
        if server in self._places:
            shelf, load = self._places.pop(server)
            hosts = self.zones[shelf.zone][shelf]
            del hosts[bisect_left(hosts, load)]

    def _sort_images(self) -> None:
        servers = (offer for offer in self.offers.values() if offer.kind == "images")
        self.images = [
            each.server for each in sorted(servers, key=lambda each: (each.service != "guaranteed", each.server))
        ]

    def _all(self, held: Iterable[Held], sign: int, now: float) -> None:
        for each in held:
            self._change(each, sign)
            if each.server in self.offers:
                self.rooms[each.server].forget(now)
            if each.server in self._places:
                self._shelve(each.server)

    def _change(self, held: Held, sign: int) -> None:
        offer = self.offers.get(held.server)
        if offer is not None and offer.kind != "images":
            quantity = {name: sign * amount for name, amount in held.quantity.items()}
            self.rooms[held.server].take(quantity, held.start, held.until)
            if held.apart:
                self.members[(held.apart, held.server)] += sign

    def _place(self, offer: Offer) -> tuple[Shelf, Load]:
        if offer.server in self.rooms:
            room = self.rooms[offer.server]
            vcpus, memory_mib = room.ceiling("vcpus"), room.floor["memory_mib"]
        else:
            vcpus, memory_mib = offer.quantity.get("vcpus", 0), offer.quantity.get("memory_mib", 0)
        rank = 0 if offer.service == "guaranteed" else 1
        shelf = Shelf(offer.zone, offer.service, offer.roles, offer.uefi, _class(vcpus))
        return shelf, (rank, -memory_mib, offer.server)

    def _shelve(self, server: str) -> None:
        before, load = self._places[server]
        self._places[server] = after = self._place(self.offers[server])
        if after != (before, load):
            zone = self.zones[before.zone]
            del zone[before][bisect_left(zone[before], load)]
            insort(zone[after[0]], after[1])


class _Rooms(dict[str, Room]):
    """What is free of each server, made when it is asked for: most are never."""

    def __init__(self, offers: Mapping[str, Offer]) -> None:
        super().__init__()
        self._offers = offers

    def __missing__(self, server: str) -> Room:
        offer = self._offers[server]
        needed = NEEDED[offer.kind] + (("disk_gib",) if offer.kind == "host" and not offer.pool else ())
        start = offer.start if offer.start > 0 else -inf
        room = self[server] = Room({**dict.fromkeys(needed, 0), **offer.quantity}, start, offer.until)
        return room


def _class(vcpus: int) -> int:
    """Return a number that is no less for more vCPUs; few different ones."""
    return max(vcpus, 0) if vcpus < 32 else 26 + vcpus.bit_length()


def _may_do(shelf: Shelf, need: Machine) -> bool:
    return (
        need.zone in ("", shelf.zone)
        and (need.service == "best-effort" or shelf.service == "guaranteed")
        and need.role in shelf.roles
        and (need.uefi == "no" or shelf.uefi == "yes")
        and shelf.vcpus >= _class(need.vcpus)
    )
