"""What a reader of captures gets: packets as pcapng, or flows as lines of JSON; each piece when it is asked for."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

from pileus.node.mirror import pcapng
from pileus.node.mirror.sessions import Counts
from pileus.node.mirror.store import Capture, Session

FLOWS_S = 1.0
"""Flows that changed are told again not more often."""

_FLOWS_AT_ONCE = 200


class Answer:
    """What one reader gets of ``session``. ``is_whole``: nothing more will come."""

    def __init__(self, session: Session, path: Callable[[], Counts], follow: bool) -> None:
        self.session = session
        self.is_whole = False
        self._path, self._follow = path, follow

    def next(self) -> bytes:
        """Return the next piece; empty when there is none now."""
        raise NotImplementedError

    def pulse(self, is_needed: bool) -> bytes:
        """Return what a reader that waits is told now and then; empty when nothing changed and it is not needed."""
        raise NotImplementedError


class PacketAnswer(Answer):
    """A capture as pcapng."""

    def __init__(self, session: Session, path: Callable[[], Counts], from_start: bool, follow: bool) -> None:
        super().__init__(session, path, follow)
        self._capture = Capture(session, path(), time.time_ns(), from_start)
        self._until = session.ring.count
        self._head = self._capture.head()
        self._said: tuple[int, ...] = ()

    def next(self) -> bytes:
        """Return the next packets, or the last statistics."""
        head, self._head = self._head, b""
        place = self._capture.place
        if self._follow or place.number < self._until:
            piece = head + self._capture.read()
            if piece or (self._follow and not self.session.is_over):
                return piece
        self.is_whole = True
        return head + self._statistics(True)

    def pulse(self, is_needed: bool) -> bytes:
        """Return how complete the capture is so far."""
        return self._statistics(is_needed)

    def _statistics(self, is_needed: bool) -> bytes:
        said = self._capture.statistics(self._path(), time.time_ns())
        numbers = (said.received, said.lost, said.missed, said.delivered)
        if numbers == self._said and not is_needed:
            return b""
        self._said = numbers
        return pcapng.statistics(said)


class FlowAnswer(Answer):
    """Flows as lines of JSON, and after them one line that says of how much: ``{"flows", "gone", "received", …}``."""

    def __init__(self, session: Session, path: Callable[[], Counts], from_start: bool, follow: bool) -> None:
        super().__init__(session, path, follow)
        self._mark = 0 if from_start else session.flows.mark
        self._due = 0.0
        self._left: list[Any] = []
        self._is_open = True
        """The line that ends a round was not told yet."""

    def next(self) -> bytes:
        """Return some flows that changed, or the line that ends them."""
        flows = self.session.flows
        is_over = self.session.is_over or not self._follow
        if not self._left and (time.monotonic() >= self._due or is_over) and flows.mark > self._mark:
            self._left = list(flows.changed(self._mark))
            self._mark, self._due, self._is_open = flows.mark, time.monotonic() + FLOWS_S, True
        if self._left:
            some, self._left = self._left[:_FLOWS_AT_ONCE], self._left[_FLOWS_AT_ONCE:]
            return b"".join(line(flow.told()) for flow in some)
        if is_over:
            self.is_whole = True
            return self.pulse(True)
        is_open, self._is_open = self._is_open, False
        return self.pulse(True) if is_open else b""

    def pulse(self, is_needed: bool) -> bytes:
        """Return the line that says of how much the flows are."""
        if not is_needed:
            return b""
        session = self.session
        gone = dict(zip(("flows", "packets", "bytes"), session.flows.gone, strict=True))
        numbers = session.numbers(self._path())._asdict()
        return line({"flows": len(session.flows), "gone": gone, **numbers, "over": session.is_over})


def line(said: dict[str, Any]) -> bytes:
    """Return a line of JSON."""
    return json.dumps(said, separators=(",", ":")).encode() + b"\n"
