"""A watcher reads its own rows only, and no more at once than a page."""

from __future__ import annotations

import functools
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import msgspec
import pytest
import sqlalchemy as sa
from tests.contract.store.store_bench import REGISTRY, THING, Bench, make, thing

from pileus.kernel import reading
from pileus.kernel.access import Principal, Rule
from pileus.kernel.hub import Hub
from pileus.kernel.kind import Resource
from pileus.kernel.reading import Call, ListQuery, Reading
from pileus.kernel.store.engine import Row
from pileus.kernel.store.store import Store
from pileus.kernel.transaction import Transaction

RULES = (Rule(kinds=("*",), verbs=("get",)),)
SEED = 7


class CountingStore(Store):
    """Notes the largest answer of the database."""

    largest = 0

    async def fetch(self, statement: sa.sql.ClauseElement, **parameters: Any) -> Sequence[Row]:
        rows = await super().fetch(statement, **parameters)
        self.largest = max(self.largest, len(rows))
        return rows


@pytest.mark.parametrize("account", ["mine", ""])
def test_a_watch_far_behind_reads_page_by_page_and_misses_nothing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, account: str
) -> None:
    monkeypatch.setattr(reading, "CHANGES_PAGE", 5, raising=False)
    dice = random.Random(SEED)
    print("seed", SEED)

    async def main() -> None:
        async with bench.store() as opened:
            store = CountingStore(opened.engine, REGISTRY, bench.clock, "one")
            wanted: list[tuple[str, str]] = []
            begin = (await make(store, "first")).revision
            for number in range(60):
                made = await _make(store, f"t{number}", dice.choice(("mine", "theirs")))
                went = dice.random() < 0.5
                if went:
                    await store.write(functools.partial(_purge, made=made))
                if account in ("", made.account_id):
                    wanted.append(("gone" if went else "put", made.name))
            hub = Hub(store)
            await hub.open()
            store.largest = 0
            caller = Principal(user_id="u", user="u", account_id=account, account=account, role="r", rules=RULES)
            call = Call(principal=caller, all_accounts=not account)
            watch = Reading(store, hub, REGISTRY).watch(call, THING.name, ListQuery(), begin)
            heard: list[tuple[str, str]] = []
            while len(heard) < len(wanted):
                event, _, body = await anext(watch)
                heard.append((event, msgspec.json.decode(body)["name"]))
            await hub.close()
            assert heard == wanted
            assert store.largest <= 5

    bench.run(main)


async def _make(store: Store, name: str, account: str) -> Resource:
    made = replace(thing(name), account_id=account, account=account)
    return await store.write(lambda tx: tx.create(made))


async def _purge(tx: Transaction, made: Resource) -> None:
    await tx.purge(made)
