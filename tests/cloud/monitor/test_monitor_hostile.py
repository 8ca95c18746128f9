"""A monitor's appliance that its owner changed: it can lie about its own appliances, and do nothing else to the cloud."""

from __future__ import annotations

import asyncio
import itertools
import json
from typing import Any

import msgspec
import pytest
from tests.cloud.monitor.monitor_world import FAILED, RESTART, Apps
from tests.cloud.monitor.test_monitor_appliances import EngineStream
from tests.cloud.world import cloud
from tests.virtual_time import run

from pileus.kernel.errors import Transient
from pileus.monitor.action.plan import UNDONE_MAX
from pileus.node.monitor.role import PORT
from pileus.server.minds import Away
from pileus.server.watched import ROW_BYTES_MAX

MEND = {"when": [FAILED], "do": [RESTART], "mode": "enforce"}


def nested(depth: int) -> Any:
    found: Any = 1
    for _ in range(depth):
        found = {"a": found}
    return found


class Liar(EngineStream):
    """Invents incidents as fast as it is asked, and rows that nobody could keep."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0
        self._document: dict[str, Any] = {}
        self._incidents = itertools.count(1)

    async def write(self, data: bytes) -> None:
        asked = json.loads(data)
        self.asked += 1
        if "configure" in asked:
            self._document = asked["configure"]
            self._said.put_nowait(b"{}\n")
            return
        if "amend" in asked:
            self._document["appliances"].update(asked["amend"]["appliances"])
            self._said.put_nowait(b"{}\n")
            return
        answer: dict[str, Any] = {"polls": [], "states": [], "actions": [], "next_at": -1e18}
        for vm, appliance in self._document["appliances"].items():
            answer["polls"].append(vm)
            row = {
                "vm": vm,
                "epoch": appliance["epoch"],
                "at": 1.0,
                "other": {"deep": nested(200), "long": "x" * 10**6},
            }
            if self.asked % 2:
                row["configuration"] = {"hash": "x" * 10**6}
            answer["states"].append(row)
            for policy in self._document["policies"]:
                answer["actions"] += [
                    {"vm": vm, "epoch": appliance["epoch"], "policy": policy, "incident": next(self._incidents)}
                    for _ in range(3)
                ]
        self._said.put_nowait(json.dumps(answer).encode() + b"\n")


def test_a_monitors_appliance_that_lies_fills_neither_tables_nor_hosts() -> None:
    async def main() -> None:
        async with cloud(1) as world:
            apps = Apps(world)
            await apps.furnish(1)
            streams: list[Liar] = []

            def opened() -> Liar:
                streams.append(Liar())
                return streams[-1]

            for host in world.hosts.values():
                host.guests.listening["127.0.0.1", PORT] = opened
            await world.create("monitor.monitor", "watch", "acme", form="appliance")
            await world.create("monitor.policy", "p", "acme", monitor="watch", **MEND)

            async def has_said_much() -> bool:
                return sum(stream.asked for stream in streams) > 3 * UNDONE_MAX

            await world.until(has_said_much, limit_s=600.0)
            assert len(await apps.actions()) <= UNDONE_MAX + 3
            (row,) = await apps.rows()
            assert row.observed is not None
            assert len(msgspec.json.encode(row.observed)) <= ROW_BYTES_MAX

    run(main)


@pytest.mark.parametrize(
    "said",
    [b'{"states":[' + b'{"a":' * 5000 + b"1" + b"}" * 5000 + b"]}\n", b'{"next_at":1e999}\n', b"\xff\n", b"[]\n"],
)
def test_an_answer_that_cannot_be_read_is_a_lost_appliance(said: bytes) -> None:
    class Wire:
        done = False

        async def write(self, data: bytes) -> None:
            return

        async def read(self) -> bytes:
            return said

        async def finish(self) -> None:
            return

        async def close(self) -> None:
            return

    async def main() -> None:
        with pytest.raises(Transient, match="nonsense"):
            await Away(Wire()).step([], [], 1.0)

    asyncio.run(main())
