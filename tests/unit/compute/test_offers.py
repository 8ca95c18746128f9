"""Choosing servers for machines: never too much, all or none, the same in any order, and as a slow second reading says."""

from __future__ import annotations

from math import inf
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from tests.unit.compute.offers_oracle import HORIZON, World, alike, all_fit, different, some_held, some_offers, whole

from pileus.compute.book import Book
from pileus.compute.choosing import choose
from pileus.compute.offers import Choice, Held, Machine, Mode, Offer, contradiction, summary
from pileus.compute.room import Room

MODES: tuple[Mode, ...] = ("all-or-nothing", "best-effort")
MANY = settings(max_examples=150, deadline=None)
FEWER = settings(max_examples=80, deadline=None)
modes = st.sampled_from(MODES)
nows = st.integers(0, 4)
chances = st.randoms(use_true_random=True)
"""A seed for a small world; evenly spread, since most small worlds that come from strategies have no room at all."""


def host(server: str, memory_mib: int = 4096, vcpus: int = 16, **further: Any) -> Offer:
    """Return a host with a disk of its own."""
    quantity = {"memory_mib": memory_mib, "vcpus": vcpus, "disk_gib": 100}
    return Offer(**{"server": server, "kind": "host", "name": server, "zone": "z", "quantity": quantity, **further})


def machine(number: int = 0, memory_mib: int = 1024, **further: Any) -> Machine:
    """Return a machine that is to start at once."""
    return Machine(**{"number": number, "memory_mib": memory_mib, "vcpus": 1, "zone": "z", **further})


def numbers(choice: Choice) -> list[int]:
    """Return the numbers of all machines that a choice speaks of."""
    refused = [number for each in choice.refused for number in each.machines]
    return sorted([each.number for each in choice.chosen] + refused)


@MANY
@given(chances, modes, nows)
def test_never_is_more_taken_than_there_is_and_no_machine_is_outside_its_window(
    chance: Random, mode: Mode, now: int
) -> None:
    machines, offers, held = different(chance), some_offers(chance), some_held(chance)
    choice = choose(machines, offers, mode, now, held)
    world = World(offers, held, now)
    allowed = set(world.below_nothing())
    assert set(whole(world, choice.chosen).below_nothing()) <= allowed
    assert numbers(choice) == [each.number for each in machines]
    for each in choice.chosen:
        need = machines[each.number]
        assert max(need.start_from, now) <= each.start <= need.start_by
        assert each.until == (each.start + need.duration_s if need.duration_s else inf)
        assert world.fits(need, each.host, int(each.start))
        assert all((part.start, part.until) == (each.start, each.until) for part in each.held)
    if mode == "all-or-nothing":
        assert len(choice.chosen) in (0, len(machines))
        assert len({each.start for each in choice.chosen}) <= 1


@MANY
@given(chances, modes)
def test_the_order_of_what_is_given_does_not_matter(chance: Random, mode: Mode) -> None:
    machines, offers, held = different(chance), some_offers(chance), some_held(chance)
    expected = choose(machines, offers, mode, 1, held)
    for some in (machines, offers, held):
        chance.shuffle(some)
    assert choose(machines, offers, mode, 1, held) == expected


@MANY
@given(chances, nows)
def test_best_effort_leaves_no_machine_out_that_would_still_fit(chance: Random, now: int) -> None:
    machines, offers, held = different(chance), some_offers(chance), some_held(chance)
    choice = choose(machines, offers, "best-effort", now, held)
    left = whole(World(offers, held, now), choice.chosen)
    for refused in choice.refused:
        for number in refused.machines:
            assert left.places(machines[number]) == []


@MANY
@given(chances, modes, nows)
def test_the_best_host_is_the_one_that_a_look_at_every_host_and_second_finds(
    chance: Random, mode: Mode, now: int
) -> None:
    need, offers, held = alike(chance)[0], some_offers(chance), some_held(chance)
    choice = choose([need], offers, mode, now, held)
    places = World(offers, held, now).places(need) if need.start_by >= now else []
    assert [(each.host, each.start) for each in choice.chosen] == [(host, start) for _, host, start in places[:1]]


@MANY
@given(chances, nows)
def test_alike_machines_go_one_after_another_where_each_is_best_off(chance: Random, now: int) -> None:
    machines, offers, held = alike(chance, 6), some_offers(chance), some_held(chance)
    choice = choose(machines, offers, "best-effort", now, held)
    world = World(offers, held, now)
    expected = []
    for each in machines:
        for _, server, start in world.places(each)[:1] if each.start_by >= now else ():
            world.run(each, server, start)
            expected.append((each.number, server, start))
    assert [(each.number, each.host, each.start) for each in choice.chosen] == expected


