"""The switch's database: its bridges, and a note with each port, uplink and segment of what it was given.

Source: RFC 7047, ovs-vswitchd.conf.db(5).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from pileus.drivers.host.errors import OvsdbError
from pileus.drivers.host.ovs.base import PortSpec, SegmentSpec
from pileus.drivers.host.ovs.jsonrpc import call

SCHEMA = "Open_vSwitch"
BRIDGE, UNDERLAY = "br-int", "br-tun"
"""All ports are on the first; the second holds the tunnel device, and this host's address as its local port."""

SPEC_KEY, BASELINE_KEY = "pileus-spec", "pileus-delivered-before"
UPLINK_KEY, SEGMENT_KEY = "pileus-uplink", "pileus-segment-"

SETTLE_S = 20
"""How long the switch may take over a change of its configuration: 5 ms measured, and hosts can be loaded."""

SETTINGS = {"n-handler-threads": "1", "n-revalidator-threads": "1", "stats-update-interval": "60000"}
"""An idle switch then takes 0.05 % of a core (measured); counters are read from the kernel and from flows instead."""

Operation = dict[str, Any]


class PortRow(Struct, frozen=True):
    """A port in the database. ``ofport`` is 0 while the switch has not opened the tap (or cannot).

    ``delivered_before`` is what the tap's kernel counter said when its delivery flows began to count.
    """

    uuid: str
    tap: str
    spec: PortSpec
    ofport: int
    delivered_before: int


class Uplink(Struct, frozen=True):
    """A port to other hosts, and which kernel device it opened: a device made again has another ``ifindex``.

    ``ofport`` 0: any. ``kind`` empty: a network device; else a type of interface that Open vSwitch makes itself.
    """

    name: str
    bridge: str
    ifindex: int
    ofport: int = 0
    kind: str = ""
    options: dict[str, str] = {}


