"""A port that is isolated passes nothing in either direction but frames of its control path."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import msgspec
import pytest
from tests.contract.ovs.frames import BROADCAST, ethernet, good_frames
from tests.contract.ovs.lan import LIMIT_S, Guest, Lan

from pileus.drivers.host.ovs.base import ETHERTYPE_CONTROL, STRAY, PortSpec
from pileus.drivers.host.ovs.exchange import HOST_MAC
from pileus.drivers.host.paths import HostPaths

pytestmark = pytest.mark.anyio

BAD = PortSpec(id="red-00000000000a", mac="52:54:00:00:01:0a", addresses=("10.1.1.10",), vlan=101)
WEB = PortSpec(id="red-00000000000b", mac="52:54:00:00:01:0b", addresses=("10.1.1.11",), vlan=101)
SQL = PortSpec(id="red-00000000000c", mac="52:54:00:00:01:0c", addresses=("10.1.1.12",), vlan=101)


@pytest.fixture
async def lan(host: HostPaths) -> AsyncIterator[Lan]:
    lan = Lan(host)
    await lan.switch.open()
    yield lan
    for guest in lan.guests:
        guest.close()
    await lan.switch.close()


async def isolate(lan: Lan, guest: Guest, wish: bool = True) -> PortSpec:
    """Isolate the guest's port, or lift that, and return its spec as it is now in force."""
    guest.spec = msgspec.structs.replace(guest.spec, isolated=wish)
    await lan.switch.plug(guest.spec)
    fact = (await lan.switch.observe())[guest.spec.id]
    assert (fact.isolated, fact.blocked) == (wish, False)
    return guest.spec


async def answered(guest: Guest, other: Guest) -> None:
    """Let both send all that is good, and see that it arrives unchanged."""
    for sender, receiver in ((guest, other), (other, guest)):
        frames = list(good_frames(sender.spec, receiver.spec))
        sender.send(*frames)
        for frame in frames:
            assert await receiver.arrival(frame, LIMIT_S)
        receiver.inbox.clear()


@pytest.mark.parametrize("rate_limit_kbps", [0, 100_000])
async def test_nothing_passes_until_it_is_lifted(lan: Lan, rate_limit_kbps: int) -> None:
    bad = await lan.plug(msgspec.structs.replace(BAD, rate_limit_kbps=rate_limit_kbps))
    web, sql = await lan.plug(WEB), await lan.plug(SQL)
    await answered(bad, web)  # what was let through before is in the datapath's cache
    await lan.settle(web, sql)
    assert await lan.dropped(BAD) == 0
    for guest in (bad, web, sql):
        guest.inbox.clear()

    await isolate(lan, bad)
    tried = [frame for peer in (WEB, SQL) for frame in good_frames(BAD, peer)]
    bad.send(*tried)
    for peer in (web, sql):
        peer.send(*good_frames(peer.spec, BAD))
    await lan.counted(lambda: lan.dropped(BAD), len(tried))
    await lan.settle(web, sql)
    own = bytes.fromhex(BAD.mac.replace(":", ""))
    assert bad.inbox == []
    assert not [frame.hex() for guest in (web, sql) for frame in guest.inbox if frame[6:12] == own]
    assert STRAY not in (await lan.switch.vlan_counts())[BAD.id]

    await isolate(lan, bad, wish=False)
    for guest in (bad, web, sql):
        guest.inbox.clear()
    await answered(bad, web)
    await answered(bad, sql)
    assert STRAY not in (await lan.switch.vlan_counts())[BAD.id]


async def test_the_control_path_goes_on_before_during_and_after(lan: Lan) -> None:
    bad, web = await lan.plug(BAD), await lan.plug(WEB)
    exchange = await lan.switch.exchange(BAD.id)

    async def speaks() -> None:
        await exchange.send(b"question")
        assert await bad.arrival(ethernet(bad.mac, HOST_MAC, ETHERTYPE_CONTROL, b"question"), LIMIT_S)
        bad.inbox.clear()
        bad.send(ethernet(HOST_MAC, bad.mac, ETHERTYPE_CONTROL, b"answer"))
        async with asyncio.timeout(LIMIT_S):
            assert await exchange.receive() == b"answer"

    await speaks()
    await isolate(lan, bad)
    await speaks()
    await exchange.close()
    exchange = await lan.switch.exchange(BAD.id)  # one that is opened meanwhile
    await speaks()
    bad.send(ethernet(BROADCAST, bad.mac, ETHERTYPE_CONTROL, b"to all"))
    async with asyncio.timeout(LIMIT_S):
        assert await exchange.receive() == b"to all"
    web.inbox.clear()
    await isolate(lan, bad, wish=False)
    await speaks()
    assert web.inbox == []


async def test_a_port_that_comes_isolated_passes_not_even_its_first_frame(lan: Lan) -> None:
    web, sql = await lan.plug(WEB), await lan.plug(SQL)
    bad = await lan.plug(msgspec.structs.replace(BAD, isolated=True))
    tried = list(good_frames(BAD, WEB))
    bad.send(*tried)
    await lan.counted(lambda: lan.dropped(BAD), len(tried))
    await lan.settle(web, sql)
    await lan.settle(sql, web)
    assert bad.inbox == web.inbox == sql.inbox == []


async def test_neighbours_do_not_notice(lan: Lan) -> None:
    bad, web, sql = await lan.plug(BAD), await lan.plug(WEB), await lan.plug(SQL)
    await isolate(lan, bad)
    await answered(web, sql)
    await lan.unplug(bad)
    await answered(web, sql)
