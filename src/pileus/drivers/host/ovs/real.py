"""A switch of our own on Open vSwitch's userspace datapath, in a network namespace of its own.

What must be remembered lies in the switch's database; whether it is in force is read from the flows. A switch that was
started again has ports and no flows, so it passes nothing, and its ports are seen as blocked until plugged again.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from collections.abc import Collection, Mapping

import msgspec

from pileus.drivers.host.errors import DriverError, OvsdbError
from pileus.drivers.host.ovs import daemons, flows, namespace, segments
from pileus.drivers.host.ovs.base import (
    APART,
    PUBLIC_VLAN,
    STRAY,
    FrameExchange,
    PortCounters,
    PortFact,
    PortSpec,
    SegmentSpec,
    Uplinks,
)
from pileus.drivers.host.ovs.command import PACKAGES, locate, run
from pileus.drivers.host.ovs.database import BRIDGE, Database, PortRow
from pileus.drivers.host.ovs.exchange import (
    PortExchange,
    control_lines,
    control_meter,
    control_meter_text,
    shut_lines,
)
from pileus.drivers.host.ovs.flows import Role
from pileus.drivers.host.ovs.jsonrpc import call
from pileus.drivers.host.ovs.segments import NO_UPLINKS
from pileus.drivers.host.ovs.uplinks import UplinkPorts
from pileus.drivers.host.paths import HostPaths

DATABASE, SWITCH = "ovsdb-server", "ovs-vswitchd"


class OpenVSwitch:
    """The integration bridge of the host whose files lie under ``paths``. Raises: DriverError (UplinkRefused)."""

    def __init__(self, paths: HostPaths, uplinks: Uplinks = NO_UPLINKS) -> None:
        self._paths = paths
        self._files = daemons.SwitchFiles.of(paths)
        self._database = Database(self._files.database_socket)
        self._uplinks = uplinks
        self._uplink_ports = UplinkPorts(uplinks, paths.namespace, self._database)
        self._lock = asyncio.Lock()
        self._exchanges: dict[int, PortExchange] = {}
        self._prepared: int | None = None
        """Pid of the ovs-vswitchd that has the base flows; another one starts without."""

    async def open(self) -> None:
        """Make sure that namespace, daemons and bridge are there. Raises MissingTool, DriverError (NotRoot)."""
        if os.geteuid() != 0:
            raise DriverError("NotRoot", "the switch needs root: namespaces, taps and packet sockets")
        for program in PACKAGES:
            locate(program)
        async with self._lock:
            await self._ensure_running()
            await self._uplink_ports.ensure()

    async def close(self) -> None:
        """Let go of control paths; daemons, ports and traffic go on."""
        for ofport in list(self._exchanges):
            self._end_exchange(ofport)

    def namespace(self) -> str | None:
        """Return the network namespace that holds bridge and taps."""
        return self._paths.namespace

    async def observe(self) -> dict[str, PortFact]:
        """Return every port; what the flows do not carry is blocked."""
        rows = await self._database.ports()
        stats = await self._flow_stats()
        is_cut_off = any(row.spec.vlan == PUBLIC_VLAN for row in rows.values()) and await self._lacks_public()
        facts = {}
        for port, row in rows.items():
            blocked = not flows.is_in_force(row.spec, row.ofport, stats)
            blocked |= is_cut_off and row.spec.vlan == PUBLIC_VLAN
            facts[port] = _fact(row.tap, row.spec, blocked=blocked)
        return facts

    async def plug(self, spec: PortSpec) -> PortFact:
        """Make the port as ``spec`` says; its first frame passes only when all its flows are in force.

        Raises: OvsdbError; DriverError (TapRefused, PortRefused, MacTaken; UplinkMissing when all else is done).
        """
        wanted = flows.check(spec)
        async with self._lock:
            await self._ensure_running()
            rows = await self._database.ports()
            flows.refuse_taken_macs(wanted, [row.spec for row in rows.values()])
            row, is_new = await self._ensure_port(wanted, rows)
            await self._put_in_force(wanted, row, rows, is_new=is_new)
            if wanted.vlan == PUBLIC_VLAN and self._uplinks.public:
                await self._uplink_ports.ensure()
                await self._uplink_ports.require([self._uplinks.public], f"port {wanted.id}")
        return _fact(row.tap, wanted, blocked=False)

    async def unplug(self, port: str) -> None:
        """Remove the port's flows, meters, bridge port and tap; none of them: nothing."""
        async with self._lock:
            rows = await self._database.ports()
            tap = flows.tap_name(port)
            if port in rows:
                tap = rows[port].tap
                await self._take_down(rows[port], rows)
            await namespace.delete_link(self._paths.namespace, tap)

    async def segments(self) -> dict[int, SegmentSpec]:
        """Return every segment whose flows and uplinks are in force."""
        specs = await self._database.segments()
        stats = await self._flow_stats()
        needed = {device for spec in specs.values() for device in segments.needed(spec, self._uplinks)}
        missing = set(await self._uplink_ports.missing(sorted(needed)))
        return {
            vlan: spec
            for vlan, spec in specs.items()
            if segments.is_joined(spec, self._uplinks, stats)
            and not missing.intersection(segments.needed(spec, self._uplinks))
        }

    async def join(self, spec: SegmentSpec) -> None:
        """Make the segment be as ``spec`` says.

        Raises: OvsdbError; DriverError (SegmentRefused, VniTaken; UplinkMissing when all else is done).
        """
        wanted = segments.check_segment(spec)
        async with self._lock:
            await self._ensure_running()
            await self._uplink_ports.ensure()
            known = await self._database.segments()
            segments.refuse_taken_vni(wanted, known.values())
            if known.get(wanted.vlan) != wanted:
                await self._database.save_segment(wanted)
            if not segments.is_joined(wanted, self._uplinks, await self._flow_stats()):
                await self._change_segment(wanted.vlan, segments.join_lines(wanted, self._uplinks))
                await self._uplink_ports.greet(wanted.peers)
            await self._uplink_ports.require(segments.needed(wanted, self._uplinks), f"segment {wanted.vlan}")

    async def leave(self, vlan: int) -> None:
        """Remove the segment's flows and what was learned in it, then its note; none of them: nothing."""
        async with self._lock:
            if daemons.running(self._files, SWITCH) is not None:
                await self._change_segment(vlan, segments.leave_lines(vlan))
            await self._database.forget_segment(vlan)

    async def counters(self) -> dict[str, PortCounters]:
        """Return the counters of every port; ``dropped_packets`` lags up to 0.5 s and restarts with the switch."""
        rows = await self._database.ports()
        taps = await namespace.counters(self._paths.namespace)
        dropped = flows.packets_by_port(await self._flow_stats(), [Role.refuse])
        none = namespace.LinkCounters(0, 0, 0, 0)
        found = {}
        for port, row in rows.items():
            tap = taps.get(row.tap, none)
            found[port] = PortCounters(
                rx_bytes=tap.tx_bytes,
                rx_packets=tap.tx_packets,
                tx_bytes=tap.rx_bytes,
                tx_packets=tap.rx_packets,
                dropped_packets=dropped[row.ofport],
            )
        return found

    async def sent_bytes(self, ports: Collection[str]) -> dict[str, int]:
        """Return what the guests behind these ports sent; as taps count it."""
        taps = await namespace.counters(self._paths.namespace)
        named = {port: flows.tap_name(port) for port in ports}
        return {port: taps[tap].rx_bytes for port, tap in named.items() if tap in taps}

    async def vlan_counts(self) -> dict[str, dict[int, int]]:
        """Return frames delivered to each port by VLAN; see ``Switch.vlan_counts``. Takes about a second."""
        rows = await self._database.ports()
        # Taps first: a frame that arrives in between then makes the flows' side bigger, never a false alarm.
        taps = await namespace.counters(self._paths.namespace)
        for _ in range(2):  # the first wait may end a round that had begun before the taps were read
            await call(self._files.control_socket(SWITCH), "revalidator/wait", [])
        stats = await self._flow_stats()
        delivered = flows.packets_by_port(stats, [Role.deliver])
        control = flows.control_packets(stats)
        counts = {}
        for port, row in rows.items():
            reached = taps[row.tap].tx_packets - row.delivered_before if row.tap in taps else 0
            stray = reached - delivered[row.ofport] - control[row.ofport]
            counts[port] = {row.spec.vlan: delivered[row.ofport]}
            if stray > 0 and row.spec.vlan != APART:
                counts[port][STRAY] = stray
        return counts

    async def exchange(self, port: str) -> FrameExchange:
        """Open the control path of a port. Raises: OvsdbError; DriverError (NoPort)."""
        async with self._lock:
            await self._ensure_running()
            row = (await self._database.ports()).get(port)
            if row is None or not row.ofport:
                raise DriverError("NoPort", f"port {port} is not on the switch")
            self._end_exchange(row.ofport)
            exchange = PortExchange(row.ofport, row.spec.mac, self._shut)
            await exchange.connect(self._files.bridge_socket(BRIDGE))
            self._exchanges[row.ofport] = exchange
            await self._set_meter(control_meter_text(row.ofport))
            await self._bundle(control_lines(row.ofport, row.spec.mac))
        return exchange

    async def open_tap(self, tap: str) -> int:
        """Return a file descriptor of a port's tap for the machine's NIC; the caller owns it.

        Raises: DriverError (TapRefused) when there is no such tap or a machine has it already.
        """
        return await namespace.open_tap(self._paths.namespace, tap)

    async def remove(self) -> None:
        """Take everything down: daemons, taps, namespace, files. Nothing there: nothing."""
        async with self._lock:
            await daemons.stop(self._files, SWITCH)
            await daemons.stop(self._files, DATABASE)
            await namespace.remove(self._paths.namespace)
            self._prepared = None
            for folder in (self._files.run, self._files.state):
                await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
            with contextlib.suppress(OSError):  # others keep files there, or it is gone
                self._paths.run.rmdir()

    async def _ensure_running(self) -> None:
        """Start what does not run. Cheap when all does: two pid files and two command lines are read."""
        if daemons.running(self._files, DATABASE) is None or daemons.running(self._files, SWITCH) is None:
            for folder in (self._files.run, self._files.state):
                folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            await namespace.ensure(self._paths.namespace)
        if daemons.running(self._files, DATABASE) is None:
            await daemons.start_database(self._files, self._paths.namespace)
        if daemons.running(self._files, SWITCH) is None:
            await daemons.start_switch(self._files, self._paths.namespace)
        pid = daemons.running(self._files, SWITCH)
        if pid is None or pid != self._prepared:
            await namespace.ensure(self._paths.namespace)
            await self._uplink_ports.ensure_bridges()
            # First fragments must show their ports, or a fragmented answer of a DHCP server would pass.
            await self._ofctl("set-frags", "nx-match")
            await self._bundle([*flows.base_lines(), *segments.uplink_lines(), *await self._remembered_lines()])
            await self._uplink_ports.ensure()
            self._prepared = pid

    async def _remembered_lines(self) -> list[str]:
        """Return what puts segments in force that the switch has forgotten with its flows."""
        stats = await self._flow_stats()
        return [
            line
            for spec in (await self._database.segments()).values()
            if not segments.is_joined(spec, self._uplinks, stats)
            for line in segments.join_lines(spec, self._uplinks)
        ]

    async def _change_segment(self, vlan: int, lines: list[str]) -> None:
        await self._bundle(lines, forget_cache=True)
        # A frame that was on its way may have been learned from after the flows had gone.
        await self._bundle(segments.forget_lines(vlan))

    async def _lacks_public(self) -> bool:
        return bool(self._uplinks.public and await self._uplink_ports.missing([self._uplinks.public]))

    async def _ensure_port(self, spec: PortSpec, rows: Mapping[str, PortRow]) -> tuple[PortRow, bool]:
        """Return the port's row, with its tap opened by the switch, and whether the row was made just now."""
        tap = rows[spec.id].tap if spec.id in rows else flows.tap_name(spec.id)
        made = await namespace.make_tap(self._paths.namespace, tap)
        row = rows.get(spec.id)
        if row is not None and (made or not row.ofport):
            # The switch holds a packet socket of a tap that is no more.
            await self._take_down(row, rows)
            row = None
        if row is not None:
            return row, False
        await self._database.insert_port(tap, spec)
        row = (await self._database.ports())[spec.id]
        if not row.ofport:
            raise OvsdbError(f"port {spec.id}: Open vSwitch cannot open its tap {tap}")
        return row, True

    async def _put_in_force(self, spec: PortSpec, row: PortRow, rows: Mapping[str, PortRow], *, is_new: bool) -> None:
        if row.spec.mac != spec.mac:
            self._end_exchange(row.ofport)  # it speaks to a NIC that is no more
        in_force = None
        if not is_new and _delivers_alike(row.spec, spec):
            stats = flows.parse_dump(await self._ofctl("dump-flows", flows.any_cookie(flows.PORT_MARK, row.ofport)))
            in_force = row.spec if flows.is_in_force(row.spec, row.ofport, stats) else None
        is_cleared = not is_new and in_force is None
        if in_force is None:
            await self._start_count(spec, row, is_cleared=is_cleared)
        await self._set_meters(spec, row.ofport)
        lines = flows.put_lines(spec, row.ofport, in_force)
        members = {vlan: _members(rows, vlan, without=spec.id) for vlan in {port.spec.vlan for port in rows.values()}}
        members[spec.vlan] = {**members.get(spec.vlan, {}), row.ofport: spec}
        # Flows that are not those of the row may come from a change that was cut short: its floods and meters go too.
        lines += flows.all_shared_lines(members) if is_cleared else flows.shared_lines(spec.vlan, members[spec.vlan])
        await self._bundle(lines, forget_cache=in_force not in (None, spec))
        if in_force not in (None, spec):
            await self._database.save_spec(row.tap, spec, row.delivered_before)
        if not spec.rate_limit_kbps and is_cleared:
            await self._delete_meters(row.ofport)

    async def _start_count(self, spec: PortSpec, row: PortRow, *, is_cleared: bool) -> None:
        """Block a port that was there, and save what its tap has received before its new flows begin to count."""
        if is_cleared:
            await self._bundle(flows.delete_lines(row.ofport), forget_cache=True)
        before = (await namespace.counters(self._paths.namespace))[row.tap].tx_packets
        if (row.spec, row.delivered_before) != (spec, before):
            await self._database.save_spec(row.tap, spec, before)

    async def _take_down(self, row: PortRow, rows: Mapping[str, PortRow]) -> None:
        """Remove flows, meters and bridge port; without a running switch only the row is there to remove."""
        is_running = daemons.running(self._files, SWITCH) is not None
        if is_running and row.ofport:
            rest = _members(rows, row.spec.vlan, without=row.spec.id)
            lines = [*flows.delete_lines(row.ofport), *shut_lines(row.ofport)]
            await self._bundle(lines + flows.shared_lines(row.spec.vlan, rest))
            self._end_exchange(row.ofport)
            await self._ofctl("del-meter", f"meter={control_meter(row.ofport)}")
            if row.spec.rate_limit_kbps:
                await self._delete_meters(row.ofport)
        await self._database.delete_port(row, settle=is_running)

    def _end_exchange(self, ofport: int) -> None:
        """Tell whoever holds the port's control path that it is closed."""
        exchange = self._exchanges.pop(ofport, None)
        if exchange is not None:
            exchange.abandon()

    async def _shut(self, exchange: PortExchange) -> None:
        """Take a control path's flows and meter away; not if another has opened it since."""
        async with self._lock:
            if self._exchanges.get(exchange.ofport) is not exchange:
                return
            del self._exchanges[exchange.ofport]
            if daemons.running(self._files, SWITCH) is not None:
                await self._bundle(shut_lines(exchange.ofport))
                await self._ofctl("del-meter", f"meter={control_meter(exchange.ofport)}")

    async def _bundle(self, lines: list[str], *, forget_cache: bool = False) -> None:
        """Put all changes of flows in force at once (OpenFlow 1.4 bundle).

        ``forget_cache``: return only when no frame goes by the old flows any more; the datapath's cache would follow
        within half a second by itself.
        """
        await self._ofctl("bundle", "-", text="\n".join(lines) + "\n")
        if forget_cache:
            await call(self._files.control_socket(SWITCH), "revalidator/purge", [])

    async def _set_meters(self, spec: PortSpec, ofport: int) -> None:
        """Make or change both meters; the userspace datapath obeys meters and no queues."""
        if not spec.rate_limit_kbps:
            return
        for meter in (flows.tx_meter(ofport), flows.rx_meter(ofport)):
            await self._set_meter(flows.meter_text(meter, spec.rate_limit_kbps))

    async def _set_meter(self, text: str) -> None:
        try:
            await self._ofctl("add-meter", text)
        except OvsdbError:  # it exists
            await self._ofctl("mod-meter", text)

    async def _delete_meters(self, ofport: int) -> None:
        for meter in (flows.tx_meter(ofport), flows.rx_meter(ofport)):
            await self._ofctl("del-meter", f"meter={meter}")

    async def _flow_stats(self) -> list[flows.FlowStat]:
        """Return every flow but what was learned; none when the switch does not run, because then nothing passes."""
        try:
            return flows.parse_dump(await self._ofctl("dump-flows", flows.OURS))
        except OvsdbError:
            if daemons.running(self._files, SWITCH) is None:
                return []
            raise

    async def _ofctl(self, command: str, *arguments: str, text: str = "") -> str:
        target = f"unix:{self._files.bridge_socket(BRIDGE)}"
        return await run(["ovs-ofctl", "-O", "OpenFlow14", command, target, *arguments], text=text)


def _fact(tap: str, spec: PortSpec, *, blocked: bool) -> PortFact:
    return PortFact(tap=tap, blocked=blocked, **msgspec.structs.asdict(spec))


def _delivers_alike(one: PortSpec, other: PortSpec) -> bool:
    """Return whether a change from one to the other leaves what is delivered, and its count, as it is."""
    kept = [(spec.mac, spec.vlan, spec.rate_limit_kbps > 0, spec.isolated) for spec in (one, other)]
    return kept[0] == kept[1]


def _members(rows: Mapping[str, PortRow], vlan: int, *, without: str) -> dict[int, PortSpec]:
    """Return the ports of a VLAN by OpenFlow port, but for one port of Pileus."""
    return {
        row.ofport: row.spec for port, row in rows.items() if port != without and row.ofport and row.spec.vlan == vlan
    }
