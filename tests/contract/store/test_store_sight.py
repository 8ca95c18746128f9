"""A fleet manager's lists, watches and events on both engines: its own in accounts that consented, in full pages."""

from __future__ import annotations

import functools
import random
from dataclasses import replace

import msgspec
import pytest
from tests.contract.store.store_bench import REGISTRY, THING, Bench, thing

from pileus.kernel import reading
from pileus.kernel.access import Principal, Rule
from pileus.kernel.hub import Hub
from pileus.kernel.kind import Resource
from pileus.kernel.reading import Call, ListQuery, Reading
from pileus.kernel.store.store import Store
from pileus.kernel.transaction import Transaction

RULES = (Rule(kinds=("*",), verbs=("get",)),)
SEED = 11
MANAGER = Principal(
    user_id="m", user="m", account_id="", account="", role="manager", rules=RULES, manager_id="m",
    consents=frozenset({"yes", "also"}),
)  # fmt: skip


async def fill(store: Store, count: int) -> list[Resource]:
    """Make things of some accounts and managers; return those that the manager may see."""
    dice = random.Random(SEED)
    print("seed", SEED)
    seen = []
    for number in range(count):
        account, manager = dice.choice(("yes", "also", "no", "no", "")), dice.choice(("m", "m", "other", ""))
        made = replace(thing(f"t{number}", manager=manager), account_id=account, account=account)
        made = await store.write(functools.partial(_create, made=made))
        if manager == "m" and account != "no":
            seen.append(made)
    return seen


async def _create(tx: Transaction, made: Resource) -> Resource:
    return await tx.create(made)


async def _purge(tx: Transaction, made: Resource) -> None:
    await tx.purge(made)


@pytest.mark.parametrize("limit", [1, 4, 500])
def test_pages_of_a_manager_are_full_and_together_all_that_it_may_see(bench: Bench, limit: int) -> None:
    async def main() -> None:
        async with bench.store() as store:
            seen = await fill(store, 80)
            hub = Hub(store)
            await hub.open()
            read = Reading(store, hub, REGISTRY)
            pages, after = [], ""
            while True:
                answer = await read.list(Call(principal=MANAGER), THING.name, ListQuery(limit=limit, after=after))
                page = msgspec.json.decode(answer.body)
                pages.append([item["name"] for item in page["items"]])
                if page["next"] is None:
                    break
                after = page["next"]
            await hub.close()
            assert [name for page in pages for name in page] == [each.name for each in seen]
            assert all(len(page) == limit for page in pages[:-1])

    bench.run(main)


def test_events_of_a_manager_page_both_ways(bench: Bench) -> None:
    async def main() -> None:
        async with bench.store() as store:
            seen = {each.id for each in await fill(store, 80)}
            hub = Hub(store)
            await hub.open()
            read, call = Reading(store, hub, REGISTRY), Call(principal=MANAGER)

            async def events(since: int, limit: int) -> list[tuple[int, str]]:
                answer = await read.events(call, None, since, limit)
                return [(item["seq"], item["id"]) for item in msgspec.json.decode(answer.body)["items"]]

            everything = await events(0, 1000)
            assert {id for _, id in everything} == seen
            assert await events(0, 3) == everything[-3:]
            paged = everything[:1]
            while page := await events(paged[-1][0], 3):
                paged += page
            assert paged == everything
            await hub.close()

    bench.run(main)


def test_a_watch_of_a_manager_hears_of_its_own_only(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "CHANGES_PAGE", 5)

    async def main() -> None:
        async with bench.store() as store:
            await fill(store, 5)
            begin = (await store.write(lambda tx: tx.create(thing("begin")))).revision
            seen = await _more(store)
            hub = Hub(store)
            await hub.open()
            read, call = Reading(store, hub, REGISTRY), Call(principal=MANAGER)
            watch = read.watch(call, THING.name, ListQuery(), begin)
            heard = [await anext(watch) for _ in seen]
            assert [(event, msgspec.json.decode(body)["name"]) for event, _, body in heard] == seen
            blind = msgspec.structs.replace(MANAGER, sight=begin + 1)
            again = read.watch(Call(principal=blind), THING.name, ListQuery(), begin)
            assert (await anext(again))[0] == "reset", "what it may see changed since"
            await hub.close()

    bench.run(main)


async def _more(store: Store) -> list[tuple[str, str]]:
    """Make and remove things; return what the manager hears of them."""
    dice, heard = random.Random(SEED), []
    for number in range(40):
        account, manager = dice.choice(("yes", "no", "")), dice.choice(("m", "other", ""))
        made = replace(thing(f"more{number}", manager=manager), account_id=account, account=account)
        made = await store.write(functools.partial(_create, made=made))
        went = dice.random() < 0.5
        if went:
            await store.write(functools.partial(_purge, made=made))
        if manager == "m" and account != "no":
            heard.append(("gone" if went else "put", made.name))
    return heard
