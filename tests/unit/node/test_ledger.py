"""Requests at a node: each once, in order, never after its deadline, wherever it is cut off."""

from __future__ import annotations

import asyncio
import itertools
from copy import deepcopy
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pileus.node.document import Document
from pileus.node.duty import Duty
from pileus.node.hostclock import HostClock, Moment
from pileus.node.ledger import ANSWER_BYTES_MAX, ENDS_MAX, ROOM_BYTES, Book, End, Ledger, Request, State, Verdict
from pileus.node.role import RoleRefused

DONE = End("r-5", "applied", b"done")
CUT_OFF = End("r-6", "unknown", b"it was begun and cut off, and may not be begun again")


def book(begun: int = 0) -> Book:
    """Return a book in which the fifth request ended, and perhaps the sixth began."""
    made = Book()
    made.end(5, DONE)
    if begun:
        made.begin(begun, f"r-{begun}")
    return made


DECISIONS: list[tuple[Book, Request, Verdict]] = [
    (book(), Request("r-5", 5, 100.0), Verdict("answer", DONE)),
    (book(), Request("r-5", 5, 1.0, withdrawn=True), Verdict("answer", DONE)),
    (book(), Request("x", 5, 100.0), Verdict("answer", End("x", "unknown"))),
    (book(), Request("r-4", 4, 100.0), Verdict("answer", End("r-4", "unknown"))),
    (book(), Request("r-6", 6, 100.0), Verdict("begin")),
    (book(), Request("r-9", 9, 100.0), Verdict("begin")),
    (book(), Request("r-6", 6, 10.0), Verdict("end", End("r-6", "expired"))),
    (book(), Request("r-6", 6, 10.001), Verdict("begin")),
    (book(), Request("r-6", 6, 10.0, withdrawn=True), Verdict("end", End("r-6", "expired"))),
    (book(), Request("r-6", 6, 100.0, withdrawn=True), Verdict("end", End("r-6", "withdrawn"))),
    (book(6), Request("r-6", 6, 100.0), Verdict("begin", again=True)),
    (book(6), Request("x", 6, 100.0), Verdict("answer", End("x", "unknown"))),
    (book(6), Request("r-6", 6, 10.0), Verdict("end", CUT_OFF)),
    (book(6), Request("r-6", 6, 100.0, withdrawn=True), Verdict("end", CUT_OFF)),
    (book(6), Request("r-5", 5, 100.0), Verdict("answer", DONE)),
    (book(6), Request("r-7", 7, 100.0), Verdict("begin")),
]


@pytest.mark.parametrize(("found", "request_", "wanted"), DECISIONS)
def test_decisions_at_ten_seconds(found: Book, request_: Request, wanted: Verdict) -> None:
    assert found.decide(request_, 10.0) == wanted


def test_what_was_begun_is_given_up_when_a_later_one_comes() -> None:
    found = book(6)
    found.begin(7, "r-7")
    assert found.decide(Request("r-6", 6, 100.0), 10.0) == Verdict("answer", End("r-6", "unknown"))
    assert found.decide(Request("r-7", 7, 100.0), 10.0) == Verdict("begin", again=True)


class Cut(BaseException):
    """The machine ends here."""


class CutLedger(Ledger):
    """A ledger on a machine that ends at one of its steps: 0 … 3; the role is between 1 and 2."""

    def __init__(self, file: Path, cut: int) -> None:
        super().__init__(file)
        self._cut = cut

    def begin(self, sequence: int, id: str) -> None:
        self._step(0)
        super().begin(sequence, id)
        self._step(1)

    def end(self, sequence: int, end: End) -> None:
        self._step(2)
        super().end(sequence, end)
        self._step(3)

    def _step(self, step: int) -> None:
        if step == self._cut:
            raise Cut


class Role:
    """Does each id once, or refuses it, or breaks; ``now``: when."""

    def __init__(self, manner: str) -> None:
        self.manner = manner
        self.done: list[tuple[str, float]] = []
        self.now = 0.0

    def apply(self, document: Document) -> None:
        """Nothing."""

    def request(self, id: str, payload: bytes, again: bool) -> bytes:
        if self.manner == "refused":
            raise RoleRefused("no")
        if self.manner == "broken":
            raise ZeroDivisionError
        if id not in [done for done, _ in self.done]:
            self.done.append((id, self.now))
        return b"did " + payload

    def tick(self) -> None:
        """Nothing."""

    def status(self) -> dict[str, object]:
        return {}


class Clock(HostClock):
    def __init__(self, role: Role) -> None:
        super().__init__(None)
        self._role = role

    def now(self, moment: Moment) -> float:
        return self._role.now


async def ask(folder: Path, role: Role, request: Request, cut: int = -1) -> End | None:
    """Return the answer of a node that began just now; None when it was cut off."""
    duty = Duty(role, folder / "document.json", Clock(role))
    duty._ledger = CutLedger(folder / "requests", cut)
    told: asyncio.Future[object] = asyncio.get_running_loop().create_future()
    duty.request(request, Moment(0.0, 0.0), told.set_result)
    end = await told
    duty.close()
    assert isinstance(end, End | Cut)
    return end if isinstance(end, End) else None


