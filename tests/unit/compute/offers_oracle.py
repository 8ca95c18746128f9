"""A second, slow reading of what choosing promises: whole seconds up to ``HORIZON``, every host tried at every second."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import product
from math import inf
from random import Random
from typing import Any

from msgspec.structs import replace

from pileus.compute.offers import Chosen, Held, Machine, Offer

HORIZON = 24
"""Later than anything that the strategies make; no end is here."""


class World:
    """What is free of each server at each second."""

    def __init__(self, offers: Sequence[Offer], held: Sequence[Held], now: int) -> None:
        self.offers = {offer.server: offer for offer in offers}
        self.now = now
        self.free = {
            (offer.server, name): [amount] * HORIZON for offer in offers for name, amount in offer.quantity.items()
        }
        self.members: Counter[tuple[str, str]] = Counter()
        for each in held:
            self.put(each)

    def put(self, held: Held) -> None:
        """Take what is held."""
        offer = self.offers.get(held.server)
        if offer is None or offer.kind == "images":
            return
        self.members[(held.apart, held.server)] += 1
        for name, amount in held.quantity.items():
            steps = self.free.get((held.server, name), [])
            for second in range(int(max(held.start, 0)), len(steps)):
                steps[second] -= amount if second < held.until else 0

    def below_nothing(self) -> list[tuple[str, str]]:
        """Return what is taken more often than it is there, from now on."""
        return [key for key, steps in self.free.items() if min(steps[self.now :]) < 0]

    def has(self, server: str, name: str, amount: int, start: int, until: float) -> bool:
        """Tell whether so much is free all the time, and the server is there."""
        offer = self.offers.get(server)
        if offer is None or offer.start > start or until > offer.until:
            return False
        steps = self.free.get((server, name))
        if steps is None:
            return amount == 0 or name in ("iops", "rate_kbps")
        return amount == 0 or min(steps[start : int(min(until, HORIZON))]) >= amount

    def serves(self, server: str, machine: Machine, zone: str) -> bool:
        """Tell whether a server would, were there room."""
        offer = self.offers.get(server)
        if offer is None or offer.refuses or offer.zone not in ("", zone):
            return False
        return offer.service == "guaranteed" or machine.service == "best-effort"

    def fits(self, machine: Machine, host: str, start: int) -> bool:
        """Tell whether the machine can run there from ``start``."""
        offer = self.offers[host]
        until = start + machine.duration_s if machine.duration_s else inf
        if (
            not self.serves(host, machine, offer.zone)
            or machine.zone not in ("", offer.zone)
            or machine.only_host not in ("", host)
            or machine.role not in offer.roles
            or (machine.uefi == "yes" and offer.uefi == "no")
        ):
            return False
        disks = offer.pool or host
        if (machine.disk_gib or machine.iops) and not self.serves(disks, machine, offer.zone):
            return False
        needs = [(host, name, getattr(machine, name)) for name in ("vcpus", "memory_mib", "rate_kbps")]
        needs += [(disks, name, getattr(machine, name)) for name in ("disk_gib", "iops") if getattr(machine, name)]
        needs += [(network, "addresses", count) for network, count in Counter(machine.networks).items()]
        images = [each.server for each in self.offers.values() if each.kind == "images"]
        return (
            all(self.serves(network, machine, offer.zone) for network in machine.networks)
            and all(self.has(server, name, amount, start, until) for server, name, amount in needs)
            and (
                not machine.image
                or any(
                    self.serves(each, machine, offer.zone)
                    and self.offers[each].quantity.get(machine.image, 0) > 0
                    and self.has(each, machine.image, 1, start, until)
                    for each in images
                )
            )
        )

    def starts(self, machine: Machine) -> range:
        """Return the seconds at which the machine may start."""
        return range(int(max(machine.start_from, self.now)), int(min(machine.start_by, HORIZON - 1)) + 1)

    def places(self, machine: Machine) -> list[tuple[tuple[int, bool, int, int, str], str, int]]:
        """Return every host and second that will do, best first by what counts."""
        hosts = [offer for offer in self.offers.values() if offer.kind == "host"]
        found = []
        for offer, start in product(hosts, self.starts(machine)):
            if self.fits(machine, offer.server, start):
                left = min(self.free[(offer.server, "memory_mib")][self.now :])
                members = self.members[(machine.apart, offer.server)] if machine.apart else 0
                key = (start, offer.service != "guaranteed", members, -left, offer.server)
                found.append((key, offer.server, start))
        return sorted(found)

    def run(self, machine: Machine, host: str, start: int) -> None:
        """Let the machine have what it needs there."""
        until = start + machine.duration_s if machine.duration_s else inf
        for server, quantity, apart in needs_of(machine, self.offers[host]):
            self.put(Held(server=server, quantity=quantity, start=start, until=until, apart=apart))


def needs_of(machine: Machine, host: Offer) -> list[tuple[str, dict[str, int], str]]:
    """Return what the machine takes of each server but images."""
    hosts = {name: getattr(machine, name) for name in ("vcpus", "memory_mib", "rate_kbps")}
    disks = {name: getattr(machine, name) for name in ("disk_gib", "iops")}
    networks = [(network, {"addresses": count}, "") for network, count in Counter(machine.networks).items()]
    return [(host.server, hosts, machine.apart), (host.pool or host.server, disks, ""), *networks]


def copied(world: World) -> World:
    """Return a world that changes by itself."""
    made = World(list(world.offers.values()), (), world.now)
    made.free = {key: list(steps) for key, steps in world.free.items()}
    made.members = Counter(world.members)
    return made


def all_fit(world: World, machines: Sequence[Machine], start: int) -> bool:
    """Tell whether there is any way for all machines to start at ``start``."""
    if not machines:
        return True
    hosts = [offer.server for offer in world.offers.values() if offer.kind == "host"]
    for host in hosts:
        if start in world.starts(machines[0]) and world.fits(machines[0], host, start):
            further = copied(world)
            further.run(machines[0], host, start)
            if all_fit(further, machines[1:], start):
                return True
    return False


def whole(world: World, chosen: Sequence[Chosen]) -> World:
    """Return the world in which all that was chosen is held as well."""
    made = copied(world)
    for each in chosen:
        for held in each.held:
            made.put(held)
    return made


def usually(chance: Random, usual: Any, *others: Any) -> Any:
    """Return the usual value nine times in ten."""
    return usual if chance.random() < 0.9 else chance.choice(others)


def _span(chance: Random) -> tuple[float, float]:
    start = chance.randint(0, 6)
    return start, chance.choice([inf, start + 2, start + 6])


def some_offers(chance: Random) -> list[Offer]:
    """Return up to four hosts, two pools, two networks and two image servers."""
    return [
        _offer(chance, kind, number)
        for kind, least, most in (("host", 1, 4), ("pool", 2, 2), ("network", 2, 2), ("images", 1, 2))
        for number in range(chance.randint(least, most))
    ]


def _offer(chance: Random, kind: Any, number: int) -> Offer:
    start, until = _span(chance) if chance.random() < 0.2 else (0, inf)
    names = {"host": ["vcpus", "memory_mib", "disk_gib"], "pool": ["disk_gib"], "network": ["addresses"], "images": []}
    offer = Offer(
        server=f"{kind}{number}",
        kind=kind,
        name=f"{kind}-{number}",
        quantity={name: chance.randint(1, 8) for name in names[kind]},
        zone=usually(chance, "z" if kind == "host" else "", "y", "z"),
        start=start,
        until=until,
        service=usually(chance, "guaranteed", "best-effort"),
        refuses=usually(chance, "", "Cordoned"),
    )
    if kind == "images":
        return replace(offer, quantity={"i": usually(chance, 1, 0), "k": 1})
    if kind != "host":
        return offer
    rate = {"rate_kbps": chance.randint(1, 4)} if chance.random() < 0.5 else {}
    return replace(
        offer,
        quantity={**offer.quantity, **rate},
        pool=chance.choice(["", "pool0", "pool1"]),
        roles=usually(chance, ("compute", "routing"), ("compute",), ("storage",)),
        uefi=usually(chance, "yes", "no"),
    )


HELD = {
    "host0": "memory_mib", "host1": "vcpus", "host2": "memory_mib", "host3": "memory_mib", "pool0": "disk_gib",
    "pool1": "disk_gib", "network0": "addresses",
}  # fmt: skip


def some_held(chance: Random) -> list[Held]:
    """Return what is held already: sometimes more than there is."""
    made = []
    for server in chance.choices(sorted(HELD), k=chance.randint(0, 8)):
        start, until = _span(chance)
        apart = "g" if server.startswith("host") and chance.random() < 0.5 else ""
        quantity = {HELD[server]: chance.randint(0, 4)}
        made.append(Held(server=server, quantity=quantity, start=start, until=until, apart=apart))
    return made


def _need(chance: Random) -> Machine:
    start = chance.choice([0, 0, 2])
    return Machine(
        number=0,
        vcpus=chance.randint(1, 2),
        memory_mib=chance.randint(1, 3),
        disk_gib=chance.randint(0, 2),
        rate_kbps=usually(chance, 0, 1),
        service=usually(chance, "guaranteed", "best-effort"),
        image=chance.choice(["", "", "i"]),
        networks=chance.choice([(), (), ("network0",), ("network0", "network1"), ("network0", "network0")]),
        zone=chance.choice(["z", "z", ""]),
        start_from=start,
        start_by=start + chance.choice([1, 4, 5, 8]),
        duration_s=chance.choice([0, 1, 2, 5]),
        role=usually(chance, "compute", "routing"),
        uefi=usually(chance, "no", "yes"),
        only_host=usually(chance, "", "host0"),
        apart=chance.choice(["", "g"]),
    )


def alike(chance: Random, most: int = 4) -> list[Machine]:
    """Return machines that need the same."""
    need = _need(chance)
    return [replace(need, number=number) for number in range(chance.randint(1, most))]


def different(chance: Random, most: int = 5) -> list[Machine]:
    """Return machines that may need different things."""
    return [replace(_need(chance), number=number) for number in range(chance.randint(1, most))]
