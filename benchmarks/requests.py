"""Requests planned per second of CPU at 5,000 hosts: of 1 machine and of 200, without end and for hours; and a naive scan.

Every plan is taken, so hosts fill up as they would. The scan looks at every host for every machine, by the same rules,
and its choices are compared with the plans'.
"""

from __future__ import annotations

import random
import time
from math import inf

from benchmarks.report import Report, Result, ratio
from pileus.compute.book import Book
from pileus.compute.choosing import choose
from pileus.compute.offers import Choice, Held, Machine, Offer
from pileus.compute.room import together

HOSTS = 5_000
SEED = 31
ZONES = ("east", "west")
BAR = 1_000
"""Machines a second of one core."""


def run(report: Report, *, quick: bool) -> None:
    """Measure."""
    report.say(f"requests: {HOSTS} hosts with a pool each, 2 networks, seed {SEED}")
    began = time.process_time()
    Book(_offers(random.Random(SEED)))
    report.add(Result(name="requests: a book of the offers", value=(time.process_time() - began) * 1000, unit="ms"))
    for count, requests in ((1, 300 if quick else 3_000), (200, 5 if quick else 30)):
        for words, hours in (("without end", 0), ("for 1 to 9 hours", 9)):
            _measure(report, words, hours, count, requests)
    _busy(report, 5 if quick else 50)
    _refused(report, 5 if quick else 30)


