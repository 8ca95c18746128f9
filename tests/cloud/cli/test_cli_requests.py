"""Requests to nodes by the CLI: a node's answer is what a command prints."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pileus.cli.failure import NOT_FOUND, OK, REFUSED, USAGE
from pileus.drivers.host.guest.base import GuestAnswer
from pileus.fleet.node.types import NodeAssigned, NodeDesired
from pileus.fleet.request.host import observed_of
from pileus.fleet.request.types import PAYLOAD, is_settled
from pileus.kernel.kind import Resource
from pileus.kernel.store.lists import Filter
from pileus.kernel.store.store import Store
from pileus.kernel.transaction import Transaction

if TYPE_CHECKING:
    from tests.cloud.cli.cli_world import Cloud
    from tests.cloud.cli.conftest import Run
else:
    Cloud = Run = Any

BINARY = bytes(range(256)) * 1000


@pytest.fixture
def node(cloud: Cloud, account: str) -> Iterator[str]:
    """A node that answers what it is asked, and refuses ``no``."""
    store = cloud.started.parts.store
    asyncio.run_coroutine_threadsafe(_make(store, account), cloud.loop).result(10)
    answering = asyncio.run_coroutine_threadsafe(_answer(store), cloud.loop)
    yield "node"
    answering.cancel()


async def _make(store: Store, account: str) -> None:
    found = await store.find("tenancy.account", "", account)
    assert found is not None
    made = Resource(
        id="", kind="fleet.node", name="node", desired=NodeDesired(manager="m"),
        assigned=NodeAssigned(zone="", vdc=""), account=account, account_id=found.id, owner=found.id,
    )  # fmt: skip

    async def write(tx: Transaction) -> None:
        await tx.create(made)

    await store.write(write)


async def _answer(store: Store) -> None:
    while True:
        await asyncio.sleep(0.05)
        for request in await store.list(Filter(kind="fleet.request")):
            if request.assigned.sequence and not is_settled(request):
                payload = await store.content(request.id, PAYLOAD) or request.desired.payload.encode()
                end = GuestAnswer(state="refused" if payload == b"no" else "applied", answer=payload)
                await store.write(lambda tx, request=request, end=end: _settle(tx, request, end))  # type: ignore[misc]


async def _settle(tx: Transaction, request: Resource, end: GuestAnswer) -> None:
    await tx.update(request, observed=observed_of(end), observed_generation=request.generation)


def test_the_answer_is_printed_when_it_is_there(pileus: Run, account: str, node: str) -> None:
    ran = pileus("create", "request", "--account", account, "--node", node, "--payload", "hello\n", "--wait")
    assert (ran.code, ran.out) == (OK, "hello\n"), ran.err
    assert ran.err.startswith("request r-")


def test_a_request_that_is_refused_ends_the_command_with_the_nodes_words(pileus: Run, account: str, node: str) -> None:
    ran = pileus("create", "request", "one", "--account", account, "--node", node, "--payload", "no", "--wait")
    assert (ran.code, ran.out) == (REFUSED, "")
    assert f"request one of account {account} is refused: Refused: no" in ran.err


@pytest.mark.parametrize("body", [b"short", b"\xff\xfe", BINARY, b"\0"], ids=["text", "bytes", "long", "nul"])
def test_a_payload_comes_from_a_file_however_long(
    pileus: Run, account: str, node: str, tmp_path: Path, body: bytes
) -> None:
    file = tmp_path / "payload"
    file.write_bytes(body)
    ran = pileus(
        "create", "request", "--account", account, "--node", node, "--payload-file", str(file), "--wait", "-o", "json"
    )
    assert ran.code == OK, ran.err
    assert ran.json["desired"]["upload"] == ("no" if body == b"short" else "yes")
    assert ran.json["assigned"]["payload_bytes"] == len(body)


def test_a_payload_that_is_too_long_makes_no_request(pileus: Run, account: str, node: str, tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(bytes((16 << 20) + 1))
    ended = pileus(
        "create", "request", "big", "--node", node, "--account", account, "--payload-file", str(tmp_path / "big")
    )
    assert ended.code == USAGE
    assert "longer than the 16777216 bytes" in ended.err
    assert pileus("get", "request", "big", "--account", account).code == NOT_FOUND


def test_a_payload_is_said_once(pileus: Run, account: str, node: str) -> None:
    ran = pileus("create", "request", "--account", account, "--node", node, "--payload", "x", "--payload-file", "-")
    assert ran.code == USAGE


def test_without_waiting_it_says_what_was_made(pileus: Run, account: str, node: str) -> None:
    ran = pileus("create", "request", "--account", account, "--node", node, "--payload", "x")
    assert ran.code == OK
    assert ran.out.startswith("request r-")
    assert ran.out.endswith(f" of account {account} created\n")
