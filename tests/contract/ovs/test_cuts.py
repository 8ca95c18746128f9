"""The real switch after a change that was cut short at each of its steps."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from itertools import count
from typing import Any

import msgspec
import pytest

from pileus.drivers.host.errors import DriverError, OvsdbError
from pileus.drivers.host.ovs import namespace
from pileus.drivers.host.ovs.base import PortSpec, SegmentSpec, Uplinks
from pileus.drivers.host.ovs.command import run
from pileus.drivers.host.ovs.real import OpenVSwitch
from pileus.drivers.host.paths import HostPaths

pytestmark = pytest.mark.anyio

WEB = PortSpec(id="port-0198c0de0001", mac="52:54:00:00:00:01", addresses=("10.1.1.1",), vlan=101)
SQL = PortSpec(id="port-0198c0de0002", mac="52:54:00:00:00:02", addresses=("10.1.1.2",), vlan=101)
MOVED = msgspec.structs.replace(WEB, vlan=102, addresses=("10.1.1.7",), rate_limit_kbps=500)
JOINED = SegmentSpec(vlan=101, vni=5001, trunk=False, peers=("10.200.2.11",))
STEPS_MAX = 30


class Cut(DriverError):
    """The agent dies here."""


class CutSwitch(OpenVSwitch):
    """Dies at its ``left``-th question to Open vSwitch from now; 0: never."""

    def __init__(self, paths: HostPaths) -> None:
        super().__init__(paths, Uplinks(tunnel="tunnel0", tunnel_address="10.200.1.11/24"))
        self.left = 0
        transact = self._database._transact

        async def cut_transact(*operations: Any) -> list[Any]:
            self.step()
            return await transact(*operations)

        self._database._transact = cut_transact  # type: ignore[method-assign]

    def step(self) -> None:
        if self.left:
            self.left -= 1
            if not self.left:
                raise Cut("Cut", "the agent died")

    async def _ofctl(self, command: str, *arguments: str, text: str = "") -> str:
        self.step()
        return await super()._ofctl(command, *arguments, text=text)


@pytest.fixture
async def switch(host: HostPaths) -> CutSwitch:
    switch = CutSwitch(host)
    await switch.open()
    await run(["ip", "-n", host.namespace, "link", "add", "tunnel0", "type", "veth", "peer", "name", "other0"])
    return switch


async def flows_of(switch: OpenVSwitch) -> list[str]:
    """Return all flows and meters as text, without what changes by itself."""
    dump = await switch._ofctl("dump-flows", "--no-stats")
    meters = await switch._ofctl("dump-meters")
    return sorted([*dump.splitlines(), *(line for line in meters.splitlines() if "xid" not in line)])


async def cut_at(switch: CutSwitch, step: int, change: PortSpec | str) -> bool:
    """Make the change and die at ``step``; return whether there was such a step."""
    return await cut(switch, step, lambda: switch.unplug(change) if isinstance(change, str) else switch.plug(change))


async def cut(switch: CutSwitch, step: int, change: Callable[[], Awaitable[object]]) -> bool:
    """Begin ``change`` and die at ``step``; return whether there was such a step."""
    switch.left = step
    try:
        await change()
    except Cut:
        return True
    finally:
        switch.left = 0
    return False


@pytest.mark.parametrize("then", [WEB, MOVED], ids=["back", "on"])
async def test_a_change_cut_anywhere_is_put_right_by_the_next(switch: CutSwitch, then: PortSpec) -> None:
    await switch.plug(SQL)
    await switch.plug(then)
    wanted, facts = await flows_of(switch), await switch.observe()
    for step in count(1):
        await switch.plug(WEB)
        was_cut = await cut_at(switch, step, MOVED)
        seen = (await switch.observe())[WEB.id]
        assert seen.blocked or (seen.vlan, seen.addresses) in ((101, ("10.1.1.1",)), (102, ("10.1.1.7",)))
        await switch.plug(then)
        assert await flows_of(switch) == wanted, f"cut at step {step}"
        assert await switch.observe() == facts
        if not was_cut:
            break
    assert 5 < step < STEPS_MAX


@pytest.mark.parametrize("wish", [True, False], ids=["isolated", "let go"])
async def test_an_isolation_cut_anywhere_is_put_right_by_the_next(switch: CutSwitch, wish: bool) -> None:
    before, after = (msgspec.structs.replace(WEB, isolated=each) for each in (not wish, wish))
    await switch.plug(SQL)
    await switch.plug(after)
    wanted, facts = await flows_of(switch), await switch.observe()
    for step in count(1):
        await switch.plug(before)
        was_cut = await cut_at(switch, step, after)
        await switch.plug(after)
        assert await flows_of(switch) == wanted, f"cut at step {step}"
        assert await switch.observe() == facts
        if not was_cut:
            break
    assert 3 < step < STEPS_MAX


async def test_unplugging_cut_anywhere_is_finished_by_the_next(switch: CutSwitch) -> None:
    await switch.plug(SQL)
    wanted, facts = await flows_of(switch), await switch.observe()
    for step in count(1):
        await switch.plug(MOVED)
        was_cut = await cut_at(switch, step, MOVED.id)
        await switch.unplug(MOVED.id)
        assert await flows_of(switch) == wanted, f"cut at step {step}"
        assert await switch.observe() == facts
        if not was_cut:
            break
    assert 3 < step < STEPS_MAX


async def test_a_first_plug_cut_anywhere_leaves_nothing_after_unplugging(switch: CutSwitch, host: HostPaths) -> None:
    await switch.plug(SQL)
    wanted, facts = await flows_of(switch), await switch.observe()
    taps = set(await namespace.counters(host.namespace))
    for step in count(1):
        was_cut = await cut_at(switch, step, MOVED)
        seen = (await switch.observe()).get(MOVED.id)
        assert not was_cut or seen is None or seen.blocked or seen.vlan == MOVED.vlan
        await switch.unplug(MOVED.id)
        assert await flows_of(switch) == wanted, f"cut at step {step}"
        assert await switch.observe() == facts
        assert set(await namespace.counters(host.namespace)) == taps
        if not was_cut:
            break
    assert 5 < step < STEPS_MAX


async def test_a_meter_that_cannot_be_made_is_an_error_of_the_switch(switch: CutSwitch) -> None:
    with pytest.raises(OvsdbError):
        await switch._ofctl("add-meter", "meter=1,nonsense")


async def test_a_segment_whose_change_was_cut_anywhere_is_put_right_by_the_next(switch: CutSwitch) -> None:
    await switch.plug(SQL)
    without = await flows_of(switch)
    await switch.join(JOINED)
    wanted = await flows_of(switch)
    other = msgspec.structs.replace(JOINED, vni=7, peers=("10.200.2.12",))
    for change in (lambda: switch.join(other), lambda: switch.leave(101)):
        for step in count(1):
            await switch.join(JOINED)
            was_cut = await cut(switch, step, change)
            assert (await switch.segments()).get(101) in (None, JOINED, other)
            await switch.join(JOINED)
            assert await switch.segments() == {101: JOINED}
            assert await flows_of(switch) == wanted, f"cut at step {step}"
            await cut(switch, step, change)
            await switch.leave(101)
            assert await switch.segments() == {}
            assert await flows_of(switch) == without, f"cut at step {step}"
            if not was_cut:
                break
        assert 2 < step < STEPS_MAX


async def test_a_control_path_whose_opening_was_cut_anywhere_goes_with_its_port(switch: CutSwitch) -> None:
    await switch.plug(SQL)
    wanted = await flows_of(switch)
    for step in count(1):
        await switch.plug(MOVED)
        was_cut = await cut(switch, step, lambda: switch.exchange(MOVED.id))
        await switch.unplug(MOVED.id)
        assert await flows_of(switch) == wanted, f"cut at step {step}"
        if not was_cut:
            break
    assert 2 < step < STEPS_MAX
