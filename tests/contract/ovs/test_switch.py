"""What every switch does, asked of the fake and of Open vSwitch."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Protocol

import msgspec
import pytest

from pileus.drivers.host.errors import DriverError, MissingTool, OvsdbError
from pileus.drivers.host.ovs import daemons, namespace
from pileus.drivers.host.ovs.base import PUBLIC_VLAN, PortFact, PortSpec, SegmentSpec, Station, Switch, Uplinks
from pileus.drivers.host.ovs.command import last_words
from pileus.drivers.host.ovs.fake import FakeSwitch, FakeSwitchWorld, Fault
from pileus.drivers.host.ovs.real import OpenVSwitch
from pileus.drivers.host.paths import HostPaths

pytestmark = pytest.mark.anyio

WEB = PortSpec(id="port-0198c0de0001", mac="52:54:00:00:00:01", addresses=("10.1.1.1",), vlan=101)
SQL = PortSpec(id="port-0198c0de0002", mac="52:54:00:00:00:02", addresses=("10.1.1.2", "10.1.1.3"), vlan=102)
SEGMENT = SegmentSpec(vlan=101, vni=5001, trunk=True, peers=("10.200.2.11", "10.200.2.12"))
LONELY = Uplinks()


class Rig(Protocol):
    """One host, and what can be done to it behind the driver's back."""

    def driver(self, uplinks: Uplinks = LONELY) -> Switch: ...

    def lose(self, *devices: str) -> None: ...

    async def crash(self) -> None: ...

    async def taps(self) -> set[str]: ...


class FakeRig:
    def __init__(self) -> None:
        self.world = FakeSwitchWorld()

    def driver(self, uplinks: Uplinks = LONELY) -> Switch:
        return FakeSwitch(self.world, uplinks)

    def lose(self, *devices: str) -> None:
        self.world.missing.update(devices)

    async def crash(self) -> None:
        self.world.crash()

    async def taps(self) -> set[str]:
        return {fact.tap for fact in self.world.ports.values()}


class RealRig:
    def __init__(self, paths: HostPaths) -> None:
        self.paths = paths

    def driver(self, uplinks: Uplinks = LONELY) -> Switch:
        return OpenVSwitch(self.paths, uplinks)

    def lose(self, *devices: str) -> None:
        """Nobody has made them."""

    async def crash(self) -> None:
        await kill(daemons.SwitchFiles.of(self.paths), "ovs-vswitchd")

    async def taps(self) -> set[str]:
        if not (Path("/run/netns") / self.paths.namespace).exists():
            return set()
        return {name for name in await namespace.counters(self.paths.namespace) if name.startswith("p")}


@pytest.fixture(params=["fake", "real"])
def rig(request: pytest.FixtureRequest) -> Rig:
    if request.param == "fake":
        return FakeRig()
    return RealRig(request.getfixturevalue("host"))


async def kill(files: daemons.SwitchFiles, daemon: str) -> None:
    """End a daemon of this test's host without a word, and wait until it is gone."""
    pid = daemons.running(files, daemon)
    assert pid is not None
    descriptor = os.pidfd_open(pid)
    signal.pidfd_send_signal(descriptor, signal.SIGKILL)
    await daemons._ended(descriptor)
    os.close(descriptor)


def fact_of(spec: PortSpec, tap: str, *, blocked: bool = False) -> PortFact:
    return PortFact(tap=tap, blocked=blocked, **msgspec.structs.asdict(spec))


async def test_a_plugged_port_is_observed_as_asked_for_and_its_tap_exists(rig: Rig) -> None:
    switch = rig.driver()
    await switch.open()
    web, sql = await switch.plug(WEB), await switch.plug(SQL)
    assert web == fact_of(WEB, web.tap)
    assert await switch.observe() == {WEB.id: web, SQL.id: sql}
    assert await rig.taps() == {web.tap, sql.tap}
    assert web.tap != sql.tap
    assert len(web.tap) <= 15


async def test_opening_and_plugging_again_changes_nothing(rig: Rig) -> None:
    switch = rig.driver()
    await switch.open()
    web = await switch.plug(WEB)
    await switch.open()
    assert await switch.plug(WEB) == web
    assert await switch.observe() == {WEB.id: web}


@pytest.mark.parametrize(
    "change",
    [
        {"addresses": ("10.1.1.9",)},
        {"addresses": ()},
        {"vlan": 4094},
        {"mac": "52:54:00:00:00:77"},
        {"rate_limit_kbps": 5000},
        {"isolated": True},
    ],
    ids=lambda change: next(iter(change)),
)
async def test_a_port_changes_in_place_and_back(rig: Rig, change: dict[str, object]) -> None:
    switch = rig.driver()
    await switch.open()
    before = await switch.plug(WEB)
    changed = msgspec.structs.replace(WEB, **change)
    assert await switch.plug(changed) == fact_of(changed, before.tap)
    assert await switch.observe() == {WEB.id: fact_of(changed, before.tap)}
    assert await switch.plug(WEB) == before
    assert await switch.observe() == {WEB.id: before}


