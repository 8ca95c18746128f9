"""The control path of a port on the real switch, with the guest's NIC at the other end."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator

import msgspec
import pytest
from tests.contract.ovs.frames import BROADCAST, attacks, ethernet, good_frames
from tests.contract.ovs.lan import LIMIT_S, Guest, Lan

from pileus.drivers.host.ovs.base import ETHERTYPE_CONTROL, FrameExchange, PortSpec
from pileus.drivers.host.ovs.exchange import BURST_FRAMES, HOST_MAC, INBOX_FRAMES_MAX, RATE_FRAMES, control_meter
from pileus.drivers.host.ovs.real import OpenVSwitch
from pileus.drivers.host.paths import HostPaths

pytestmark = pytest.mark.anyio

NODE = PortSpec(id="node-0000000000a1", mac="52:54:00:00:03:0a", addresses=(), vlan=101)
OTHER = PortSpec(id="node-0000000000a2", mac="52:54:00:00:03:0b", addresses=("10.1.1.11",), vlan=101)
THIRD = PortSpec(id="node-0000000000a3", mac="52:54:00:00:03:0c", addresses=("10.1.1.12",), vlan=101)


@pytest.fixture
async def lan(host: HostPaths) -> AsyncIterator[Lan]:
    lan = Lan(host)
    await lan.switch.open()
    yield lan
    for guest in lan.guests:
        guest.close()
    await lan.switch.close()


def control(guest: Guest, payload: bytes, destination: bytes = HOST_MAC) -> bytes:
    return ethernet(destination, guest.mac, ETHERTYPE_CONTROL, payload)


async def received(exchange: FrameExchange) -> bytes:
    async with asyncio.timeout(LIMIT_S):
        return await exchange.receive()


async def test_frames_go_in_and_out_of_a_port_without_address_and_nowhere_else(lan: Lan) -> None:
    node, other, third = await lan.plug(NODE), await lan.plug(OTHER), await lan.plug(THIRD)
    exchange = await lan.switch.exchange(NODE.id)
    for size in (1, 60, 1400):
        question, answer = b"q" * size, b"a" * size
        await exchange.send(question)
        frame = ethernet(node.mac, HOST_MAC, ETHERTYPE_CONTROL, question)
        assert await node.arrival(frame, LIMIT_S)
        node.send(control(node, answer))
        assert await received(exchange) == answer
    # Neither the MAC that it is sent to nor the one that it is sent from decides where such a frame goes.
    node.send(control(node, b"to all", BROADCAST), control(node, b"to a neighbour", other.mac))
    node.send(ethernet(HOST_MAC, other.mac, ETHERTYPE_CONTROL, b"in its name"))
    assert [await received(exchange) for _ in range(3)] == [b"to all", b"to a neighbour", b"in its name"]
    other.send(control(other, b"no path", node.mac), control(other, b"no path", BROADCAST))
    await lan.settle(other, third)
    await lan.settle(third, other)
    assert (other.inbox, third.inbox) == ([], [])
    assert len(node.inbox) == 3
    assert list((await lan.switch.vlan_counts())[NODE.id]) == [NODE.vlan]
    assert await lan.dropped(NODE) == 0
    await lan.counted(lambda: lan.dropped(OTHER), 2)


async def test_a_closed_path_lets_nothing_through_and_leaves_no_flow(lan: Lan) -> None:
    node, other, third = await lan.plug(OTHER), await lan.plug(NODE), await lan.plug(THIRD)
    before = await state_of(lan.switch)
    for _ in range(2):
        exchange = await lan.switch.exchange(OTHER.id)
        assert await state_of(lan.switch) != before
        await exchange.close()
        assert await state_of(lan.switch) == before
    node.send(control(node, b"late"), control(node, b"late", other.mac))
    await lan.settle(node, third)
    assert (other.inbox, third.inbox) == ([], [])
    await lan.counted(lambda: lan.dropped(OTHER), 2)
    await lan.switch.exchange(OTHER.id)
    await lan.unplug(node)
    await lan.plug(OTHER)
    assert not [line for line in await state_of(lan.switch) if "88b5" in line and "in_port=CONTROLLER" in line]


async def state_of(switch: OpenVSwitch) -> list[str]:
    """Return flows and meters as text, without what changes by itself."""
    dump = await switch._ofctl("dump-flows", "--no-stats")
    meters = await switch._ofctl("dump-meters")
    return sorted(line for line in [*dump.splitlines(), *meters.splitlines()] if "xid" not in line)


async def test_the_rules_of_the_port_hold_beside_its_path(lan: Lan) -> None:
    attacker, peer = await lan.plug(OTHER), await lan.plug(THIRD)
    exchange = await lan.switch.exchange(OTHER.id)
    tried = [frame for name, frame in attacks(OTHER, THIRD) if name != "unknown ethertype"]
    attacker.send(*tried)
    await lan.counted(lambda: lan.dropped(OTHER), len(tried))
    frames = sorted(good_frames(OTHER, THIRD))
    attacker.send(*frames)
    await lan.settle(attacker, peer)
    assert sorted(peer.inbox) == frames
    attacker.send(control(attacker, b"first"))
    assert await received(exchange) == b"first"


async def test_a_new_agent_takes_a_path_over(lan: Lan) -> None:
    node = await lan.plug(NODE)
    old = await lan.switch.exchange(NODE.id)
    new_switch = OpenVSwitch(lan.paths)
    await new_switch.open()
    new = await new_switch.exchange(NODE.id)
    node.send(control(node, b"to whom?"))
    assert await received(new) == b"to whom?"
    await new.send(b"here")
    assert await node.arrival(ethernet(node.mac, HOST_MAC, ETHERTYPE_CONTROL, b"here"), LIMIT_S)
    await lan.switch.close()
    assert await received(old) == b""
    node.send(control(node, b"again"))
    assert await received(new) == b"again"
    await new_switch.close()
    assert await received(new) == b""


async def test_a_path_ends_with_the_nic_that_it_speaks_to(lan: Lan) -> None:
    node = await lan.plug(NODE)
    exchange = await lan.switch.exchange(NODE.id)
    changed = msgspec.structs.replace(NODE, mac="52:54:00:00:03:aa")
    await lan.switch.plug(changed)
    assert await received(exchange) == b""
    again = await lan.switch.exchange(NODE.id)
    await again.send(b"hello")
    frame = ethernet(bytes.fromhex("5254000003aa"), HOST_MAC, ETHERTYPE_CONTROL, b"hello")
    assert await node.arrival(frame, LIMIT_S)


async def test_a_guest_that_floods_neither_hurts_the_agent_nor_another_path(lan: Lan) -> None:
    node, other = await lan.plug(NODE), await lan.plug(OTHER)
    flooded, calm = await lan.switch.exchange(NODE.id), await lan.switch.exchange(OTHER.id)
    clock = asyncio.get_running_loop().time
    start = clock()
    for number in range(150):
        node.send(*[control(node, number.to_bytes(2, "big") + bytes(1398))] * 100)
        text = f"calm {number}".encode()
        other.send(control(other, text))
        assert await received(calm) == text
    took_s = clock() - start
    held = 0
    while flooded._inbox._payloads:  # type: ignore[attr-defined]
        held += len(await flooded.receive()) > 0
    assert 0 < held <= INBOX_FRAMES_MAX
    passed = await passed_by_meter(lan.switch)
    assert passed <= (took_s + 5) * RATE_FRAMES + BURST_FRAMES


async def passed_by_meter(switch: OpenVSwitch) -> int:
    """Return the frames of the first port's control path that its meter let through."""
    text = await switch._ofctl("meter-stats", f"meter={control_meter(1)}")
    found = re.search(r"packet_in_count:(\d+) .*?\n0: packet_count:(\d+)", text)
    assert found is not None
    return int(found[1]) - int(found[2])
