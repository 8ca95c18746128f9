"""Which servers serve which machines, and from when on: pure and deterministic, for thousands of servers.

Among the hosts that can serve a machine these count, in this order: the earliest start in its window; a server that
guarantees before one that does its best; fewest machines of the group that should stay apart; the most memory left at
its fullest hour ahead (spreads load and failures); the lower id. With a host go its pool, the machine's networks and a
server of its image, and a start counts only when all of them have room from then on until the machine's end.

Guaranteed machines are chosen for first. Then, all-or-nothing: those that may go to one host only, then the largest,
and all start at the same moment, the earliest at which all fit. Best effort: the smallest first, each as early as it can.
Where machines of a few different sizes do not fit when spread, they are tried once more in the fullest hosts first.
That is no proof: machines of different sizes might fit in a way that was not tried. Those that are alike do not.
"""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from math import inf
from typing import Literal, NamedTuple

from msgspec.structs import replace

from pileus.compute.book import Book, Load
from pileus.compute.offers import (
    OTHERS_REFUSED,
    Choice,
    Chosen,
    Held,
    Machine,
    Mode,
    Offer,
    Refusal,
    Refused,
    contradiction,
)
from pileus.compute.refusing import Parts, refusals, said, usable
from pileus.compute.room import Either, Need, Room, When, together

ROUNDS_MAX = 50
"""How often a later common start is tried."""
DIFFERENT_MAX = 16
"""Of so many different needs in one choice it is tried to pack them, and said host by host why they find no place."""


def choose(
    machines: Sequence[Machine], offers: Iterable[Offer] | Book, mode: Mode, now: float, held: Iterable[Held] = ()
) -> Choice:
    """Return where and when the machines run, else why not; the same for any order of what is given.

    ``held`` is what is taken of the offers already; a book knows that itself. Raises: ValueError when two machines have
    the same number, or a server two offers.
    """
    if len({machine.number for machine in machines}) < len(machines):
        raise ValueError("two machines have the same number")
    book = offers if isinstance(offers, Book) else Book(offers, held, now)
    impossible = {machine.number: words for machine in machines if (words := contradiction(machine, now))}
    if impossible and mode == "all-or-nothing":
        attempt = _Attempt(book, now)
    else:
        attempt = _best(book, [each for each in machines if each.number not in impossible], mode, now)
    attempt.spoil("Contradiction", impossible)
    refused, chosen = attempt.why(), sorted(attempt.chosen, key=lambda each: each.number)
    if mode == "best-effort" or not refused:
        return Choice(chosen=tuple(chosen), refused=refused)
    fitting = sorted({machine.number for machine in machines} - attempt.failed.keys() - attempt.spoilt.keys())
    alone = Refused(machines=tuple(fitting), refusals=(said(OTHERS_REFUSED, "others of the machines find no place"),))
    return Choice(chosen=(), refused=(*refused, alone) if fitting else refused)


def _best(book: Book, machines: Sequence[Machine], mode: Mode, now: float) -> _Attempt:
    attempt = _try(book, machines, mode, now, packed=False)
    different = len({replace(machine, number=0) for machine in machines})
    if len(attempt.chosen) == len(machines) or not 1 < different <= DIFFERENT_MAX:
        return attempt
    other = _try(book, machines, mode, now, packed=True)
    return other if len(other.chosen) > len(attempt.chosen) else attempt


def _try(book: Book, machines: Sequence[Machine], mode: Mode, now: float, *, packed: bool) -> _Attempt:
    if mode == "best-effort":
        attempt = _Attempt(book, now, packed=packed)
        attempt.place_all(sorted(machines, key=_smallest_first))
        return attempt
    ordered = sorted(machines, key=_largest_first)
    start = max((machine.start_from for machine in ordered), default=now)
    end = min((machine.start_by for machine in ordered), default=inf)
    attempt = _Attempt(book, now, packed=packed)
    if max(start, now) > end:
        attempt.spoil("NoCommonTime", {each.number: "the windows of the machines never meet" for each in ordered})
        return attempt
    for _ in range(ROUNDS_MAX):
        wished = [replace(machine, start_from=start, start_by=end) for machine in ordered]
        attempt = _Attempt(book, now, packed=packed)
        attempt.place_all(wished)
        starts = {each.start for each in attempt.chosen}
        if attempt.failed or len(starts) <= 1:
            return attempt
        if len({replace(machine, number=0) for machine in wished}) == 1:
            trial = _Attempt(book, now, packed=packed, ends="never")
            trial.place_all(wished)
            starts |= {each.start for each in trial.chosen}
        start = max(starts)
    attempt.chosen.clear()
    attempt.spoil("NoCommonTime", {each.number: "no common start was found" for each in ordered})
    return attempt