ENDS: dict[str, State] = {"fine": "applied", "refused": "refused", "broken": "unknown"}
THEN = ("again", "withdrawn", "late", "next", "late, withdrawn")


@pytest.mark.parametrize(("manner", "cut", "then"), list(itertools.product(ENDS, range(-1, 4), THEN)))
def test_a_node_that_is_cut_off_at_any_step_goes_on_rightly(tmp_path: Path, manner: str, cut: int, then: str) -> None:
    async def main() -> None:
        role = Role(manner)
        first = Request("r-1", 1, 100.0, payload=b"one")
        told = await ask(tmp_path, role, first, cut)
        assert (told is None) == (cut >= 0)
        done_before = list(role.done)
        if then == "next":
            await ask(tmp_path, role, Request("r-2", 2, 100.0))
        if "late" in then:
            role.now = 100.0
        second = await ask(tmp_path, role, Request("r-1", 1, 100.0, "withdrawn" in then, b"one"))
        assert second is not None
        assert [id for id, _ in role.done].count("r-1") <= 1
        assert all(at < 100.0 for _, at in role.done)
        if then in ("next", "withdrawn") or "late" in then:
            assert [one for one in role.done if one[0] == "r-1"] == done_before, "it is not begun any more"
        if told is not None or cut == 3:
            assert second.state == ENDS[manner], "what ended keeps its end"
        elif then == "again":
            assert second.state == ENDS[manner]
        elif cut in (1, 2) or then == "next":
            assert second.state == "unknown"
        else:
            assert second.state == ("expired" if "late" in then else "withdrawn")
        assert second.state != "applied" or done_before or then == "again"
        role.now = 0.0
        third = await ask(tmp_path, role, first)
        assert third == second, "and says the same for ever"

    asyncio.run(main())


def test_an_answer_that_is_too_long_is_cut(tmp_path: Path) -> None:
    end = asyncio.run(ask(tmp_path, Role("fine"), Request("r-1", 1, 1.0, payload=bytes(ANSWER_BYTES_MAX))))
    assert end is not None
    assert len(end.answer) == ANSWER_BYTES_MAX


def test_a_role_that_breaks_is_said_to_have(tmp_path: Path) -> None:
    end = asyncio.run(ask(tmp_path, Role("broken"), Request("r-1", 1, 1.0)))
    assert end == End("r-1", "unknown", b"the role failed: ZeroDivisionError: ")


def test_a_ledger_stays_small_and_keeps_the_last_ends(tmp_path: Path) -> None:
    file = tmp_path / "requests"
    ledger = Ledger(file)
    for sequence in range(1, 100):
        ledger.begin(sequence, f"r-{sequence}")
        ledger.end(sequence, End(f"r-{sequence}", "applied", bytes([sequence]) * (40_000 + sequence)))
    ledger.close()
    assert file.stat().st_size <= ROOM_BYTES + ENDS_MAX * 41_000
    found = Ledger(file).book
    assert found == ledger.book
    assert list(found.ends) == list(range(84, 100))
    long = Ledger(file)
    for sequence in range(100, 110):
        long.end(sequence, End("r", "applied", bytes(ANSWER_BYTES_MAX)))
    assert list(Ledger(file).book.ends) == [106, 107, 108, 109]


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes, list[Book]]:
    """Return a ledger's file, its beginning, and every book that it was."""
    file = tmp_path_factory.mktemp("ledger") / "requests"
    ledger = Ledger(file)
    books = [Book()]
    for sequence in range(1, 6):
        ledger.begin(sequence, f"r-{sequence}")
        books.append(deepcopy(ledger.book))
        ledger.end(sequence, End(f"r-{sequence}", "applied", b"x" * 10 * sequence))
        books.append(deepcopy(ledger.book))
    ledger.close()
    return file, file.read_bytes()[:1000], books


@settings(max_examples=300, deadline=None)
@given(cut=st.integers(0, 600), rest=st.binary(max_size=80))
def test_what_is_torn_never_happened(kept: tuple[Path, bytes, list[Book]], cut: int, rest: bytes) -> None:
    file, whole, books = kept
    file.write_bytes(whole[:cut] + rest + bytes(100))
    assert Ledger(file).book in books


def test_a_ledger_that_was_torn_goes_on(kept: tuple[Path, bytes, list[Book]]) -> None:
    file, whole, _ = kept
    file.write_bytes(whole[:200] + b"torn")
    again = Ledger(file)
    before = deepcopy(again.book)
    assert before.ends
    again.end(9, End("r-9", "refused"))
    before.end(9, End("r-9", "refused"))
    assert Ledger(file).book == before


def test_the_hosts_time_goes_on_through_a_pause(tmp_path: Path) -> None:
    rtc = tmp_path / "since_epoch"
    rtc.write_text("1000\n")
    clock = HostClock(rtc)
    moment = clock.moment(1000.5)
    assert 1000.5 <= clock.now(moment) < 1010.0
    rtc.write_text("1090\n")
    assert clock.now(moment) == 1091.0
    rtc.write_text("nothing\n")
    assert 1000.5 <= clock.now(moment) < 1010.0
    assert 1000.5 <= HostClock(tmp_path / "none").now(moment) < 1010.0
