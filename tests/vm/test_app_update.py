"""Version 2 of an application for real appliances: four fail, each for a reason of its own, and go on once it is mended."""

from __future__ import annotations

import json
import signal
import time
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.vm import realcloud
    from tests.vm.applications_rig import PACKAGE, Appliances
    from tests.vm.realcloud import Json, SplitCloud, until
else:
    import realcloud
    from applications_rig import PACKAGE, Appliances
    from realcloud import Json, SplitCloud, until

pytestmark = pytest.mark.long

ACME = ("--account", "acme")
LIMIT_S = 900
PROGRAM = """#!/bin/sh
set -e
cd
head -c 4194304 /dev/zero > cache
exec python3 -S -c 'import socket, time; door = socket.create_server(("", 8000)); time.sleep(100000)'
"""
OLD = {"command": ["sh", "-c", "exec sleep 100000"], "version": "1", "stop_s": 1}
NEW = {"command": ["/opt/web-2"], "version": "2", "user": "shop", "stop_s": 1, "settle_s": 20}
LATE = "cd; [ -e ordered ] || { touch ordered; exit 0; }; "
"""What comes after it is done when it is started the second time."""
DELIVER = 'mkdir -p /opt; printf %s "$PROGRAM" > /opt/web-2; chmod 755 /opt/web-2'
SQUAT = "import socket, time; door = socket.create_server(('', 8000)); time.sleep(100000)"
HOARD = """
import os, time
heap, end, size = os.open(os.environ["HOME"], os.O_TMPFILE | os.O_RDWR), 0, 1 << 30
while size >= 4096:
    try:
        os.posix_fallocate(heap, end, size)
        end += size
    except OSError:
        size //= 2
time.sleep(100000)
"""
NUMBERS = {6: (0, 2, 3, 5), 20: (2, 7, 11, 19)}


class Fault:
    """Why an appliance cannot run version 2: how its document differs, what is said of it, and what mends it."""

    def __init__(self, said: str, mend: Json, lacks: str = "", **applications: Json) -> None:
        self.said, self.mend, self._lacks, self._applications = said, mend, lacks, applications

    def document(self) -> Json:
        whole: Json = {
            "applications": {"web": OLD, "delivery": delivery(DELIVER), **self._applications},
            "users": {"shop": {}},
        }
        return {section: entries for section, entries in whole.items() if section != self._lacks}


def delivery(script: str) -> Json:
    return {"command": ["sh", "-c", script], "environment": {"PROGRAM": PROGRAM}}


def python(program: str, **more: Any) -> Json:
    return {"command": ["python3", "-S", "-c", program], "stop_s": 1, **more}


FAULTS = (
    Fault("there is no program /opt/web-2", {"do": "start", "application": "delivery"}, delivery=delivery(LATE + DELIVER)),
    Fault("version 2: exit 1", {"do": "terminate", "application": "squatter"}, squatter=python(SQUAT)),
    Fault("version 2: exit 1", {"do": "terminate", "application": "hoarder"}, hoarder=python(HOARD, user="nobody")),
    Fault("there is no user 'shop'", {"do": "user", "name": "shop"}, lacks="users"),
)  # fmt: skip
NO_FAULT = Fault("", {})