def _smallest_first(machine: Machine) -> tuple[bool, int, int, int, bool, int]:
    size = (machine.memory_mib, machine.vcpus, machine.disk_gib)
    return machine.service != "guaranteed", *size, not machine.only_host, machine.number


def _largest_first(machine: Machine) -> tuple[bool, bool, int, int, int, int]:
    size = (-machine.memory_mib, -machine.vcpus, -machine.disk_gib)
    return machine.service != "guaranteed", not machine.only_host, *size, machine.number


class _Key(NamedTuple):
    """What counts among hosts; the least is best. Nothing that is placed makes a host's key less."""

    start: float
    rank: int
    members: int
    load: int
    host: str


class _Alike:
    """Machines that need the same: which hosts they go through, and those seen so far, best first."""

    def __init__(self, need: Machine, now: float, hosts: Iterator[Load]) -> None:
        self.need = need
        self.first = max(need.start_from, now)
        self.duration_s = need.duration_s or inf
        self.parts = Parts.of(need)
        self.shared: dict[str, list[tuple[When, Need]] | None] = {}
        """The networks and the image servers, by zone; None: there are none."""
        self.over = False
        self.seen: list[_Key] = []
        self._hosts = hosts
        self._next = next(hosts, None)

    def next_below(self) -> Load | None:
        """Return the next host when it may be better than all that were seen, and go on to the one after it."""
        load = self._next
        if load is None or (self.seen and self.seen[0] <= (self.first, load[0], 0, load[1], load[2])):
            return None
        self._next = next(self._hosts, None)
        return load