async def test_unplugging_removes_the_port_and_its_tap_and_may_be_repeated(rig: Rig) -> None:
    switch = rig.driver()
    await switch.open()
    await switch.plug(WEB)
    sql = await switch.plug(SQL)
    for _ in range(2):
        await switch.unplug(WEB.id)
        assert await switch.observe() == {SQL.id: sql}
        assert await rig.taps() == {sql.tap}
    await switch.unplug("port-never-seen")
    assert set(await switch.counters()) == {SQL.id}


async def test_a_new_agent_finds_the_ports_of_the_old_one_in_force(rig: Rig) -> None:
    old = rig.driver()
    await old.open()
    web = await old.plug(msgspec.structs.replace(WEB, rate_limit_kbps=1000))
    await old.close()
    new = rig.driver()
    await new.open()
    assert await new.observe() == {WEB.id: web}
    await new.unplug(WEB.id)
    assert await new.observe() == {}


async def test_ports_of_a_killed_switch_are_blocked_until_they_are_plugged_again(rig: Rig) -> None:
    switch = rig.driver()
    await switch.open()
    web, sql = await switch.plug(WEB), await switch.plug(SQL)
    await rig.crash()
    blocked = {WEB.id: fact_of(WEB, web.tap, blocked=True), SQL.id: fact_of(SQL, sql.tap, blocked=True)}
    assert await switch.observe() == blocked
    await switch.open()
    assert await switch.observe() == blocked
    assert await switch.plug(WEB) == web
    assert await switch.observe() == {**blocked, WEB.id: web}
    assert await switch.plug(SQL) == sql
    assert await switch.observe() == {WEB.id: web, SQL.id: sql}


async def test_plugging_brings_a_killed_switch_back_by_itself(rig: Rig) -> None:
    switch = rig.driver()
    await switch.open()
    web = await switch.plug(WEB)
    await rig.crash()
    assert await switch.plug(WEB) == web
    assert await switch.observe() == {WEB.id: web}


async def test_a_port_can_be_unplugged_while_the_switch_is_dead(rig: Rig) -> None:
    switch = rig.driver()
    await switch.open()
    await switch.plug(WEB)
    await rig.crash()
    await switch.unplug(WEB.id)
    assert await switch.observe() == {}
    assert await rig.taps() == set()
    await switch.open()
    assert await switch.observe() == {}


async def test_removing_takes_everything_and_the_switch_can_be_opened_again(rig: Rig) -> None:
    switch = rig.driver()
    await switch.remove()
    await switch.open()
    await switch.plug(WEB)
    await switch.remove()
    assert await rig.taps() == set()
    await switch.remove()
    await switch.open()
    assert await switch.observe() == {}


async def test_two_ports_never_have_the_same_mac(rig: Rig) -> None:
    switch = rig.driver()
    await switch.open()
    web = await switch.plug(WEB)
    with pytest.raises(DriverError) as refused:
        await switch.plug(msgspec.structs.replace(SQL, mac=WEB.mac.upper()))
    assert refused.value.reason == "MacTaken"
    assert await switch.observe() == {WEB.id: web}
    assert await rig.taps() == {web.tap}


@pytest.mark.parametrize(
    "wrong",
    [
        {"mac": "52:54:00:00:00:01,actions=NORMAL"},
        {"mac": "01:00:5e:00:00:01"},
        {"vlan": -1},
        {"vlan": 4096},
        {"addresses": ("10.1.1.0/24",)},
        {"addresses": ("224.0.0.1",)},
        {"addresses": ("::1",)},
    ],
    ids=str,
)
async def test_a_spec_that_cannot_be_is_refused(rig: Rig, wrong: dict[str, object]) -> None:
    switch = rig.driver()
    await switch.open()
    with pytest.raises(DriverError) as refused:
        await switch.plug(msgspec.structs.replace(WEB, **wrong))
    assert refused.value.reason == "PortRefused"
    assert await switch.observe() == {}


async def test_a_port_without_traffic_counts_nothing(rig: Rig) -> None:
    switch = rig.driver()
    await switch.open()
    await switch.plug(WEB)
    counters = (await switch.counters())[WEB.id]
    assert (counters.rx_packets, counters.tx_packets, counters.dropped_packets) == (0, 0, 0)
    assert await switch.vlan_counts() == {WEB.id: {WEB.vlan: 0}}
    assert await switch.sent_bytes([WEB.id, "port-never-seen"]) == {WEB.id: 0}


