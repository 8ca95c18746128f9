"""The host half of a kind: how an agent observes a resource, decides the next step, and does it.

An agent calls observe, plan, do, observe, … until no step is left. Each call may be the first after a crash.
"""

from __future__ import annotations

import abc
from collections.abc import AsyncIterator, Collection
from typing import Any, Generic, Protocol, TypeVar

from msgspec import Struct

from pileus.kernel.fields import Problem
from pileus.kernel.kind import Resource

F = TypeVar("F")
S = TypeVar("S")


class Step(Protocol):
    """One thing to do; the verb ``wait`` means: look again after ``after_s``."""

    @property
    def verb(self) -> str:
        """What is done, for logs and failpoints."""

    @property
    def after_s(self) -> float:
        """Seconds, for the verb ``wait``."""


class Peers(Protocol):
    """What a half may know of the host's other resources."""

    def peer(self, id: str) -> Resource | None:
        """Return another resource of the slice with what was last observed of it."""

    def peers(self, kind: str) -> list[Resource]:
        """Return all resources of a kind in the slice."""

    def wake(self, id: str) -> None:
        """Look at another resource now."""

    def now(self) -> float:
        """Return Unix seconds."""

    def image(self, id: str, part: str) -> AsyncIterator[bytes]:
        """Fetch a part of an image from the server. Raises: Transient."""

    def content(self, id: str, part: str) -> AsyncIterator[bytes]:
        """Fetch bytes that the server keeps of a resource of the slice. Raises: Transient."""


class Half(abc.ABC, Generic[F, S]):
    """F: what ``observe`` finds. S: a step."""

    kind: str

    @abc.abstractmethod
    async def observe(self, resource: Resource, peers: Peers) -> F:
        """Return what is, read from the host now. Raises: DriverError."""

    @abc.abstractmethod
    def plan(self, resource: Resource, fact: F, peers: Peers) -> S | None:
        """Return the next step, or None; decides only, from its arguments."""

    @abc.abstractmethod
    async def do(self, step: S, resource: Resource, peers: Peers) -> None:
        """Do one step; idempotent. Raises: DriverError."""

    @abc.abstractmethod
    def report(self, resource: Resource, fact: F | None, problem: Problem | None) -> Struct:
        """Return the observed section; ``fact`` is None when observing failed."""

    async def inventory(self) -> Collection[str]:
        """Return the ids of everything of this kind that is on the host, whoever made it."""
        return ()

    async def remove(self, id: str) -> None:
        """Remove from the host what no resource stands for any more."""

    async def close(self) -> None:
        """End what goes on in the background: the agent stops, the host stays as it is."""

    async def counters(self) -> dict[str, dict[str, Any]]:
        """Return the counters of each resource, by id."""
        return {}
