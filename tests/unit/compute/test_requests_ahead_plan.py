"""What a request needs and does when its room is promised; and what a book knows of servers that come, change and go."""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from pileus.compute.book import Book
from pileus.compute.choosing import choose
from pileus.compute.offers import Choice, Held, Machine, Offer
from pileus.compute.placement.types import PlacementAssigned
from pileus.compute.request.plan import LATE_S, NOT_FREE, begins, follow, late_by, needs, without_room
from pileus.compute.request.types import RequestAssigned, RequestDesired
from pileus.kernel.holding import Promise, cover

NOW = 1_900_000_000.0
SIZE: dict[str, Any] = {"zone": "z", "vdc": "v", "vcpus": 1, "memory_mib": 64, "disk_gib": 1}
RESERVED = RequestAssigned(
    **SIZE, image="i", start_from=NOW, start_by=NOW + 500, start=NOW + 100, end=NOW + 400, set="s", phase="reserved"
)
ROW = PlacementAssigned(**SIZE, request="r", number=1, server="h", pool="p", start=NOW + 100, promised="yes")
SOME = RequestDesired(mode="best-effort", nics=(), duration_s=300)


def test_a_request_looks_in_its_window_and_one_that_began_for_what_is_left() -> None:
    looking = replace(RESERVED, start=0.0, end=0.0, phase="choosing")
    (whole,) = needs(SOME, looking, {}, [1], NOW)
    assert (whole.start_from, whole.start_by, whole.duration_s) == (NOW, NOW + 500, 300)
    (at_once,) = needs(SOME, replace(looking, room_by=NOW + 100), {}, [1], NOW)
    assert at_once.start_by == NOW
    (left,) = needs(SOME, RESERVED, {}, [1], NOW + 150)
    assert (left.start_from, left.start_by, left.duration_s) == (NOW + 150, NOW + 150, 250)


def test_promised_room_that_is_taken_is_waited_for_and_then_given_up() -> None:
    decided = follow(SOME, RESERVED, {"row": ROW, "other": ROW}, {}, NOW + 100)
    assert begins(ROW, decided.rows["row"])
    waits = without_room(SOME, decided, ["row"], is_over=False)
    assert "row" not in waits.rows
    assert (waits.rows["other"]["state"], waits.rows["other"]["promised"]) == ("instructed", "no")
    over = without_room(SOME, decided, ["row"], is_over=True)
    assert (over.rows["row"]["state"], over.rows["row"]["reason"], over.drop) == ("refused", NOT_FREE, "no")
    strict = replace(SOME, mode="all-or-nothing")
    assert without_room(strict, decided, ["row"], is_over=True).drop == "yes"
    assert (late_by(SOME, RESERVED), late_by(strict, RESERVED)) == (NOW + 100 + LATE_S, NOW + 500)


def test_what_must_be_held_for_promises() -> None:
    assert cover([], [], NOW) == 0
    assert cover([(6, NOW + 10)], [Promise(4, NOW + 10, 0)], NOW) == 0
    assert cover([(6, NOW + 10)], [Promise(4, NOW + 9, 0)], NOW) == 4
    assert cover([(6, NOW + 10)], [Promise(4, NOW + 9, NOW + 10), Promise(8, NOW + 20, 0)], NOW) == 4
    assert cover([(6, NOW - 10)], [Promise(8, NOW - 5, 0)], NOW) == 2  # late: about to be given back


def _hosts(book: Book, **more: Any) -> Choice:
    return choose([Machine(number=1, vcpus=1, memory_mib=64, **more)], book, "all-or-nothing", NOW)


def test_a_book_forgets_a_server_and_takes_one_as_it_is_now() -> None:
    def host(server: str, memory_mib: int) -> Offer:
        quantity = {"vcpus": 8, "memory_mib": memory_mib, "disk_gib": 9}
        return Offer(server=server, kind="host", name=server, quantity=quantity)

    book = Book([host("a", 900), host("b", 800)])
    assert _hosts(book).chosen[0].host == "a"
    assert _hosts(book, not_on=frozenset({"a"})).chosen[0].host == "b"
    book.take([Held(server="a", quantity={"memory_mib": 890}, until=NOW + 50)], NOW)
    assert _hosts(book).chosen[0].host == "b"
    book.put(host("a", 900))
    assert _hosts(book).chosen[0].host == "a"
    book.drop("a")
    book.drop("b")
    assert [each.reason for each in _hosts(book).refused[0].refusals] == ["NoHost"]
    book.put(host("b", 70))
    assert _hosts(book).chosen[0].host == "b"
    (refused,) = _hosts(book, not_on=frozenset({"b"})).refused
    assert [each.reason for each in refused.refusals] == ["RefusedBefore"]
