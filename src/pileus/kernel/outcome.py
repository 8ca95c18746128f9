"""What a reconciliation came to. Waiting is a result, not an error."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Literal

from msgspec import Struct

if TYPE_CHECKING:
    from pileus.kernel.transaction import Transaction

Apply = Callable[["Transaction"], Awaitable[None]]
"""Writes a decision; runs inside the transaction that also checks the lease. No I/O in it."""


class Done(Struct, frozen=True):
    """Nothing more to do until something changes. For a resource being deleted: its facts are gone."""

    apply: Apply | None = None
    after_s: float = 0.0
    """When to look again all the same; 0: when something changes."""


class Wait(Struct, frozen=True):
    """Not there yet: why, for a person, and when to look again at the latest."""

    reason: str
    message: str
    after_s: float = 5.0
    apply: Apply | None = None
    status: Literal["false", "unknown"] = "false"
    """What Ready is meanwhile."""


class Waiting(Exception):
    """Raised inside an ``Apply``: the decision does not hold any more; nothing of it is written."""

    def __init__(self, reason: str, message: str, after_s: float = 5.0) -> None:
        super().__init__(message)
        self.wait = Wait(reason, message, after_s)


Outcome = Done | Wait