class _Attempt:
    """One way through all machines; what it takes it notes beside the book."""

    def __init__(
        self, book: Book, now: float, *, packed: bool = False, ends: Literal["as wished", "never"] = "as wished"
    ) -> None:
        self.chosen: list[Chosen] = []
        self.failed: dict[int, Machine] = {}
        """By number, what the machines that find no place need."""
        self.spoilt: dict[int, Refusal] = {}
        """Machines that were not tried, or in vain, with why."""
        self._book = book
        self._now = now
        self._packed = packed
        self._ends = ends
        """never: what a machine takes is not given back at its end, so that none is put after another.

        Then the latest start of alike machines is not after the first moment at which all can start together: each
        takes the place of one of them at most. And it is seldom before it, whatever comes and goes.
        """
        self._rooms: dict[str, Room] = {}
        self._members: Counter[tuple[str, str]] = Counter()
        self._alike: dict[Machine, _Alike] = {}

    def place_all(self, machines: Sequence[Machine]) -> None:
        """Choose for the machines, one after another."""
        for machine in machines:
            need = replace(machine, number=0)
            alike = self._alike.get(need)
            if alike is None:
                alike = self._alike[need] = _Alike(need, self._now, self._hosts(need))
            key = None if alike.over else self._best(alike)
            if key is None:
                alike.over = True
                self.failed[machine.number] = need
            else:
                self._take(machine, alike, key)

    def spoil(self, reason: str, words: dict[int, str]) -> None:
        """Note machines, by number, that cannot be chosen, with words for why."""
        self.spoilt.update({number: said(reason, each) for number, each in words.items()})

    def why(self) -> tuple[Refused, ...]:
        """Return why those machines that failed, or were not tried, find no place."""
        spoilt: dict[Refusal, list[int]] = defaultdict(list)
        for number in sorted(self.spoilt):
            spoilt[self.spoilt[number]].append(number)
        found = [Refused(machines=tuple(numbers), refusals=(why,)) for why, numbers in spoilt.items()]
        failed: dict[Machine, list[int]] = defaultdict(list)
        for number in sorted(self.failed):
            failed[self.failed[number]].append(number)
        for place, (need, numbers) in enumerate(failed.items()):
            reasons: tuple[Refusal, ...] = (said("NoRoom", "no host has room for it"),)
            if place < DIFFERENT_MAX:
                reasons = refusals(need, self._book.offers, self.room, self._now)
            found.append(Refused(machines=tuple(numbers), refusals=reasons))
        return tuple(found)

    def room(self, server: str) -> Room:
        """Return what is free of a server once all that was chosen is taken."""
        return self._rooms.get(server) or self._book.rooms[server]

    def _own(self, server: str) -> Room:
        """Return what is free of a server, as this attempt may change it."""
        if server not in self._rooms:
            self._rooms[server] = self._book.rooms[server].copy()
        return self._rooms[server]

    def _hosts(self, need: Machine) -> Iterator[Load]:
        """Return the hosts that may do, in the order in which they are looked at."""
        some = self._book.hosts(need)
        if need.not_on:
            some = [[load for load in hosts if load[2] not in need.not_on] for hosts in some]
        if self._packed:
            return iter(sorted((rank, -load, host) for hosts in some for rank, load, host in hosts))
        return heapq.merge(*some)

    def _best(self, alike: _Alike) -> _Key | None:
        while True:
            load = alike.next_below()
            if load is not None:
                hint = self._hint(alike, load)
                if hint is not None:
                    heapq.heappush(alike.seen, hint)
            elif not alike.seen:
                return None
            else:
                best = alike.seen[0]
                key = self._key(alike, (best.rank, best.load, best.host))
                if key == best:
                    return best
                if key is None:
                    heapq.heappop(alike.seen)
                else:
                    heapq.heapreplace(alike.seen, key)

    def _hint(self, alike: _Alike, load: Load) -> _Key | None:
        """Return a key that is not above the host's, by the host's own room alone: most are never looked at further."""
        rank, memory, host = load
        needs = alike.parts.host if self._book.offers[host].pool else alike.parts.whole
        start = self.room(host).earliest(needs, alike.first, alike.need.start_by, alike.duration_s)
        return _Key(start, rank, 0, memory, host) if start is not None else None

    def _key(self, alike: _Alike, load: Load) -> _Key | None:
        """Return what counts of a host as it is now; None: it does not do."""
        rank, memory, host = load
        offer = self._book.offers[host]
        parts = self._parts(alike, offer)
        if parts is None:
            return None
        start = together(parts, alike.first, alike.need.start_by, alike.duration_s)
        if start is None:
            return None
        group = alike.need.apart
        members = self._book.members[(group, host)] + self._members[(group, host)] if group else 0
        if not self._packed:
            memory = -self.room(host).floor["memory_mib"]
        return _Key(start, rank, members, memory, host)

    def _parts(self, alike: _Alike, offer: Offer) -> list[tuple[When, Need]] | None:
        if offer.zone not in alike.shared:
            alike.shared[offer.zone] = self._shared(alike, offer.zone)
        shared = alike.shared[offer.zone]
        if shared is None:
            return None
        if not offer.pool:
            return [(self.room(offer.server), alike.parts.whole), *shared]
        parts: list[tuple[When, Need]] = [(self.room(offer.server), alike.parts.host)]
        if alike.parts.pool:
            pool = self._book.offers.get(offer.pool)
            if pool is None or not usable(pool, "pool", alike.need, offer.zone):
                return None
            parts.append((self.room(offer.pool), alike.parts.pool))
        return parts + shared

    def _shared(self, alike: _Alike, zone: str) -> list[tuple[When, Need]] | None:
        offers = self._book.offers
        parts: list[tuple[When, Need]] = []
        for network, addresses in alike.parts.networks:
            offer = offers.get(network)
            if offer is None or not usable(offer, "network", alike.need, zone):
                return None
            parts.append((self._own(network), (("addresses", addresses),)))
        if alike.need.image:
            servers = self._images(alike.need, zone)
            if not servers:
                return None
            parts.append((Either([self._book.rooms[each] for each in servers]), ((alike.need.image, 1),)))
        return parts

    def _images(self, need: Machine, zone: str) -> list[str]:
        offers = self._book.offers
        return [
            each
            for each in self._book.images
            if offers[each].quantity.get(need.image, 0) > 0 and usable(offers[each], "images", need, zone)
        ]

    def _take(self, machine: Machine, alike: _Alike, key: _Key) -> None:
        offer = self._book.offers[key.host]
        until = key.start + alike.duration_s
        images = ""
        if machine.image:
            needed = ((machine.image, 1),)
            servers = self._images(machine, offer.zone)
            rooms = ((each, self._book.rooms[each]) for each in servers)
            images = next(
                each
                for each, room in rooms
                if room.earliest(needed, key.start, key.start, alike.duration_s) is not None
            )
        held = [
            Held(server=server, quantity=quantity, start=key.start, until=until, apart=apart)
            for server, quantity, apart in alike.parts.servers(machine, offer, images)
        ]
        for each in held:
            if each.server != images:
                self._own(each.server).take(each.quantity, each.start, each.until if self._ends == "as wished" else inf)
        if machine.apart:
            self._members[(machine.apart, key.host)] += 1
        self.chosen.append(
            Chosen(
                number=machine.number,
                host=key.host,
                pool=offer.pool,
                networks=machine.networks,
                images=images,
                start=key.start,
                until=until,
                reason=self._reason(alike, offer, key),
                held=tuple(held),
            )
        )

    def _reason(self, alike: _Alike, offer: Offer, key: _Key) -> str:
        waits = key.start - alike.first
        when = f"has room {waits:.0f} s after it may start" if waits > 0 else "has room at once"
        left = self._rooms[key.host].floor["memory_mib"]
        return f"{when}; {offer.service}; {left} MiB of memory left at its fullest hour"
