"""The walk's steps with people: users, keys and roles of accounts, and what only operators make."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.cloud.walk import Walk


class PeopleSteps:
    """Steps of a walk."""

    def __init__(self, walk: Walk) -> None:
        self._walk = walk

    async def people(self) -> None:
        """Make, change or remove a user, a key or a role."""
        account, user = self._walk.account(), self._walk.name("u", 3)
        work = self._walk.random.choice(("user", "user", "key", "role", "gone", "state"))
        if work == "user":
            await self._walk.create(
                "tenancy.user", user, account, role=self._walk.random.choice(("owner", "member", "own"))
            )
        elif work == "key":
            await self._walk.create("tenancy.key", self._walk.name("k", 4), account, user=user)
        elif work == "role":
            await self._walk.create("tenancy.role", "own", account, rules=[{"kinds": ["compute.*"], "verbs": ["get"]}])
        elif work == "state":
            await self._walk.patch(
                "tenancy.user", user, account, state=self._walk.random.choice(("active", "disabled"))
            )
        else:
            kind, name = self._walk.random.choice((("user", user), ("key", self._walk.name("k", 4)), ("role", "own")))
            await self._walk.delete(f"tenancy.{kind}", name, account)

    async def operators_own(self) -> None:
        """Make or remove what only operators have."""
        kind, name = self._walk.random.choice(
            (("compute.offering", "o1"), ("infra.provider", "p1"), ("infra.pod", "pod2"))
        )
        desired = {"vcpus": 1, "memory_mib": 64, "disk_gib": 1} if kind == "compute.offering" else {}
        if self._walk.random.random() < 0.5:
            await self._walk.create(kind, name, "", **desired)
        else:
            await self._walk.delete(kind, name, "")
