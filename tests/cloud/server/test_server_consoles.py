"""Logs and consoles of VMs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tests.cloud.server.server_rig import Rig, running
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from pileus.compute.vm.types import VmAssigned, VmDesired
from pileus.kernel.kind import Resource

pytestmark = pytest.mark.anyio


class Site:
    """A server with an account, its owner's key and a VM on a host."""

    def __init__(self, rig: Rig, owner: str, reader: str, vm: str) -> None:
        self.rig, self.owner, self.reader, self.vm = rig, owner, reader, vm

    def console(self, key: str, origin: str | None = None, vm: str | None = None) -> connect:
        """Return a console's connection, to be entered."""
        rig = self.rig
        return connect(
            f"wss://127.0.0.1:{rig.started.port}/v1/compute.vm/{vm or self.vm}/console",
            ssl=rig.trust(),
            additional_headers={"authorization": f"Bearer {key}"},
            origin=origin,  # type: ignore[arg-type]
            proxy=None,
        )


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with running(tmp_path) as rig:
        account = (await rig("POST", "/v1/tenancy.account", {"name": "acme"})).json["id"]
        keys = {}
        for role in ("owner", "reader"):
            user = {"name": role, "account": "acme", "desired": {"role": role}}
            assert (await rig("POST", "/v1/tenancy.user", user)).status == 201
            key = {"name": role, "account": "acme", "desired": {"user": role}}
            keys[role] = (await rig("POST", "/v1/tenancy.key", key)).json["secret"]
        placed = await _vm(rig, account, "web", await rig.host("h1"))
        await _vm(rig, account, "waiting", "")
        rig.agents.logs[placed] = b"".join(b"line %d\n" % number for number in range(1000))
        yield Site(rig, keys["owner"], keys["reader"], placed)


async def test_the_end_of_a_log(site: Site) -> None:
    answer = await site.rig(
        "GET", "/v1/compute.vm/web/log?tail_bytes=18", headers={"authorization": f"Bearer {site.owner}"}
    )
    assert (answer.status, answer.headers["content-type"]) == (200, "text/plain; charset=utf-8")
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert _unchunked(answer.body) == b"line 998\nline 999\n"


async def test_a_log_of_a_vm_without_host_and_of_a_host_that_is_away_are_errors(site: Site) -> None:
    headers = {"authorization": f"Bearer {site.owner}"}
    nowhere = await site.rig("GET", "/v1/compute.vm/waiting/log", headers=headers)
    assert (nowhere.status, nowhere.code) == (409, "no-host")
    site.rig.agents.logs.clear()
    away = await site.rig("GET", "/v1/compute.vm/web/log", headers=headers)
    assert (away.status, away.code) == (503, "transient")
    assert away.headers["retry-after"] == "1"


async def test_a_reader_gets_neither_log_nor_console(site: Site) -> None:
    answer = await site.rig("GET", "/v1/compute.vm/web/log", headers={"authorization": f"Bearer {site.reader}"})
    assert (answer.status, answer.code) == (403, "denied")
    assert await _refusal(site.console(site.reader)) == 403


async def test_a_console_carries_bytes_both_ways_and_is_closed_at_the_host(site: Site) -> None:
    async with site.console(site.owner) as socket:
        await socket.send(b"ls\n")
        assert await socket.recv() == b"LS\n"
        await socket.send(b"bye")
        with pytest.raises(ConnectionClosed):
            await socket.recv()
    async with asyncio.timeout(5):
        await site.rig.agents.consoles[0].closed.wait()
    entries = (await site.rig("GET", "/v1/audit?account=acme")).json["items"]
    assert any((entry["verb"], entry["actor"], entry["name"]) == ("console", "owner", "web") for entry in entries)


async def test_a_console_is_closed_at_the_host_when_the_caller_goes(site: Site) -> None:
    async with site.console(site.owner) as socket:
        await socket.send(b"x")
        await socket.recv()
    async with asyncio.timeout(5):
        await site.rig.agents.consoles[0].closed.wait()


@pytest.mark.parametrize(
    "change",
    [{"state": "disabled"}, {"role": "reader"}],
)
async def test_a_console_ends_within_five_seconds_of_its_user_losing_the_right(site: Site, change: Any) -> None:
    async with site.console(site.owner) as socket:
        await site.rig("PATCH", "/v1/tenancy.user/owner?account=acme", {"desired": change})
        with pytest.raises(ConnectionClosed):
            async with asyncio.timeout(5):
                await socket.recv()


async def test_a_console_is_refused_without_key_to_strangers_and_to_other_sites(site: Site) -> None:
    assert await _refusal(site.console("nonsense")) == 401
    assert await _refusal(site.console(site.owner, origin="https://evil.example")) == 403
    assert await _refusal(site.console(site.owner, vm="none")) == 404
    assert site.rig.agents.consoles == []


async def _refusal(connection: connect) -> int:
    with pytest.raises(InvalidStatus) as raised:
        async with connection:
            pass
    return raised.value.response.status_code


async def _vm(rig: Rig, account: str, name: str, host: str) -> str:
    assigned = VmAssigned(zone="", vdc="", vcpus=1, memory_mib=128, disk_gib=1, host=host)
    wish = VmDesired(image="tiny", vcpus=1, memory_mib=128)
    resource = Resource(
        id="", kind="compute.vm", name=name, account_id=account, account="acme", desired=wish, assigned=assigned
    )
    return (await rig.started.parts.store.write(lambda tx: tx.create(resource))).id


def _unchunked(body: bytes) -> bytes:
    """Return a chunked body's content (RFC 9112 7.1)."""
    content = b""
    while body:
        size, _, rest = body.partition(b"\r\n")
        content += rest[: int(size, 16)]
        body = rest[int(size, 16) + 2 :]
    return content