class Shops:
    """Appliances that run version 1, some of them with a fault, and a monitor of them."""

    def __init__(self, cloud: SplitCloud, count: int) -> None:
        self.cloud = cloud
        self.appliances = Appliances(cloud)
        cloud.pileus("patch", "consent", "appliances", *ACME, "--nodes-max", str(count))
        self.names = [f"n{number:02}" for number in range(count)]
        self.faults = {self.names[number]: fault for number, fault in zip(NUMBERS[count], FAULTS, strict=True)}
        for name in self.names:
            document = self.faults.get(name, NO_FAULT).document()
            self.appliances.manager.node(name, "acme", package=PACKAGE, document=document)
        cloud.pileus("wait", "node", *self.names, *ACME, "--timeout", str(LIMIT_S), timeout_s=LIMIT_S + 10)
        cloud.pileus("create", "monitor", "watch", *ACME, "--wait")

    def nodes(self) -> dict[str, Json]:
        """Return the nodes as the API tells them, by name."""
        return {node["name"]: node for node in self.cloud.json("get", "node", *ACME)["items"]}

    def web(self) -> dict[str, Json]:
        """Return what the state table says of the application, by name of the node."""
        name_of = {node["assigned"]["vm"]: name for name, node in self.nodes().items()}
        rows = self.cloud.json("get", "state", *ACME)["items"]
        return {name_of[row["assigned"]["vm"]]: row["observed"]["applications"].get("web", {}) for row in rows}

    def until_seen(self, versions: dict[str, int]) -> dict[str, Json]:
        """Return what the state table says of the application once so many run these versions."""

        def look() -> dict[str, Json] | None:
            web = self.web()
            running = Counter(one.get("version", "") for one in web.values() if one.get("state") == "running")
            return web if running == versions else None

        return until(f"the state table says {versions}", look)

    def mend(self, name: str) -> None:
        assert self.appliances.ask(self.nodes()[name], **self.faults[name].mend)[0] == "applied"

    def results(self) -> dict[str, Json]:
        """Return what the rollout says of each node, by name."""
        observed = self.cloud.json("get", "rollout", "two")["observed"]
        return {result["name"]: result for result in observed["results"]}


def phase(cloud: SplitCloud, field: str) -> Any:
    return cloud.json("get", "rollout", "two")["observed"][field]


@pytest.fixture
def cloud() -> Iterator[SplitCloud]:
    with realcloud.split() as running:
        running.pileus("patch", "zone", "one", "--router", "none")
        yield running


@pytest.mark.parametrize("count", [6, 20])
def test_four_updates_fail_and_are_done_after_repair_though_the_server_dies(cloud: SplitCloud, count: int) -> None:
    shops = Shops(cloud, count)
    good, bad = set(shops.names) - shops.faults.keys(), set(shops.faults)
    shops.until_seen({"1": count})
    began = time.monotonic()
    cloud.pileus(
        "create", "rollout", "two", "--manager", "appliances", "--document", json.dumps({"applications": {"web": NEW}}),
        "--waves", "20,100", "--settle-s", "1", "--failures-max", "4", "--on-failure", "pause",
    )  # fmt: skip
    until("the second wave", lambda: phase(cloud, "wave") == 1, limit_s=LIMIT_S)
    cloud.kill(cloud.server, signal.SIGKILL)
    cloud.start_server()
    until("each has a result", lambda: phase(cloud, "phase") == "done", limit_s=LIMIT_S)
    print(f"measured: {count} updates over {time.monotonic() - began:.0f} s after they began, with a killed server")
    results = shops.results()
    assert {name: result["state"] for name, result in results.items()} == {
        **dict.fromkeys(good, "done"), **dict.fromkeys(bad, "failed"),
    }  # fmt: skip
    for name, fault in shops.faults.items():
        assert fault.said in results[name]["failure"]
    web = shops.until_seen({"1": len(bad), "2": len(good)})
    assert {name for name, one in web.items() if one["version"] == "1"} == bad
    before = shops.nodes()

    for name in bad:
        shops.mend(name)
    began = time.monotonic()
    cloud.pileus(
        "patch", "rollout", "two", "--attempt", "1", "--wait", "--timeout", str(LIMIT_S), timeout_s=LIMIT_S + 10
    )
    print(f"measured: {len(bad)} updates {time.monotonic() - began:.0f} s after they were asked for once more")
    again = shops.results()
    assert {result["state"] for result in again.values()} == {"done"}
    assert {name: again[name]["since"] for name in good} == {name: results[name]["since"] for name in good}
    after = shops.until_seen({"2": count})
    assert {name: after[name] for name in good} == {name: web[name] for name in good}
    nodes = shops.nodes()
    assert {name for name in nodes if nodes[name]["generation"] != before[name]["generation"]} == bad
    assert phase(cloud, "failed") == 0
    for name, node in nodes.items():
        assert node["observed"]["boot_id"] == before[name]["observed"]["boot_id"]
        cloud.pileus("delete", "node", name, *ACME, "-y", "--wait")