@FEWER
@given(chances, nows)
def test_alike_machines_all_start_at_the_first_second_at_which_all_can(chance: Random, now: int) -> None:
    machines, offers, held = alike(chance), some_offers(chance), some_held(chance)
    choice = choose(machines, offers, "all-or-nothing", now, held)
    world = World(offers, held, now)
    expected = next((start for start in range(now, HORIZON) if all_fit(world, machines, start)), None)
    assert {each.start for each in choice.chosen} == ({expected} if expected is not None else set())


@FEWER
@given(chances, nows)
def test_what_cannot_all_fit_in_any_way_is_never_chosen_and_what_may_go_anywhere_is(chance: Random, now: int) -> None:
    machines, offers, held = different(chance, 4), some_offers(chance), some_held(chance)
    choice = choose(machines, offers, "all-or-nothing", now, held)
    world = World(offers, held, now)
    if choice.chosen:
        assert all_fit(world, machines, int(choice.chosen[0].start))
    roomy = [host(f"roomy{number}", uefi="yes") for number in range(2)]
    simple = [machine(each.number, each.memory_mib, duration_s=each.duration_s) for each in machines]
    assert len(choose(simple, [*offers, *roomy], "all-or-nothing", now, held).chosen) == len(machines)


@MANY
@given(st.lists(st.integers(1, 9), min_size=1, max_size=12), st.integers(0, 40))
def test_best_effort_takes_as_many_as_one_host_can_have(sizes: list[int], memory_mib: int) -> None:
    machines = [machine(number, size) for number, size in enumerate(sizes)]
    choice = choose(machines, [host("a", memory_mib)], "best-effort", 0)
    most = sum(sum(sorted(sizes)[: count + 1]) <= memory_mib for count in range(len(sizes)))
    assert len(choice.chosen) == most


