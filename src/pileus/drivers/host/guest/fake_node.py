"""What a simulated node has on its disk, and how it does requests: by the same book as a real one."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from msgspec import Struct, field

from pileus.drivers.host.guest.base import GuestAnswer, GuestRequest
from pileus.node.ledger import Book, End, Request
from pileus.node.role import RoleRefused

STEPS = ("asked", "begun", "applied", "ended")
"""Where a node may end in the middle of a request: before anything is noted, before the role did it, before that is
noted, before it is told."""


def echo(payload: bytes) -> bytes:
    """Answer what was asked."""
    return payload


class FakeNode(Struct, kw_only=True):
    """The disk of one node. Its role is idempotent: a request that comes again is not done again."""

    book: Book = field(default_factory=Book)
    applied: list[tuple[str, float]] = field(default_factory=list)
    """What the role did: the request's id, and when."""
    answers: dict[str, bytes] = field(default_factory=dict)

    def steps(self, request: GuestRequest, role: Callable[[bytes], bytes], now: float) -> Iterator[GuestAnswer | None]:
        """Do ``request`` and yield None at each of ``STEPS``, then the answer. Who stops in between has cut the node."""
        asked = Request(request.id, request.sequence, request.deadline, request.withdrawn, request.payload)
        yield None
        verdict = self.book.decide(asked, now)
        end = verdict.end
        if verdict.step == "begin":
            self.book.begin(request.sequence, request.id)
            yield None
            end = self._do(asked, role, now, verdict.again)
            yield None
        assert end is not None
        if verdict.step != "answer":
            self.book.end(request.sequence, end)
        yield None
        yield GuestAnswer(state=end.state, answer=end.answer)

    def _do(self, request: Request, role: Callable[[bytes], bytes], now: float, again: bool) -> End:
        if again and request.id in self.answers:
            return End(request.id, "applied", self.answers[request.id])
        try:
            answer = role(request.payload)
        except RoleRefused as refused:
            return End(request.id, "refused", refused.message.encode())
        self.applied.append((request.id, now))
        self.answers[request.id] = answer
        return End(request.id, "applied", answer)