def _measure(report: Report, words: str, hours: int, count: int, requests: int) -> None:
    chance = random.Random(SEED)
    book = Book(_offers(chance))
    wishes = [_machines(chance, count, 60.0 * number, hours) for number in range(requests)]
    scanned = max(requests // 100, 1)
    planned_s = scan_s = 0.0
    for number, machines in enumerate(wishes):
        now = 60.0 * number
        expected: list[tuple[int, str]] | None = None
        if number % (requests // scanned) == 0:
            began = time.process_time()
            expected = _scan(machines[: 1 if count == 1 else 20], book, now)
            scan_s += time.process_time() - began
        began = time.process_time()
        choice = choose(machines, book, "all-or-nothing", now)
        book.take(_held(choice), now)
        planned_s += time.process_time() - began
        hosts = [(each.number, each.host) for each in choice.chosen]
        if len(hosts) != count or (expected is not None and hosts[: len(expected)] != expected):
            raise RuntimeError(f"request {number}: {len(hosts)} of {count} machines, or not where the scan puts them")
    of = f"of {count} machine{'s' if count > 1 else ''}, {words}"
    scan = scanned * min(count, 20) / scan_s
    rate = requests * count / planned_s
    report.add(Result(name=f"requests {of}", value=requests / planned_s, unit="requests/s"))
    report.add(
        Result(
            name=f"requests {of}: machines",
            value=rate,
            unit="machines/s",
            bar=BAR,
            at_least=True,
            ratio=ratio(rate, scan),
            reference=f"a scan of all hosts for each: {scan:.0f} machines/s",
        )
    )


def _busy(report: Report, requests: int) -> None:
    """Measure requests of one machine while all hosts are full for 10 to 50 minutes: the plan is when and where."""
    chance = random.Random(SEED)
    offers = _offers(chance)
    held = [
        Held(server=offer.server, quantity=offer.quantity, until=60.0 * chance.randint(10, 50))
        for offer in offers
        if offer.kind == "host"
    ]
    book = Book(offers, held)
    began = time.process_time()
    for _ in range(requests):
        choice = choose(_machines(chance, 1, 0.0, 0), book, "all-or-nothing", 0.0)
        if choice.chosen[0].start != 600:
            raise RuntimeError("a host is free earlier")
        book.take(_held(choice), 0.0)
    rate = requests / (time.process_time() - began)
    report.add(Result(name="requests of 1 machine, all hosts full for now", value=rate, unit="requests/s"))


def _refused(report: Report, requests: int) -> None:
    """Measure requests that find no place on any host, with the reason of every host."""
    chance = random.Random(SEED)
    book = Book(_offers(chance))
    machines = [
        Machine(number=number, vcpus=1, memory_mib=2**20, disk_gib=20, zone="east", start_by=3600.0)
        for number in range(200)
    ]
    began = time.process_time()
    for _ in range(requests):
        (refused,) = choose(machines, book, "best-effort", 0.0).refused
        if sum(each.count for each in refused.refusals) != HOSTS:
            raise RuntimeError("a host has no reason")
    spent = time.process_time() - began
    report.add(Result(name="requests of 200 machines, refused with reasons", value=requests / spent, unit="requests/s"))


def _held(choice: Choice) -> list[Held]:
    return [held for chosen in choice.chosen for held in chosen.held]


def _scan(machines: list[Machine], book: Book, now: float) -> list[tuple[int, str]]:
    """Return where the machines go when every host is looked at for each; what they take is given back."""
    found, taken = [], []
    for machine in machines:
        best, until = (inf, 0, ""), machine.duration_s or inf
        for server, offer in book.offers.items():
            if offer.kind != "host" or offer.refuses or offer.zone != machine.zone:
                continue
            parts = (
                (book.rooms[server], (("memory_mib", machine.memory_mib), ("vcpus", machine.vcpus))),
                (book.rooms[offer.pool], (("disk_gib", machine.disk_gib),)),
                (book.rooms[machine.networks[0]], (("addresses", 1),)),
            )
            start = together(parts, max(now, machine.start_from), machine.start_by, until)
            if start is not None:
                best = min(best, (start, -book.rooms[server].floor["memory_mib"], server))
        start, _, server = best
        found.append((machine.number, server))
        host = {"memory_mib": machine.memory_mib, "vcpus": machine.vcpus}
        disks = {"disk_gib": machine.disk_gib}
        held = [
            Held(server=server, quantity=host, start=start, until=start + until),
            Held(server=book.offers[server].pool, quantity=disks, start=start, until=start + until),
            Held(server=machine.networks[0], quantity={"addresses": 1}, start=start, until=start + until),
        ]
        book.take(held, now)
        taken += held
    book.give(taken, now)
    return found


def _offers(chance: random.Random) -> list[Offer]:
    made = []
    for number in range(HOSTS):
        zone, name = ZONES[number % 2], f"{number:05}"
        room = {"vcpus": chance.randrange(64, 1024), "memory_mib": chance.randrange(65_536, 524_288)}
        refuses = "Cordoned" if chance.random() < 0.02 else ""
        disks = {"disk_gib": chance.randrange(1000, 10_000)}
        made += [
            Offer(server=f"host-{name}", kind="host", name=f"host-{name}", zone=zone, quantity=room,
                  pool=f"pool-{name}", refuses=refuses),
            Offer(server=f"pool-{name}", kind="pool", name=f"pool-{name}", zone=zone, quantity=disks),
        ]  # fmt: skip
    for zone in ZONES:
        made += [
            Offer(server=f"net-{zone}", kind="network", name=zone, zone=zone, quantity={"addresses": 65_000}),
            Offer(server=f"images-{zone}", kind="images", name=zone, zone=zone, quantity={"tiny": 1}),
        ]
    return made


def _machines(chance: random.Random, count: int, now: float, hours: int) -> list[Machine]:
    """Return alike machines that may start within an hour."""
    zone = chance.choice(ZONES)
    need = (chance.choice((1, 2, 4, 8)), chance.choice((512, 2048, 8192, 32_768)))
    duration_s = 3600 * chance.randint(1, hours) if hours else 0
    return [
        Machine(
            number=number,
            vcpus=need[0],
            memory_mib=need[1],
            disk_gib=20,
            image="tiny",
            networks=(f"net-{zone}",),
            zone=zone,
            start_from=now,
            start_by=now + 3600,
            duration_s=duration_s,
        )
        for number in range(count)
    ]