@MANY
@given(st.lists(st.integers(0, 20), max_size=6), st.integers(1, 5), st.integers(1, 30), modes)
def test_alike_machines_fill_every_host(rooms: list[int], size: int, count: int, mode: Mode) -> None:
    hosts = [host(f"h{number}", memory_mib) for number, memory_mib in enumerate(rooms)]
    choice = choose([machine(number, size) for number in range(count)], hosts, mode, 0)
    most = sum(min(memory_mib // size, 16) for memory_mib in rooms)
    assert len(choice.chosen) == (min(most, count) if mode == "best-effort" or most >= count else 0)


@MANY
@given(chances, modes, nows)
def test_every_host_has_one_reason_for_every_machine_that_finds_no_place(chance: Random, mode: Mode, now: int) -> None:
    machines, offers, held = different(chance), some_offers(chance), some_held(chance)
    choice = choose(machines, offers, mode, now, held)
    hosts = sum(offer.kind == "host" for offer in offers)
    about_no_host = {"NoHost", "OthersRefused", "Contradiction", "NoCommonTime"}
    for refused in choice.refused:
        count = sum(each.count for each in refused.refusals)
        assert refused.refusals
        assert count == hosts or {each.reason for each in refused.refusals} <= about_no_host
        assert all(each.message and len(each.first) == min(each.count, 3) for each in refused.refusals)


@MANY
@given(chances, nows)
def test_a_book_that_took_chooses_like_one_that_was_told_at_first(chance: Random, now: int) -> None:
    earlier, machines, offers, held = different(chance), different(chance), some_offers(chance), some_held(chance)
    book = Book(offers, held, now)
    first = choose(earlier, book, "best-effort", now)
    taken = [part for each in first.chosen for part in each.held]
    before = choose(machines, book, "best-effort", now)
    book.take(taken, now)
    expected = choose(machines, offers, "best-effort", now, [*held, *taken])
    assert choose(machines, book, "best-effort", now) == expected
    book.give(taken, now)
    assert choose(machines, book, "best-effort", now) == before
    book.give(held, now)
    assert choose(machines, book, "best-effort", now) == choose(machines, offers, "best-effort", now)
    others = [*some_offers(chance), *some_offers(chance)]
    for other in others:
        book.put(other)
    as_last_put = {offer.server: offer for offer in [*offers, *others]}.values()
    assert choose(machines, book, "best-effort", now) == choose(machines, as_last_put, "best-effort", now)


def test_what_is_over_no_longer_counts_once_its_host_is_touched() -> None:
    book = Book([host("a", 5000), host("b", 4000)], [Held(server="a", quantity={"memory_mib": 3000}, until=10)])
    assert choose([machine()], book, "best-effort", 0).chosen[0].host == "b"
    book.take([Held(server="a", quantity={"memory_mib": 100}, start=10)], 10)
    assert choose([machine()], book, "best-effort", 10).chosen[0].host == "a"


steps = st.tuples(st.integers(-1, 3), st.integers(0, 12), st.integers(0, 12) | st.just(inf))


@MANY
@given(st.lists(steps, max_size=6), st.integers(0, 6), st.integers(0, 10), st.integers(0, 14), st.integers(1, 8))
def test_a_room_finds_the_first_second_that_is_free_long_enough(
    taken: list[tuple[int, int, float]], amount: int, at: int, by: int, duration_s: int
) -> None:
    room, free = Room({"a": 5}, 1, 20), [5] * 40
    for lowered, start, until in taken:
        room.take({"a": lowered, "b": 1}, start, until)
        free = [left - (lowered if start <= second < until else 0) for second, left in enumerate(free)]
    fitting = (
        second
        for second in range(max(at, 1), by + 1)
        if second + duration_s <= 20 and min(free[second : second + duration_s]) >= amount
    )
    assert room.copy().earliest((("a", amount),), at, by, duration_s) == next(fitting, None)
    room.forget(at)
    assert (room.floor["a"], room.ceiling("a")) == (min(free[at:]), max(free[at:]))


def test_what_counts_among_hosts_in_its_order() -> None:
    offers = [
        host("later", 9000, start=5),
        host("effort", 8000, service="best-effort"),
        host("most-b", 7000),
        host("most-a", 7000),
        host("less", 2048),
    ]
    wish = machine(service="best-effort", start_by=9, apart="g")
    found = [each.host for each in choose([replace(wish, number=n) for n in range(5)], offers, "best-effort", 0).chosen]
    assert found == ["most-a", "most-b", "less", "most-a", "most-b"]
    only = [each for each in offers if each.server in ("later", "effort")]
    assert [each.host for each in choose([wish], only, "best-effort", 0).chosen] == ["effort"]
    late = choose([machine(start_by=9)], only, "all-or-nothing", 0).chosen[0]
    assert (late.host, late.start) == ("later", 5)
    assert late.reason == "has room 5 s after it may start; guaranteed; 7976 MiB of memory left at its fullest hour"


def test_members_of_a_group_that_run_already_are_kept_away_from() -> None:
    there = Held(server="a", quantity={"memory_mib": 1}, apart="g")
    offers = [host("a", 9000), host("b", 2000)]
    assert choose([machine(apart="g")], offers, "best-effort", 0, [there]).chosen[0].host == "b"
    assert choose([machine(apart="h")], offers, "best-effort", 0, [there]).chosen[0].host == "a"


def test_machines_of_different_sizes_that_only_fit_packed_are_packed() -> None:
    sizes = (1024, 1024, 3072, 3072)
    machines = [machine(number, size) for number, size in enumerate(sizes)]
    assert len(choose(machines, [host("a"), host("b")], "all-or-nothing", 0).chosen) == 4
    narrow = [host("a", 9), host("b", 5)]
    packed = choose([machine(n, size) for n, size in enumerate((3, 5, 3, 3))], narrow, "all-or-nothing", 0)
    assert [(each.number, each.host) for each in packed.chosen] == [(0, "a"), (1, "b"), (2, "a"), (3, "a")]


@pytest.mark.parametrize("mode", MODES)
def test_a_machine_that_has_no_choice_goes_first(mode: Mode) -> None:
    machines = [machine(0), machine(1, only_host="a")]
    chosen = choose(machines, [host("a", 1024), host("b", 1024)], mode, 0).chosen
    assert [each.host for each in chosen] == ["b", "a"]


def test_images_come_from_a_server_that_is_there_all_the_time_guaranteed_first_then_by_id() -> None:
    servers = [
        Offer(server=server, kind="images", name=server, quantity={"tiny": 1}, **further)
        for server, further in (
        ("i", {"service": "best-effort"}), ("k", {}), ("j", {}), ("g", {"until": 9}), ("h", {"start": 1}))
    ]  # fmt: skip
    wish = machine(image="tiny", service="best-effort", start_by=3)
    servers.append(host("a"))
    assert choose([wish], servers, "best-effort", 0).chosen[0].images == "j"
    assert choose([replace(wish, duration_s=5)], servers, "best-effort", 0).chosen[0].images == "g"
    assert choose([wish], servers, "best-effort", 2).chosen[0].images == "h"


@pytest.mark.parametrize("duration_s", [0, 1, 7])
def test_many_alike_machines_wait_for_the_last_of_many_places(duration_s: int) -> None:
    held = [Held(server="a", quantity={"memory_mib": 1, "vcpus": 1}, until=1 + number) for number in range(200)]
    machines = [machine(number, 1, start_by=300, duration_s=duration_s) for number in range(200)]
    chosen = choose(machines, [host("a", 200, 200)], "all-or-nothing", 0, held).chosen
    assert {each.start for each in chosen} == {200}
    assert len(chosen) == 200


def test_what_each_server_contributes_is_said() -> None:
    offers = [
        host("h", pool="p"),
        Offer(server="p", kind="pool", name="p", quantity={"disk_gib": 9, "iops": 50}),
        Offer(server="n", kind="network", name="n", zone="z", quantity={"addresses": 2}),
        Offer(server="i", kind="images", name="i", zone="z", quantity={"tiny": 1}),
    ]
    wish = machine(disk_gib=4, iops=20, image="tiny", networks=("n",), start_by=7, duration_s=60)
    chosen = choose([wish], offers, "all-or-nothing", 5).chosen[0]
    assert (chosen.host, chosen.pool, chosen.networks, chosen.images) == ("h", "p", ("n",), "i")
    assert [(each.server, each.quantity) for each in chosen.held] == [
        ("h", {"memory_mib": 1024, "vcpus": 1}),
        ("p", {"disk_gib": 4, "iops": 20}),
        ("i", {"tiny": 1}),
        ("n", {"addresses": 1}),
    ]
    assert {(each.start, each.until) for each in chosen.held} == {(5, 65)}
    three = choose([replace(wish, number=n) for n in range(3)], offers, "best-effort", 5)
    assert summary(three) == "1 of 3 machines find no place: NoDisk"
    all_or_none = choose([replace(wish, number=n) for n in range(3)], offers, "all-or-nothing", 5)
    assert summary(all_or_none).startswith("1 of 3 machines find no place: NoDisk; so none is made: ask for fewer")
    too_large = choose([replace(wish, number=n, disk_gib=99) for n in range(2)], offers, "all-or-nothing", 5)
    assert summary(too_large) == (
        "2 of 2 machines find no place: NoDisk; ask for fewer, or smaller ones, or another time"
    )


REASONS: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"zone": "y"}, {}, "OtherZone"),
    ({"refuses": "Cordoned"}, {}, "Cordoned"),
    ({"roles": ("routing",)}, {}, "NotCompute"),
    ({}, {"uefi": "yes"}, "NoUefi"),
    ({}, {"only_host": "other"}, "VolumeElsewhere"),
    ({"service": "best-effort"}, {}, "BestEffortOnly"),
    ({}, {"memory_mib": 5000}, "NoMemory"),
    ({}, {"vcpus": 17}, "NoVcpus"),
    ({}, {"disk_gib": 101}, "NoDisk"),
    ({"quantity": {"memory_mib": 4096, "vcpus": 4, "rate_kbps": 9}}, {"rate_kbps": 10}, "NoRate"),
    ({"pool": "slow"}, {"disk_gib": 1, "iops": 10}, "NoIops"),
    ({"pool": "gone"}, {"disk_gib": 1}, "NoPool"),
    ({"quantity": {"vcpus": 9}}, {}, "NoMemory"),
    ({"quantity": {"memory_mib": 4096}}, {}, "NoVcpus"),
    ({"quantity": {"memory_mib": 4096, "vcpus": 4}}, {"disk_gib": 1}, "NoDisk"),
    ({}, {"networks": ("empty",)}, "NoAddress"),
    ({"start": 10}, {}, "NotInTime"),
    ({"until": 10}, {}, "NotInTime"),
    ({}, {"networks": ("gone",)}, "NoNetwork"),
    ({}, {"networks": ("n", "n")}, "NoAddress"),
    ({}, {"image": "gone"}, "NoImage"),
    ({}, {"image": "tiny"}, "NoImage"),
]


