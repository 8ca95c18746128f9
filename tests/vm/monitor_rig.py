"""Appliances with a monitor, for tests: nodes of one package that run the same applications, and what is known of them."""

from __future__ import annotations

import json
import statistics
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.vm import realcloud
    from tests.vm.fleet_rig import Manager, add_image
    from tests.vm.realcloud import Json, SplitCloud, until
else:
    import realcloud
    from fleet_rig import Manager, add_image
    from realcloud import SplitCloud, until

ACME = ("--account", "acme")
MEND = {
    "when": [{"field": "applications.*.state", "value": "failed"}],
    "do": [{"do": "restart-application"}],
    "mode": "enforce",
}
REVIVE = {
    "when": [{"field": "execution.state", "value": "hung"}],
    "do": [{"do": "restart"}],
    "mode": "enforce",
}
_WEB = "echo $$ > /run/web.{0}; while :; do sleep 1000; done"
_SNIPER = "read number < /run/next; echo $((number + 1)) > /run/next; read pid < /run/web.$number && kill -9 $pid"


def armed(command: str) -> Json:
    """Return an application that runs the command when it is started the second time: the first is of the document."""
    wait = 'seen="/run/seen.$PILEUS_APPLICATION"; [ -e "$seen" ] || { touch "$seen"; exit 0; }; '
    return {"command": ["sh", "-c", wait + command], "version": "1", "stop_s": 1}


def webs(count: int) -> Json:
    """Return applications ``web0`` and so on, and one that kills the next of them with each start, inside the appliance.

    Each is killed once: of one that dies again soon the restart waits.
    """
    made = {
        f"web{number}": {"command": ["sh", "-c", _WEB.format(number)], "version": "1", "stop_s": 1}
        for number in range(count)
    }
    return {**made, "sniper": armed("[ -e /run/next ] || echo 0 > /run/next; " + _SNIPER)}


def told(what: str, times: Collection[float]) -> None:
    """Print times in seconds."""
    each = ", ".join(f"{one:.2f}" for one in times)
    print(f"measured: {what}: p50 {statistics.median(times):.2f} s, max {max(times):.2f} s of {each}", flush=True)


class Watched:
    """A cloud with nodes that have applications, and a monitor."""

    def __init__(self, cloud: SplitCloud, count: int, document: Json) -> None:
        """Returns when each of ``count`` nodes runs the document."""
        self.cloud = cloud
        self.manager = Manager(cloud, "software", "acme")
        wish = ["apps", "--manager", "software", "--version", "1", "--image", "appliance", "--role", "applications"]
        cloud.pileus("create", "package", *wish, "--vcpus", "1", "--memory-mib", "192", "--nics", "0", *ACME)
        self.nodes = [self.manager.node(f"n{number}", "acme", package="apps") for number in range(count)]
        self.manager.ready(*self.nodes)
        self.nodes = [self.manager.told(node, document) for node in self.nodes]

    def make(self, kind: str, name: str, **desired: object) -> None:
        """Make a resource of the account."""
        body = {"kind": kind, "name": name, "account": "acme", "desired": desired}
        self.cloud.pileus("apply", "-f", self.cloud.file(f"{name}.json", json.dumps(body)))

    def everything(self, kind: str, **query: str) -> list[Json]:
        """Return the account's resources of a kind."""
        with self.cloud.client() as client:
            pages = client.pages(f"/v1/{kind}", [("account", "acme"), *query.items()])
            return [dict(item) for page in pages for item in page["items"]]

    def vm(self, id: str) -> Json:
        """Return what is known of a VM."""
        with self.cloud.client() as client:
            return dict(client.get(f"/v1/compute.vm/{id}")["observed"])

    def rows(self) -> dict[str, Json]:
        """Return the appliance state table, by VM."""
        return {row["assigned"]["vm"]: row for row in self.everything("monitor.state") if row.get("observed")}

    def observed(self, node: Json) -> Json:
        """Return what a node's row says; nothing when there is none yet."""
        return dict(self.rows().get(node["assigned"]["vm"], {}).get("observed", {}))

    def state(self, node: Json, application: str) -> str:
        """Return the state of an application as its row says."""
        return str(self.observed(node).get("applications", {}).get(application, {}).get("state"))

    def execution(self, node: Json) -> Json:
        """Return a node's execution as its row says."""
        return dict(self.observed(node).get("execution", {}))

    def actions(self, vm: str, verb: str) -> list[Json]:
        """Return the actions on a VM whose first step is the verb, oldest first."""
        found = [each for each in self.everything("monitor.action") if each["assigned"]["vm"] == vm]
        return [each for each in found if each["desired"]["do"][0]["do"] == verb]

    def working(self) -> list[Json]:
        """Return the watchers that work."""
        found = self.everything("monitor.watcher")
        return [each for each in found if (each.get("observed") or {}).get("state") == "working"]

    def monitor_vm(self, watcher: str) -> str:
        """Return the id of the VM in which a watcher works."""
        (node,) = self.everything("fleet.node", owner=watcher)
        return str(node["assigned"]["vm"])

    def start(self, node: Json, application: str) -> None:
        """Start an application of a node that does not run by itself."""
        self.manager.ask(node, json.dumps({"do": "start", "application": application}))

    def mended(self, node: Json, application: str) -> Json:
        """Return the one action on an application, done."""
        vm = node["assigned"]["vm"]

        def look() -> Json | None:
            found = self.actions(vm, "restart-application")
            found = [each for each in found if each["assigned"]["cause"]["subject"] == application]
            assert len(found) < 2, found
            return found[0] if found and found[0]["observed"]["state"] == "done" else None

        return until(f"{application} is restarted", look)

    def times(self, node: Json, action: Json) -> tuple[float, float]:
        """Return when its monitor was told of what an action followed from, and when the action was done."""
        cause = action["assigned"]["cause"]
        standing = self.observed(node)["standing"][f"{cause['policy']}/{cause['subject']}"]
        return float(standing["acted_at"]), float(action["assigned"]["steps"][0]["ended_at"])

    @contextmanager
    def untouched(self, *nodes: Json) -> Iterator[None]:
        """Look that nothing happens to appliances and their applications during the block."""

        def look() -> dict[str, object]:
            pids = self.cloud.qemus()
            return {node["name"]: (pids[node["assigned"]["vm"]], *self._life(node)) for node in nodes}

        before = look()
        yield
        assert look() == before

    def _life(self, node: Json) -> tuple[object, ...]:
        row = self.observed(node)
        webs = {name: each for name, each in row["applications"].items() if name.startswith("web")}
        return row["execution"]["boots"], row["execution"]["boot_id"], webs


@contextmanager
def watched(count: int, document: Json, replicas: int = 1) -> Iterator[Watched]:
    """Give ``count`` appliances that run a document, and monitor appliances that watch them by policies to come."""
    with realcloud.split() as cloud:
        cloud.pileus("patch", "zone", "one", "--router", "none")
        add_image(cloud, "appliance")
        made = Watched(cloud, count, document)
        made.make("monitor.monitor", "watch", form="appliance", replicas=replicas, actions_per_hour=100, labels={})
        cloud.pileus("wait", "monitor", "watch", *ACME, "--timeout", "120", timeout_s=130)
        until("all watchers work", lambda: len(made.working()) == replicas, 120.0)
        until("all appliances are watched", lambda: len(made.rows()) == count)
        yield made
