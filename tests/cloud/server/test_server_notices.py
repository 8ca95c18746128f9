"""Notices of a server as a process, to a real HTTPS receiver: signed, and never lost when the server is killed."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography.exceptions import InvalidSignature
from tests.cloud.server.server_world import LIMIT_S
from tests.receiver import Receiver, receiving

from pileus.fleet.manager.types import ManagerAssigned, ManagerDesired, ManagerObserved
from pileus.fleet.request.types import RequestAssigned, RequestDesired, RequestObserved
from pileus.kernel.clock import system_clock
from pileus.kernel.kind import Resource
from pileus.kernel.notice import TOLD_SPACE
from pileus.kernel.store.sqlite import SqliteEngine
from pileus.kernel.store.store import Store
from pileus.kernel.transaction import Transaction
from pileus.registry import KINDS

pytestmark = pytest.mark.anyio

PAGE = Path(__file__).parents[3] / "docs/concepts/notices.md"
KILLED_AFTER_SENDING = {"PILEUS_FAILPOINT": "notice.taken"}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def folder(parent: Path) -> Path:
    """Make the folder of a server."""
    made = parent / "data"
    made.mkdir(mode=0o700)
    return made


@contextlib.asynccontextmanager
async def database(data: Path) -> AsyncIterator[Store]:
    """Give the database of a server that does not run."""
    engine = SqliteEngine(data / "pileus.db")
    await engine.open()
    try:
        yield Store(engine, KINDS, system_clock)
    finally:
        await engine.close()


@contextlib.asynccontextmanager
async def server(data: Path, **environment: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """Give a server process for the block."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", "from pileus.cli.main import main; main()", "server", "--data", str(data), "--port", "0",
        stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL, env={**os.environ, **environment},
    )  # fmt: skip
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def furnish(store: Store, receiver: Receiver, ends: int) -> str:
    """Make a manager of the cluster and requests of one node that ended; return the manager's id."""

    async def made(tx: Transaction) -> str:
        desired = ManagerDesired(callback_url=receiver.url, callback_ca=receiver.ca)
        manager = Resource(
            id="", kind="fleet.manager", name="m", desired=desired, assigned=ManagerAssigned(reach="any")
        )
        id = (await tx.create(manager)).id
        await tx.claim(TOLD_SPACE, id, id)
        for number in range(ends):
            await tx.create(
                Resource(
                    id="",
                    kind="fleet.request",
                    name=f"r{number}",
                    desired=RequestDesired(node="n", payload="secret"),
                    assigned=RequestAssigned(
                        manager=id, node="n", sequence=number + 1, deadline=0.0, settled_at=tx.now
                    ),
                    observed=RequestObserved(state="applied", answer=f"answer {number}"),
                )
            )
        return id

    return await store.write(made)


@pytest.mark.long
async def test_a_server_killed_before_it_noted_what_was_taken_sends_it_again_with_the_same_id(tmp_path: Path) -> None:
    data = folder(tmp_path)
    async with receiving(tmp_path) as receiver:
        async with database(data) as store:
            await furnish(store, receiver, 3)
        for time in range(2):
            async with server(data, **KILLED_AFTER_SENDING) as process, asyncio.timeout(LIMIT_S):
                assert await process.wait() == -signal.SIGKILL
            assert len(receiver.came) == time + 1
        async with server(data):
            await receiver.has(5)
        first, second, third, *rest = receiver.ids
        assert (first, second) == (second, third), "the same message, the same id"
        assert len({third, *rest}) == 3
        told = [json.loads(body) for _, body in receiver.came[2:]]
        assert [each["data"]["answer"] for each in told] == ["answer 0", "answer 1", "answer 2"]
        assert not any(b"secret" in body for _, body in receiver.came)


async def test_the_page_verifies_what_comes_and_refuses_what_was_changed(tmp_path: Path) -> None:
    data = folder(tmp_path)
    async with receiving(tmp_path) as receiver:
        async with database(data) as store:
            manager = await furnish(store, receiver, 1)
        async with server(data):
            await receiver.has(1)
        async with database(data) as store:
            observed: ManagerObserved = (await store.get(manager)).observed
            private = await store.setting("webhook-key")
    headers, body = receiver.came[0]
    names: dict[str, Any] = {}
    found = re.search(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert found is not None
    exec(found[1], names)
    verify = names["verify"]
    verify(observed.webhook_key, headers, body)
    for wrong, changed in ((headers, body + b" "), ({**headers, "webhook-id": "msg_other"}, body)):
        with pytest.raises(InvalidSignature):
            verify(observed.webhook_key, wrong, changed)
    with pytest.raises(ValueError, match="too old"):
        verify(observed.webhook_key, {**headers, "webhook-timestamp": "1700000000"}, body)
    assert private is not None
    assert private not in msgspec.json.encode(observed).decode()
    assert headers["content-type"] == "application/json"


async def test_a_receiver_that_takes_nothing_now_gets_the_same_message_later(tmp_path: Path) -> None:
    data = folder(tmp_path)
    async with receiving(tmp_path) as receiver:
        receiver.status = 503
        async with database(data) as store:
            await furnish(store, receiver, 2)
        async with server(data):
            await receiver.has(2)
            receiver.status = 204
            await receiver.has(4)
        assert receiver.ids[0] == receiver.ids[1]
        assert len(set(receiver.ids[:4])) == 2