@pytest.mark.parametrize(("offer", "wish", "reason"), REASONS)
def test_a_host_does_not_take_a_machine_for_the_reason_that_it_has(
    offer: dict[str, Any], wish: dict[str, Any], reason: str
) -> None:
    offers = [
        host("h", **offer),
        Offer(server="slow", kind="pool", name="slow", quantity={"disk_gib": 9, "iops": 9}),
        Offer(server="n", kind="network", name="n", quantity={"addresses": 1}),
        Offer(server="empty", kind="network", name="empty", quantity={}),
        Offer(server="i", kind="images", name="i", zone="y", quantity={"tiny": 1}),
    ]
    choice = choose([machine(**{"start_by": 5, **wish})], offers, "all-or-nothing", 0)
    assert [(each.reason, each.count, each.first) for each in choice.refused[0].refusals] == [(reason, 1, ("h",))]


def test_a_quantity_of_speed_that_is_not_named_has_no_limit_and_a_host_with_a_pool_needs_no_disk() -> None:
    pool = Offer(server="p", kind="pool", name="p", quantity={"disk_gib": 500})
    wish = machine(disk_gib=400, iops=10**6, rate_kbps=10**9)
    assert choose([wish], [host("a", pool="p"), pool], "all-or-nothing", 0).chosen[0].pool == "p"


