"""What is delivered is in the customer's database once and in order, whatever fails in between."""

from __future__ import annotations

import asyncio
import json

import asyncpg
import pytest
from tests.contract.monitor_history.customers_database import Wire, wire
from tests.contract.monitor_history.history_rig import ACTION, STATE, STREAM, Rig, entry, states, until

from pileus.kernel.errors import Transient
from pileus.monitor.receiver import storable

pytestmark = pytest.mark.anyio


async def test_entries_arrive_once_and_in_order(rig: Rig) -> None:
    await rig.take([])
    assert await rig.numbers() == [], "the tables are there before the first entry"
    await rig.take(states(1, 500))
    await rig.take(states(400, 700))
    assert await rig.numbers() == list(range(1, 701))
    bodies = await rig.rows("SELECT (body->>'number')::int, seq FROM pileus_history")
    assert all(number == seq for number, seq in bodies)


async def test_the_views_say_what_the_concept_page_promises(rig: Rig) -> None:
    await rig.take([entry(7, "state", STATE), entry(9, "action", ACTION)])
    assert await rig.rows(
        "SELECT stream, seq, at::text, vm, name, state, details->'applications' FROM pileus_state"
    ) == [(STREAM, 7, "2026-01-02 03:04:05.25+00", "vm-1", "web", "running", '{"shop": {"state": "failed"}}')]
    columns = "stream, seq, action, vm, state, actor, cause, idempotency_key, steps->0->>'state'"
    assert await rig.rows(f"SELECT {columns} FROM pileus_action") == [
        (STREAM, 9, "action-1", "vm-1", "done", "monitor watch", "applications.shop.state is failed", "p/vm-1/shop/1",
         "done")
    ]  # fmt: skip


async def test_a_database_that_is_killed_within_a_batch_has_all_of_it_once_afterwards(rig: Rig) -> None:
    """The batches are cut at other places each time; the last one is killed when all was sent, the commit too."""
    await rig.take([])
    sizes = (20_000, 200_000, 400_000, None)
    for number, size in enumerate(sizes):
        first = 1 + 500 * number
        killed = asyncio.Event()

        def kill(way: Wire, size: int | None = size, killed: asyncio.Event = killed) -> None:
            is_there = b"COMMIT\0" in way.upward if size is None else len(way.upward) > size
            if is_there and not killed.is_set():
                killed.set()
                rig.database.kill()

        async with wire(rig.database.port) as way:
            way.on_upward = kill
            with pytest.raises(Transient):
                await rig.take(states(first, first + 499, 1000), port=way.port)
            assert killed.is_set()
        await asyncio.to_thread(rig.database.start)
        assert len(await rig.numbers()) in (500 * number, 500 * (number + 1)), "half a batch is there"
        await rig.insist(states(first, first + 499, 1000))
    assert await rig.numbers() == list(range(1, 1 + 500 * len(sizes)))


async def test_an_answer_to_a_commit_that_is_lost_makes_nothing_twice(rig: Rig) -> None:
    await rig.take([])
    async with wire(rig.database.port) as way:

        def deafen(way: Wire) -> None:
            way.is_deaf = way.is_deaf or b"COMMIT\0" in way.upward

        way.on_upward = deafen
        with pytest.raises(Transient, match="the database cannot be written"):
            await rig.take(states(1, 100), port=way.port)
        assert way.is_deaf
        await until(rig.numbers)
        assert len(await rig.numbers()) == 100, "it was kept, and nobody was told"
        way.is_deaf, way.upward = False, bytearray()
        way.on_upward = lambda way: None
        await rig.take(states(1, 150), port=way.port)
    assert await rig.numbers() == list(range(1, 151))


async def test_a_session_that_is_ended_within_a_batch_leaves_nothing_of_it(rig: Rig) -> None:
    await rig.take([])
    holder = await asyncpg.connect(rig.database.url(rig.name))
    await holder.execute("BEGIN; LOCK TABLE pileus_history IN EXCLUSIVE MODE")
    taking = asyncio.create_task(rig.take(states(1, 10)))
    end = (
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
        " WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )

    async def is_ended() -> bool:
        return (await rig.rows(end)) == [(1,)]

    await until(is_ended)
    with pytest.raises(Transient, match="terminating connection due to administrator command"):
        await taking
    await holder.close()
    assert await rig.numbers() == []
    await rig.take(states(1, 10))
    assert await rig.numbers() == list(range(1, 11))


async def test_whoever_reads_the_views_for_long_holds_up_nothing(rig: Rig) -> None:
    await rig.take(states(1, 10))
    reader = await asyncpg.connect(rig.database.url(rig.name))
    await reader.execute("BEGIN; SELECT * FROM pileus_state; SELECT * FROM pileus_action; SELECT * FROM pileus_history")
    async with asyncio.timeout(5.0):
        await rig.take(states(11, 20))
    await reader.close()
    assert len(await rig.numbers()) == 20


async def test_histories_that_begin_at_once_in_one_database_all_succeed(rig: Rig) -> None:
    await asyncio.gather(*(rig.take(states(1 + 10 * number, 10 + 10 * number)) for number in range(8)))
    assert sorted(await rig.numbers()) == list(range(1, 81))


async def test_a_stopped_database_is_given_up_in_time_within_a_batch_too(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    await rig.take([])
    monkeypatch.setattr("pileus.monitor.receiver.TIMEOUT_S", 1.0)
    loop = asyncio.get_running_loop()
    tasks = asyncio.all_tasks()
    try:
        for size in (0, 100_000):
            async with wire(rig.database.port) as way:

                def stop(way: Wire, size: int = size) -> None:
                    if len(way.upward) > size:
                        rig.database.hold()
                        way.on_upward = lambda way: None

                way.on_upward = stop
                began = loop.time()
                with pytest.raises(Transient, match="did not answer within 1 s"):
                    await rig.take(states(1, 500, 1000), port=way.port)
                assert loop.time() - began < 3.0
            rig.database.let_go()
    finally:
        rig.database.let_go()
    monkeypatch.undo()
    await rig.insist(states(1, 500, 1000))
    assert await rig.numbers() == list(range(1, 501))
    assert asyncio.all_tasks() <= tasks, "what was given up goes on somewhere"


async def test_a_lock_that_somebody_holds_is_given_up_there_too(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    await rig.take([])
    monkeypatch.setattr("pileus.monitor.receiver.BEGIN", "BEGIN; SET LOCAL statement_timeout = 300;")
    holder = await asyncpg.connect(rig.database.url(rig.name))
    await holder.execute("BEGIN; LOCK TABLE pileus_history IN EXCLUSIVE MODE")
    with pytest.raises(Transient, match="canceling statement due to statement timeout"):
        await rig.take(states(1, 10))
    await holder.close()


@pytest.mark.parametrize("text", ["\0", "a\0\0b", "\\u0000", "\\\0", "\\\\u0000\0", "ü\ud7ff\U0001f600"])
async def test_whatever_text_an_appliance_says_can_be_kept(rig: Rig, text: str) -> None:
    body = {**STATE, "said": {text: [text]}}
    await rig.take([entry(1, "state", body)])
    kept = await rig.rows("SELECT body->>'said' FROM pileus_history")
    shown = text.replace("\0", "\ufffd")
    assert json.loads(kept[0][0]) == {shown: [shown]}
    assert json.loads(storable(json.dumps(text))) == shown