async def test_a_joined_segment_is_in_force_until_it_is_left(rig: Rig) -> None:
    switch = rig.driver()
    await switch.open()
    assert await switch.segments() == {}
    for _ in range(2):
        await switch.join(msgspec.structs.replace(SEGMENT, peers=SEGMENT.peers[::-1]))
        assert await switch.segments() == {101: SEGMENT}
    changed = msgspec.structs.replace(SEGMENT, vni=5009, peers=("10.200.3.1",))
    await switch.join(changed)
    await switch.join(msgspec.structs.replace(SEGMENT, vlan=102))
    assert await switch.segments() == {101: changed, 102: msgspec.structs.replace(SEGMENT, vlan=102)}
    for _ in range(2):
        await switch.leave(101)
        assert set(await switch.segments()) == {102}
    await switch.remove()
    await switch.open()
    assert await switch.segments() == {}


async def test_segments_outlive_the_agent_and_a_killed_switch(rig: Rig) -> None:
    old = rig.driver()
    await old.open()
    await old.join(SEGMENT)
    await old.close()
    new = rig.driver()
    await new.open()
    assert await new.segments() == {101: SEGMENT}
    await rig.crash()
    assert await new.segments() == {}
    await new.join(SEGMENT)
    assert await new.segments() == {101: SEGMENT}
    await rig.crash()
    await new.open()
    assert await new.segments() == {101: SEGMENT}
    await rig.crash()
    await new.leave(101)
    await new.open()
    assert await new.segments() == {}


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"vlan": 0}, "SegmentRefused"),
        ({"vni": 2**24}, "SegmentRefused"),
        ({"peers": ("peer",)}, "SegmentRefused"),
        ({"vlan": 102}, "VniTaken"),
    ],
    ids=str,
)
async def test_a_segment_that_cannot_be_is_refused(rig: Rig, wrong: dict[str, object], reason: str) -> None:
    switch = rig.driver()
    await switch.open()
    await switch.join(SEGMENT)
    with pytest.raises(DriverError) as refused:
        await switch.join(msgspec.structs.replace(SEGMENT, **wrong))
    assert refused.value.reason == reason
    assert await switch.segments() == {101: SEGMENT}


async def test_a_missing_uplink_is_named_and_hinders_nobody_else(rig: Rig) -> None:
    switch = rig.driver(Uplinks(trunk="trunk0", public="public0"))
    rig.lose("trunk0", "public0")
    await switch.open()
    web = await switch.plug(WEB)
    public = msgspec.structs.replace(SQL, vlan=PUBLIC_VLAN)
    for work, device in ((switch.join(SEGMENT), "trunk0"), (switch.plug(public), "public0")):
        with pytest.raises(DriverError, match=device) as refused:
            await work
        assert refused.value.reason == "UplinkMissing"
    alone = msgspec.structs.replace(SEGMENT, vlan=103, vni=7, trunk=False)
    await switch.join(alone)
    assert await switch.segments() == {103: alone}
    facts = await switch.observe()
    assert facts[WEB.id] == web
    assert facts[SQL.id] == fact_of(public, facts[SQL.id].tap, blocked=True)


async def test_uplinks_that_cannot_be_are_refused_at_once(rig: Rig) -> None:
    with pytest.raises(DriverError) as refused:
        rig.driver(Uplinks(trunk="eth1", public="eth1"))
    assert refused.value.reason == "UplinkRefused"


async def test_a_router_of_the_public_segment_with_stations_is_observed_as_asked_for(rig: Rig) -> None:
    switch = rig.driver()
    await switch.open()
    router = msgspec.structs.replace(
        WEB, vlan=PUBLIC_VLAN, routes=True, stations=(Station(mac="52:54:00:00:09:01", addresses=("10.1.1.9",)),)
    )
    fact = await switch.plug(router)
    assert fact == fact_of(router, fact.tap)
    assert await switch.observe() == {WEB.id: fact}
    assert await switch.vlan_counts() == {WEB.id: {PUBLIC_VLAN: 0}}
    taken = msgspec.structs.replace(SQL, vlan=PUBLIC_VLAN, mac=router.stations[0].mac)
    with pytest.raises(DriverError) as refused:
        await switch.plug(taken)
    assert refused.value.reason == "MacTaken"
    plain = await switch.plug(WEB)
    assert await switch.observe() == {WEB.id: plain}
    assert (await switch.plug(taken)).blocked is False