class Database:
    """A client of the ovsdb-server that listens at ``socket``; it holds no connection."""

    def __init__(self, socket: Path) -> None:
        self._socket = socket

    async def ensure_bridges(self, bridges: Mapping[str, str]) -> None:
        """Make the root row and these bridges when they are not there, and wait until the switch has them.

        ``bridges``: the MAC of each by name; empty for any.
        """
        roots, rows = await self._transact(_select("Open_vSwitch", ["_uuid"]), _select("Bridge", ["name"]))
        operations: list[Operation] = []
        if not roots["rows"]:
            operations.append({"op": "insert", "table": "Open_vSwitch", "row": {"other_config": _map(SETTINGS)}})
        found = {row["name"] for row in rows["rows"]}
        for number, (name, mac) in enumerate(bridges.items()):
            if name not in found:
                operations += _bridge_operations(name, number, {"hwaddr": mac} if mac else {})
        await self._change(*operations)

    async def ports(self) -> dict[str, PortRow]:
        """Return every port that Pileus made, by the id of the port."""
        found, interfaces = await self._transact(
            _select("Port", ["_uuid", "name", "external_ids"]), _select("Interface", ["name", "ofport"])
        )
        ofports = {row["name"]: row["ofport"] for row in interfaces["rows"]}
        rows = [_port_row(row, ofports.get(row["name"])) for row in found["rows"]]
        return {row.spec.id: row for row in rows if row is not None}

    async def insert_port(self, tap: str, spec: PortSpec) -> None:
        """Make the bridge port of ``tap`` and wait until the switch has opened it."""
        interface = {"op": "insert", "table": "Interface", "uuid-name": "i", "row": {"name": tap}}
        row = {"name": tap, "interfaces": ["named-uuid", "i"], "tag": spec.vlan, "external_ids": _ids(spec, 0)}
        port = {"op": "insert", "table": "Port", "uuid-name": "p", "row": row}
        await self._change(interface, port, _mutate_ports(BRIDGE, "insert", ["named-uuid", "p"]))

    async def save_spec(self, tap: str, spec: PortSpec, delivered_before: int) -> None:
        """Write down what the port now is."""
        row = {"tag": spec.vlan, "external_ids": _ids(spec, delivered_before)}
        await self._transact({"op": "update", "table": "Port", "where": [["name", "==", tap]], "row": row})

    async def delete_port(self, row: PortRow, *, settle: bool = True) -> None:
        """Delete the bridge port; with ``settle`` (the switch runs) wait until the switch has let go of the tap."""
        await self._change(_mutate_ports(BRIDGE, "delete", ["uuid", row.uuid]), settle=settle)

    async def uplinks(self) -> list[Uplink]:
        """Return the uplinks that the switch has opened."""
        return [uplink for _, uplink, is_open in await self._uplinks() if is_open]

    async def set_uplinks(self, wanted: Sequence[Uplink]) -> bool:
        """Let these be the uplinks, and wait until the switch has them; return whether anything was to change."""
        found = await self._uplinks()
        stale = [(uuid, uplink) for uuid, uplink, is_open in found if not is_open or uplink not in wanted]
        kept = [uplink for _, uplink, is_open in found if is_open]
        new = [uplink for uplink in wanted if uplink not in kept]
        if stale:  # a change of its own: the switch would not open a device anew that goes and comes in one
            await self._change(*(_mutate_ports(uplink.bridge, "delete", ["uuid", uuid]) for uuid, uplink in stale))
        if new:
            await self._change(*(each for number, uplink in enumerate(new) for each in _uplink_rows(uplink, number)))
        return bool(stale or new)

    async def segments(self) -> dict[int, SegmentSpec]:
        """Return every segment that was given, by VLAN."""
        (bridges,) = await self._transact(_select("Bridge", ["name", "external_ids"]))
        notes = [note for row in bridges["rows"] if row["name"] == BRIDGE for note in row["external_ids"][1]]
        specs = [msgspec.json.decode(text, type=SegmentSpec) for key, text in notes if key.startswith(SEGMENT_KEY)]
        return {spec.vlan: spec for spec in specs}

    async def save_segment(self, spec: SegmentSpec) -> None:
        """Write down what the segment shall be."""
        note = _map({f"{SEGMENT_KEY}{spec.vlan}": msgspec.json.encode(spec).decode()})
        await self._transact(_mutate_notes(spec.vlan, ["external_ids", "insert", note]))

    async def forget_segment(self, vlan: int) -> None:
        """Strike the segment out."""
        await self._transact(_mutate_notes(vlan))

    async def _uplinks(self) -> list[tuple[str, Uplink, bool]]:
        found, interfaces = await self._transact(
            _select("Port", ["_uuid", "name", "external_ids"]), _select("Interface", ["name", "ofport"])
        )
        opened = {row["name"] for row in interfaces["rows"] if _ofport(row["ofport"])}
        notes = [(row, dict(row["external_ids"][1]).get(UPLINK_KEY)) for row in found["rows"]]
        return [
            (row["_uuid"][1], msgspec.json.decode(note, type=Uplink), row["name"] in opened)
            for row, note in notes
            if note is not None
        ]

    async def _change(self, *operations: Operation, settle: bool = True) -> None:
        """Carry out ``operations``, and wait until the switch says that its configuration is that or newer."""
        count = {"op": "mutate", "table": "Open_vSwitch", "where": [], "mutations": [["next_cfg", "+=", 1]]}
        results = await self._transact(*operations, count, _select("Open_vSwitch", ["next_cfg"]))
        if not settle:
            return
        number = results[-1]["rows"][0]["next_cfg"]
        await self._transact(
            {
                "op": "wait",
                "table": "Open_vSwitch",
                "where": [],
                "columns": ["cur_cfg"],
                "until": "==",
                "rows": [{"cur_cfg": number}],
                "timeout": SETTLE_S * 1000,
            }
        )

    async def _transact(self, *operations: Operation) -> list[Any]:
        results = await call(self._socket, "transact", [SCHEMA, *operations], timeout_s=SETTLE_S + 10)
        for result in results:
            if result and result.get("error"):
                raise OvsdbError(f"Open vSwitch: {result['error']} {result.get('details', '')}".strip())
        return list(results)


