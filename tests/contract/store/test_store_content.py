"""Bytes that are kept of a resource, on both engines: whole, counted by account, and gone with the resource; queues too."""

from __future__ import annotations

import os

from tests.contract.store.store_bench import Bench, make

from pileus.kernel.store import statements as sql

LARGEST = os.urandom(16 << 20)


def test_content_is_kept_whole_and_goes_with_its_resource(bench: Bench) -> None:
    async def main() -> None:
        async with bench.store() as store:
            one, other = await make(store, "one"), await make(store, "other")
            assert await store.content(one.id, "payload") is None
            await store.write(lambda tx: tx.put_content(one, "payload", b"earlier"))
            await store.write(lambda tx: tx.put_content(one, "payload", LARGEST))
            await store.write(lambda tx: tx.put_content(one, "answer", b"\0\xff"))
            await store.write(lambda tx: tx.put_content(other, "payload", b""))
            assert await store.content(one.id, "payload") == LARGEST
            assert await store.content(one.id, "answer") == b"\0\xff"
            assert await store.content(other.id, "payload") == b""
            assert await store.write(lambda tx: tx.content_bytes(one.account_id)) == len(LARGEST) + 2
            await store.write(lambda tx: tx.drop_content(one, "answer"))
            assert await store.content(one.id, "answer") is None
            await store.write(lambda tx: tx.purge(one))
            assert await store.content(one.id, "payload") is None
            assert await store.content(other.id, "payload") == b""

    bench.run(main)


def test_a_queue_is_in_the_order_of_its_numbers(bench: Bench) -> None:
    async def main() -> None:
        async with bench.store() as store:
            made = [await make(store, f"r{number}") for number in range(4)]
            for number, each in zip((30, 4, 200), made, strict=False):
                await store.write(lambda tx, n=number, id=each.id: tx.claim("queue", str(n), id, n))  # type: ignore[misc]
            await store.write(lambda tx: tx.claim("queue", "no number yet", made[3].id))
            first = [made[1].id, made[0].id]
            assert await store.write(lambda tx: tx.queue("queue", 2)) == first
            assert await store.write(lambda tx: tx.queue("queue", 9)) == [*first, made[2].id]
            assert await store.write(lambda tx: tx.queue("queue", 0)) == []
            assert await store.write(lambda tx: tx.claimed("queue")) == 4
            assert await store.write(lambda tx: tx.claimed("empty")) == 0

    bench.run(main)


def test_what_left_its_host_is_told_to_the_host_only(bench: Bench) -> None:
    async def main() -> None:
        async with bench.store() as store:
            there = await make(store, "there", host="h")
            await store.write(lambda tx: tx.update(there, assigned=None, host=""))
            rows = await store.fetch(sql.GONE, after=0, n=10)
            assert [(row[1], row[4], row[5]) for row in rows] == [(there.id, "h", "")]

    bench.run(main)
