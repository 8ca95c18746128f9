"""What a store and a transaction can both be asked: for what decides, and need not know which of them it reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from pileus.kernel.kind import Resource


class Reader(Protocol):
    """A store, or a transaction."""

    async def get(self, id: str) -> Resource:
        """Return the resource. Raises: NotFound."""

    async def find_id(self, id: str) -> Resource | None:
        """Return the resource, if there is one."""

    async def find(self, kind: str, account_id: str, name: str) -> Resource | None:
        """Return the resource with this name, if there is one."""

    async def holder(self, space: str, value: str) -> str | None:
        """Return the owner of ``value``, if any."""

    async def queue(self, space: str, limit: int) -> Sequence[str]:
        """Return the owners of the lowest numbers of ``space``, in their order."""