def _select(table: str, columns: list[str]) -> Operation:
    return {"op": "select", "table": table, "where": [], "columns": columns}


def _map(pairs: dict[str, str]) -> list[Any]:
    return ["map", [[key, value] for key, value in pairs.items()]]


def _ids(spec: PortSpec, delivered_before: int) -> list[Any]:
    return _map({SPEC_KEY: msgspec.json.encode(spec).decode(), BASELINE_KEY: str(delivered_before)})


def _mutate_ports(bridge: str, mutator: str, port: list[str]) -> Operation:
    mutations = [["ports", mutator, port]]
    return {"op": "mutate", "table": "Bridge", "where": [["name", "==", bridge]], "mutations": mutations}


def _mutate_notes(vlan: int, *more: list[Any]) -> Operation:
    """Delete the segment's note and do ``more``."""
    mutations = [["external_ids", "delete", ["set", [f"{SEGMENT_KEY}{vlan}"]]], *more]
    return {"op": "mutate", "table": "Bridge", "where": [["name", "==", BRIDGE]], "mutations": mutations}


def _uplink_rows(uplink: Uplink, number: int) -> list[Operation]:
    interface: dict[str, Any] = {"name": uplink.name, "type": uplink.kind, "options": _map(uplink.options)}
    if uplink.ofport:
        interface["ofport_request"] = uplink.ofport
    note = _map({UPLINK_KEY: msgspec.json.encode(uplink).decode()})
    port = {"name": uplink.name, "interfaces": ["named-uuid", f"i{number}"], "external_ids": note}
    return [
        {"op": "insert", "table": "Interface", "uuid-name": f"i{number}", "row": interface},
        {"op": "insert", "table": "Port", "uuid-name": f"p{number}", "row": port},
        _mutate_ports(uplink.bridge, "insert", ["named-uuid", f"p{number}"]),
    ]


def _bridge_operations(name: str, number: int, settings: Mapping[str, str]) -> list[Operation]:
    """Make a bridge: ``secure`` passes nothing without flows, ``standalone`` is an ordinary learning switch."""
    bridge = {
        "name": name,
        "datapath_type": "netdev",
        "fail_mode": "secure" if name == BRIDGE else "standalone",
        "ports": ["named-uuid", f"p{number}"],
        "other_config": _map({"disable-in-band": "true", **settings}),
    }
    interface = {"name": name, "type": "internal"}
    port = {"name": name, "interfaces": ["named-uuid", f"i{number}"]}
    bridges = [["bridges", "insert", ["named-uuid", f"b{number}"]]]
    return [
        {"op": "insert", "table": "Interface", "uuid-name": f"i{number}", "row": interface},
        {"op": "insert", "table": "Port", "uuid-name": f"p{number}", "row": port},
        {"op": "insert", "table": "Bridge", "uuid-name": f"b{number}", "row": bridge},
        {"op": "mutate", "table": "Open_vSwitch", "where": [], "mutations": bridges},
    ]


def _ofport(value: Any) -> int:
    """Return the number; 0 for ``["set", []]`` ("not yet") and -1 ("cannot be opened")."""
    return value if isinstance(value, int) and value > 0 else 0


def _port_row(row: dict[str, Any], ofport: Any) -> PortRow | None:
    ids = dict(row["external_ids"][1])
    if SPEC_KEY not in ids:
        return None
    spec = msgspec.json.decode(ids[SPEC_KEY], type=PortSpec)
    return PortRow(row["_uuid"][1], row["name"], spec, _ofport(ofport), int(ids[BASELINE_KEY]))