async def test_a_control_path_needs_a_port_and_takes_frames_that_fit(rig: Rig) -> None:
    switch = rig.driver()
    await switch.open()
    with pytest.raises(DriverError) as refused:
        await switch.exchange(WEB.id)
    assert refused.value.reason == "NoPort"
    await switch.plug(WEB)
    exchange = await switch.exchange(WEB.id)
    with pytest.raises(DriverError) as refused:
        await exchange.send(bytes(1401))
    assert refused.value.reason == "FrameTooLong"
    await exchange.send(bytes(1400))
    await exchange.close()
    await exchange.close()
    assert await exchange.receive() == b""
    await exchange.send(b"lost")


async def test_a_control_path_ends_when_it_is_opened_again_and_with_its_port(rig: Rig) -> None:
    switch = rig.driver()
    await switch.open()
    await switch.plug(WEB)
    first = await switch.exchange(WEB.id)
    waiting = asyncio.create_task(first.receive())
    second = await switch.exchange(WEB.id)
    assert await waiting == b""
    await first.close()
    other = asyncio.create_task(second.receive())
    await switch.plug(msgspec.structs.replace(WEB, addresses=("10.1.1.8",)))
    assert not other.done()
    await switch.unplug(WEB.id)
    assert await other == b""
    await switch.plug(WEB)
    third = await switch.exchange(WEB.id)
    await rig.crash()
    assert await third.receive() == b""


async def test_the_killed_database_comes_back_and_the_ports_stay_in_force(host: HostPaths) -> None:
    switch = OpenVSwitch(host)
    await switch.open()
    web = await switch.plug(WEB)
    await kill(daemons.SwitchFiles.of(host), "ovsdb-server")
    await switch.open()
    assert await switch.observe() == {WEB.id: web}
    assert (await switch.plug(SQL)).blocked is False


async def test_a_port_whose_tap_was_deleted_is_made_anew(host: HostPaths) -> None:
    switch = OpenVSwitch(host)
    await switch.open()
    web = await switch.plug(WEB)
    await namespace.delete_link(host.namespace, web.tap)
    assert await switch.plug(WEB) == web
    os.close(await switch.open_tap(web.tap))


async def test_a_tap_is_opened_once_at_a_time_and_only_if_it_is_there(host: HostPaths) -> None:
    switch = OpenVSwitch(host)
    await switch.open()
    web = await switch.plug(WEB)
    descriptor = await switch.open_tap(web.tap)
    try:
        for tap in (web.tap, "p000000000000"):
            with pytest.raises(DriverError) as refused:
                await switch.open_tap(tap)
            assert refused.value.reason == "TapRefused"
    finally:
        os.close(descriptor)


async def test_a_foreign_process_under_our_pid_file_is_left_alone(host: HostPaths) -> None:
    switch = OpenVSwitch(host)
    await switch.open()
    files = daemons.SwitchFiles.of(host)
    real_pid = daemons.running(files, "ovs-vswitchd")
    files.pid_file("ovs-vswitchd").write_text(f"{os.getpid()}\n")
    assert daemons.running(files, "ovs-vswitchd") is None
    await daemons.stop(files, "ovs-vswitchd")
    files.pid_file("ovs-vswitchd").write_text(f"{real_pid}\n")
    assert daemons.running(files, "ovs-vswitchd") == real_pid


async def test_missing_tools_are_named_with_their_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pileus.drivers.host.ovs.command.shutil.which", lambda program, path: None)
    monkeypatch.setattr("pileus.drivers.host.ovs.real.os.geteuid", lambda: 0)
    with pytest.raises(MissingTool, match=r"apt-get install (iproute2|openvswitch-switch)"):
        await OpenVSwitch(HostPaths.under(tmp_path)).open()


async def test_an_agent_that_is_not_root_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pileus.drivers.host.ovs.real.os.geteuid", lambda: 1000)
    with pytest.raises(DriverError) as refused:
        await OpenVSwitch(HostPaths.under(tmp_path)).open()
    assert refused.value.reason == "NotRoot"


async def test_the_fake_fails_the_call_it_was_told_to_before_or_after_the_work() -> None:
    lost = Fault(call="plug", k=3, after=True)
    world = FakeSwitchWorld(
        latencies_s={}, faults=(Fault(call="plug", k=2, error=DriverError("TapRefused", "x")), lost)
    )
    switch = FakeSwitch(world)
    await switch.plug(WEB)
    with pytest.raises(DriverError) as refused:
        await switch.plug(SQL)
    assert refused.value.reason == "TapRefused"
    assert set(await switch.observe()) == {WEB.id}
    with pytest.raises(OvsdbError):
        await switch.plug(SQL)
    assert set(await switch.observe()) == {WEB.id, SQL.id}


def test_an_error_of_a_program_shows_no_path() -> None:
    said = "opened log\novs-ofctl: unix:/run/pileus/x/br-int.mgmt: connection refused (/etc/x)"
    assert last_words(said) == "ovs-ofctl: (path) connection refused ((path)"
    assert last_words("") == "it said nothing"