def test_thousands_of_refusals_are_few_lines() -> None:
    hosts = [host(f"h{number:04}", memory_mib=number % 100, refuses="Silent" * (number < 9)) for number in range(3000)]
    choice = choose([machine(number) for number in range(200)], hosts, "best-effort", 0)
    (refused,) = choice.refused
    assert refused.machines == tuple(range(200))
    assert [(each.reason, each.count) for each in refused.refusals] == [("NoMemory", 2991), ("Silent", 9)]
    assert refused.refusals[1].first == ("h0000", "h0001", "h0002")
    assert refused.refusals[0].message == "1024 MiB of memory are needed and not free when it may start"


def test_when_one_finds_no_place_the_others_say_that_it_is_not_for_them() -> None:
    choice = choose([machine(0), machine(1, 9999)], [host("a")], "all-or-nothing", 0)
    assert [(each.machines, each.refusals[0].reason) for each in choice.refused] == [
        ((1,), "NoMemory"),
        ((0,), "OthersRefused"),
    ]
    assert choose([machine()], [], "best-effort", 0).refused[0].refusals[0].reason == "NoHost"
    assert summary(choose([], [], "all-or-nothing", 0)) == ""


def test_machines_whose_windows_never_meet_cannot_start_together() -> None:
    machines = [machine(0, start_from=1, start_by=2), machine(1, start_from=3, start_by=4)]
    assert choose(machines, [host("a")], "all-or-nothing", 0).refused[0].refusals[0].reason == "NoCommonTime"
    assert [each.start for each in choose(machines, [host("a")], "best-effort", 0).chosen] == [1, 3]


@pytest.mark.parametrize(
    ("wish", "count", "end", "words"),
    [
        ({}, 1, inf, ""),
        ({}, 0, inf, "count is 0; it may be 1 to 1000"),
        ({}, 1001, inf, "count is 1001; it may be 1 to 1000"),
        ({"vcpus": 0}, 1, inf, "vcpus is 0; at least 1 is needed"),
        ({"memory_mib": -1}, 1, inf, "memory_mib is -1; at least 1 is needed"),
        ({"disk_gib": -1}, 1, inf, "disk_gib is below 0"),
        ({"duration_s": -1}, 1, inf, "duration_s is below 0"),
        ({"start_from": 20, "start_by": 19}, 1, inf, "start_by is before start_from"),
        ({"start_by": 9}, 1, inf, "start_by has passed already"),
        ({"start_by": 10}, 1, inf, ""),
        ({"start_from": 20}, 1, 20, "end is not after the start"),
        ({}, 1, 10, "end is not after the start"),
        ({}, 1, 11, ""),
        ({"duration_s": 1}, 1, 11, "duration_s and an end are two words for one thing; give one of them"),
    ],
)
def test_a_wish_that_contradicts_itself_is_told_by_its_field(
    wish: dict[str, Any], count: int, end: float, words: str
) -> None:
    need = machine(**wish)
    assert contradiction(need, 10, count=count, end=end) == words
    if words and count == 1 and end == inf:
        choice = choose([need, machine(1)], [host("a")], "best-effort", 10)
        assert choice.refused[0].refusals[0].message == words
        assert [each.number for each in choice.chosen] == [1]
        assert choose([need, machine(1)], [host("a")], "all-or-nothing", 10).chosen == ()


def test_two_of_one_kind_with_one_name_are_a_mistake_of_the_caller() -> None:
    with pytest.raises(ValueError, match="same number"):
        choose([machine(), machine()], [host("a")], "best-effort", 0)
    with pytest.raises(ValueError, match="two offers of a"):
        choose([machine()], [host("a"), host("a")], "best-effort", 0)
