"""Limits of a resource: quota of a vdc, capacity of a host or pool. Budgets are keyed by the resource and a word."""

from __future__ import annotations

from collections.abc import Mapping

from pileus.kernel.errors import QuotaExceeded
from pileus.kernel.kind import Resource
from pileus.kernel.transaction import Exhausted, Transaction


def space(id: str, word: str) -> str:
    """Return the budget space of one limit of a resource, such as ``vms`` of a vdc."""
    return f"{id}/{word}"


async def set_limits(tx: Transaction, id: str, limits: Mapping[str, int]) -> None:
    """Put the limits of a resource in force; what is used already stays."""
    for word, limit in limits.items():
        await tx.set_capacity(space(id, word), limit)


async def remove_limits(tx: Transaction, id: str, words: Mapping[str, int]) -> None:
    """Forget the limits of a resource that goes."""
    for word in words:
        await tx.remove_capacity(space(id, word))


async def charge(tx: Transaction, scope: Resource, owner: str, amounts: Mapping[str, int]) -> None:
    """Charge ``owner`` exactly these amounts of what ``scope`` allows. Raises: QuotaExceeded naming limit and way out."""
    for word, amount in amounts.items():
        try:
            await tx.charge(space(scope.id, word), owner, amount)
        except Exhausted as error:
            raise QuotaExceeded(
                f"account {scope.account} uses {error.used} of {error.capacity} {word} in {scope}, "
                f"{error.asked} more were asked; delete something or ask the operator to raise the quota"
            ) from None
