"""How a request goes on: pure decisions of the server, which knows the node's row, and of the host, which reaches the node.

Only the node knows whether it did something. The server ends what no host ever had; the host asks the node for the end
of all else. What nobody can ask any more, because node or disk is gone, is ``unknown``, and never said to be otherwise.
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

# the server


class Place(Struct, frozen=True, kw_only=True):
    """Where a node is: ``disk`` is its VM's root volume, on which it keeps what it did."""

    vm: str = ""
    disk: str = ""
    host: str = ""


class NodeSeen(Struct, frozen=True, kw_only=True):
    """A request's node: ``gone`` has no row, ``leaving`` is being deleted, ``quarantined`` is not spoken with any more."""

    state: Literal["present", "leaving", "quarantined", "gone"]
    place: Place = Place()


class Asked(Struct, frozen=True, kw_only=True):
    """A request that is not settled. ``unwanted``: deleted, or withdrawn with its manager's consent.

    ``given``: the disk of the node whose host had it; empty: no host ever had it.
    """

    unwanted: bool
    is_late: bool
    given: str = ""


class End(Struct, frozen=True):
    """The server knows how it ended: a state of ``RequestObserved``, and why, for a person."""

    state: Literal["expired", "withdrawn", "unknown"]
    message: str


class Follow(Struct, frozen=True):
    """It goes on: at ``place`` (on no host while the node has none), and the node shall not begin it if ``withdrawn``."""

    place: Place
    withdrawn: bool = False


class Queue(Struct, frozen=True):
    """It waits for its turn to be given to the node's host."""


def decide(asked: Asked, node: NodeSeen) -> End | Follow | Queue:
    """Return how an unsettled request goes on."""
    return _given(asked, node) if asked.given else _never_given(asked, node)


def _never_given(asked: Asked, node: NodeSeen) -> End | Queue:
    if asked.unwanted:
        return End("withdrawn", "it was withdrawn before its node had it")
    if node.state == "quarantined":
        return End("withdrawn", "its node is quarantined and never had it")
    if node.state in ("leaving", "gone"):
        return End("withdrawn", "its node was deleted and never had it")
    if asked.is_late:
        return End("expired", "its deadline passed before its node had it")
    return Queue()


def _given(asked: Asked, node: NodeSeen) -> End | Follow:
    if node.state == "gone":
        return End("unknown", "its node was deleted before it told whether it did it")
    if node.state == "quarantined":
        return End("unknown", "its node is quarantined and was not heard saying whether it did it")
    if node.place.disk != asked.given:
        return End("unknown", "its node's disk was replaced before it told whether it did it")
    return Follow(node.place, withdrawn=asked.unwanted or node.state == "leaving")


# the host


class Wish(Struct, frozen=True, kw_only=True):
    """A request on its node's host. ``is_first``: of the node's requests here, no earlier one is without an end."""

    withdrawn: bool
    is_late: bool
    is_first: bool


class Seen(Struct, frozen=True, kw_only=True):
    """What is: whether the request is under way, how it ended, and whether the node can be asked.

    ``ready``: the VM runs with the disk that it was given for, and the node answers.
    """

    asked: Literal["no", "under-way", "done"] = "no"
    ready: bool = False


class Step(Struct, frozen=True, kw_only=True):
    """``ask``: give it to the node. ``withdraw``: have the node say how it ended, and not begin it. ``wait``."""

    verb: Literal["ask", "withdraw", "wait"]
    after_s: float = 0.0


def next_step(wish: Wish, seen: Seen, recheck_s: float) -> Step | None:
    """Return the next step: one request of a node at a time, in their order, and never a late one."""
    if seen.asked == "done":
        return None
    if seen.asked == "under-way" or not wish.is_first or not seen.ready:
        return Step(verb="wait", after_s=recheck_s)
    return Step(verb="withdraw" if wish.withdrawn or wish.is_late else "ask")
