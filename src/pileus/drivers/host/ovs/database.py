"""The switch's database: one bridge, and a row for each port that says which spec it was given. Source: RFC 7047,

ovs-vswitchd.conf.db(5).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from pileus.drivers.host.errors import OvsdbError
from pileus.drivers.host.ovs.base import PortSpec
from pileus.drivers.host.ovs.jsonrpc import call

SCHEMA = "Open_vSwitch"
BRIDGE = "br-int"
SPEC_KEY, BASELINE_KEY = "pileus-spec", "pileus-delivered-before"

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


class Database:
    """A client of the ovsdb-server that listens at ``socket``; it holds no connection."""

    def __init__(self, socket: Path) -> None:
        self._socket = socket

    async def ensure_bridge(self) -> None:
        """Make the root row and the bridge when they are not there, and wait until the switch has them.

        ``fail_mode=secure``: without flows nothing passes.
        """
        roots, bridges = await self._transact(_select("Open_vSwitch", ["_uuid"]), _select("Bridge", ["name"]))
        operations: list[Operation] = []
        if not roots["rows"]:
            operations.append({"op": "insert", "table": "Open_vSwitch", "row": {"other_config": _map(SETTINGS)}})
        if not any(row["name"] == BRIDGE for row in bridges["rows"]):
            operations += _bridge_operations()
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
        await self._change(interface, port, _mutate_bridge("insert", ["named-uuid", "p"]))

    async def save_spec(self, tap: str, spec: PortSpec, delivered_before: int) -> None:
        """Write down what the port now is."""
        row = {"tag": spec.vlan, "external_ids": _ids(spec, delivered_before)}
        await self._transact({"op": "update", "table": "Port", "where": [["name", "==", tap]], "row": row})

    async def delete_port(self, row: PortRow, *, settle: bool = True) -> None:
        """Delete the bridge port; with ``settle`` (the switch runs) wait until the switch has let go of the tap."""
        await self._change(_mutate_bridge("delete", ["uuid", row.uuid]), settle=settle)

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


def _mutate_bridge(mutator: str, port: list[str]) -> Operation:
    mutations = [["ports", mutator, port]]
    return {"op": "mutate", "table": "Bridge", "where": [["name", "==", BRIDGE]], "mutations": mutations}


def _bridge_operations() -> list[Operation]:
    bridge = {
        "name": BRIDGE,
        "datapath_type": "netdev",
        "fail_mode": "secure",
        "ports": ["named-uuid", "p"],
        "other_config": _map({"disable-in-band": "true"}),
    }
    port = {"name": BRIDGE, "interfaces": ["named-uuid", "i"]}
    return [
        {
            "op": "insert",
            "table": "Interface",
            "uuid-name": "i",
            "row": {"name": BRIDGE, "type": "internal"},
        },
        {"op": "insert", "table": "Port", "uuid-name": "p", "row": port},
        {"op": "insert", "table": "Bridge", "uuid-name": "b", "row": bridge},
        {
            "op": "mutate",
            "table": "Open_vSwitch",
            "where": [],
            "mutations": [["bridges", "insert", ["named-uuid", "b"]]],
        },
    ]


def _port_row(row: dict[str, Any], ofport: Any) -> PortRow | None:
    ids = dict(row["external_ids"][1])
    if SPEC_KEY not in ids:
        return None
    spec = msgspec.json.decode(ids[SPEC_KEY], type=PortSpec)
    # The database says ["set", []] for "not yet" and -1 for "cannot be opened".
    number = ofport if isinstance(ofport, int) and ofport > 0 else 0
    return PortRow(row["_uuid"][1], row["name"], spec, number, int(ids[BASELINE_KEY]))
