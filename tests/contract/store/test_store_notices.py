"""Notices that wait, on both engines: written with the fact or not at all, in order, replaced, bounded."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import pytest
from tests.contract.store.store_bench import THING, Bench, ThingDesired, thing

from pileus.kernel.errors import Invalid
from pileus.kernel.kind import Kind, Registry, Resource
from pileus.kernel.notice import TOLD_SPACE, Notice
from pileus.kernel.store import statements as sql
from pileus.kernel.store.store import Store
from pileus.kernel.transaction import Transaction

MANAGER = "the-manager"


def _notice(old: Resource | None, new: Resource | None) -> Notice | None:
    """Tell of each change of size, and of the newest deletion."""
    if new is None:
        return Notice(type="thing.deleted", subject="all", keep="newest", about={"thing": old.id if old else ""})
    if old is not None and old.desired == new.desired:
        return None
    return Notice(type="thing.changed", subject=new.name, data={"size": new.desired.size})


TELLING = msgspec.structs.replace(THING, notice=_notice)


async def opened(store: Store, kind: Kind = TELLING, *, told: str = MANAGER) -> Store:
    """Return the store with a kind that tells, and a manager that is told."""
    store.registry = Registry((kind,))
    await store.write(lambda tx: tx.claim(TOLD_SPACE, told, told))
    return store


async def make(store: Store, name: str, manager: str = MANAGER, size: int = 1, account_id: str = "") -> Resource:
    """Make a thing that stands for a manager."""
    made = thing(name, size=size)
    changes: dict[str, Any] = {"manager": manager, "account_id": account_id or made.account_id}
    return await store.write(lambda tx: tx.create(replace(made, **changes)))


async def bodies(store: Store, subject: str, manager: str = MANAGER) -> list[dict[str, Any]]:
    """Take all that waits about a subject, in its order."""
    found = []
    while rows := await store.fetch(sql.NOTICE_NEXT, manager=manager, subject=subject):
        seq, _, _, body = rows[0]
        found.append(msgspec.json.decode(body))
        await store.write(lambda tx, seq=seq: tx.change(sql.NOTICE_DELETE, seq=seq))  # type: ignore[misc]
    return found


async def waiting(store: Store, manager: str = MANAGER) -> int:
    """Return how many wait."""
    return int((await store.fetch(sql.NOTICES, manager=manager))[0][0])


def test_what_is_told_is_written_with_the_fact_and_wakes_the_manager(bench: Bench) -> None:
    async def main() -> None:
        async with bench.store() as store:
            await opened(store)
            one = await make(store, "one")
            await make(store, "other", manager="nobody-told")
            await make(store, "none", manager="")
            for size in (2, 3):
                one = await store.write(lambda tx, it=one, n=size: tx.update(it, desired=ThingDesired(size=n)))  # type: ignore[misc]
            one = await store.write(lambda tx: tx.update(one, labels={"a": "b"}))

            async def refused(tx: Transaction) -> None:
                await tx.update(one, desired=ThingDesired(size=9))
                raise Invalid("no")

            with pytest.raises(Invalid):
                await store.write(refused)
            due = {id for id, *_ in await store.fetch(sql.WORK_DUE, now=bench.clock.now + 1, n=100)}
            assert MANAGER in due
            assert await waiting(store) == 3
            told = await bodies(store, "one")
            assert [each["data"]["size"] for each in told] == [1, 2, 3]
            assert {each["type"] for each in told} == {"thing.changed"}
            assert (await waiting(store), await waiting(store, "nobody-told")) == (0, 0)

    bench.run(main)


def test_the_newest_takes_the_place_of_one_that_waits_and_of_no_other(bench: Bench) -> None:
    async def main() -> None:
        async with bench.store() as store:
            await opened(store)
            made = [await make(store, name) for name in ("all", "b", "c")]
            for each in made:
                await store.write(lambda tx, it=each: tx.purge(it))  # type: ignore[misc]
            told = await bodies(store, "all")
            assert [each["type"] for each in told] == ["thing.changed", "thing.deleted"]
            assert told[1]["thing"] == made[2].id

    bench.run(main)


def test_subjects_come_in_the_order_of_what_waits_longest_and_too_many_lose_states_first(bench: Bench) -> None:
    async def main() -> None:
        async with bench.store() as store:
            await opened(store)
            for name in ("z", "a", "m"):
                await make(store, name)
            states = await make(store, "gone")
            await store.write(lambda tx: tx.purge(states))
            found = await store.fetch(sql.NOTICE_SUBJECTS, manager=MANAGER, n=3)
            assert [subject for (subject,) in found] == ["z", "a", "m"]
            await store.write(lambda tx: tx.change(sql.NOTICES_TRIM, manager=MANAGER, n=2))
            assert await waiting(store) == 3
            assert (await bodies(store, "all"), await bodies(store, "z")) == ([], [])

    bench.run(main)


def test_what_is_of_one_account_goes_alone(bench: Bench) -> None:
    async def main() -> None:
        async with bench.store() as store:
            await opened(store)
            await make(store, "one", account_id="x")
            await make(store, "two", account_id="y")
            await store.write(lambda tx: tx.change(sql.NOTICES_DELETE_OF, manager=MANAGER, account_id="x"))
            assert await waiting(store) == 1
            await store.write(lambda tx: tx.change(sql.NOTICES_DELETE, manager=MANAGER))
            assert await waiting(store) == 0

    bench.run(main)
