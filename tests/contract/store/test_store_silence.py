"""PostgreSQL, or a server in the middle of a write, falls silent without a word: nobody waits for ever."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

import asyncpg
import pytest
from tests.contract.store.store_bench import Bench, make

from pileus.kernel.errors import Transient
from pileus.kernel.store import postgres
from pileus.kernel.store import statements as sql
from pileus.kernel.store.engine import Session

LIMIT_S = 20.0


class Wire:
    """A way to the database that can swallow everything, as a pulled cable does, for those connected before."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname, parts.port
        self._url = url
        self._gate = asyncio.Event()
        self._gate.set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.url = ""

    def cut(self) -> None:
        """Swallow what those who are connected now send and receive; others get through."""
        self._gate.clear()
        self._gate = asyncio.Event()
        self._gate.set()

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[Wire]:
        """Listen for the block."""
        server = await asyncio.start_server(self._carry, "127.0.0.1", 0)
        self.url = self._url.replace(f":{self._port}/", f":{server.sockets[0].getsockname()[1]}/")
        try:
            yield self
        finally:
            server.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        gate = self._gate
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        there, back = await asyncio.open_connection(self._host, self._port)
        both = [asyncio.create_task(_pump(reader, back, gate)), asyncio.create_task(_pump(there, writer, gate))]
        try:
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in both:
                pump.cancel()
            await asyncio.gather(*both, return_exceptions=True)
            for end in (writer, back):
                end.transport.abort()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, gate: asyncio.Event) -> None:
    while content := await reader.read(65_536):
        await gate.wait()
        writer.write(content)
        await writer.drain()


def test_a_server_frozen_in_the_middle_of_a_write_does_not_stop_the_others(postgres_url: str) -> None:
    bench = Bench(url=postgres_url)

    async def main() -> None:
        async with bench.store("frozen") as frozen, bench.store("other") as other:
            holds, thawed = asyncio.Event(), asyncio.Event()

            async def stand_still(session: Session) -> None:
                holds.set()
                await thawed.wait()

            task = asyncio.create_task(frozen.engine.write(stand_still))
            await holds.wait()
            async with asyncio.timeout(LIMIT_S):
                made = await make(other, "a")
            assert (await other.get(made.id)).name == "a"
            thawed.set()
            with pytest.raises(Transient):
                await task

    bench.run(main)


def test_a_database_that_vanishes_without_a_reset_is_found_again(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres, "ANSWER_TIMEOUT_S", 1.0, raising=False)

    async def main() -> None:
        async with Wire(postgres_url).open() as wire, Bench(url=wire.url).store() as store:
            await make(store, "before")
            wire.cut()
            async with asyncio.timeout(LIMIT_S):
                with pytest.raises(Transient):
                    await make(store, "lost")
                with pytest.raises(Transient):
                    await store.fetch(sql.NEWEST)
                made = await make(store, "after")
                assert (await store.get(made.id)).name == "after"

    Bench(url=postgres_url).run(main)


def test_every_session_reads_what_was_committed_whatever_the_databases_default(postgres_url: str) -> None:
    name = postgres_url.rpartition("/")[2]

    async def main() -> None:
        connection = await asyncpg.connect(postgres_url)
        await connection.execute(f"ALTER DATABASE {name} SET default_transaction_isolation = 'serializable'")
        await connection.close()
        bench = Bench(url=postgres_url)
        async with bench.store("one") as one, bench.store("two") as two:
            made = await asyncio.gather(*(make(store, f"{store.server}{n}") for n in range(40) for store in (one, two)))
            assert len({each.revision for each in made}) == 80

    Bench(url=postgres_url).run(main)
