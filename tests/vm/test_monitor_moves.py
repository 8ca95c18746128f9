"""A real monitor's appliance leaves one account as an OVA and as a qcow2, and goes on in another."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.appliances import System, descriptor, ova, packed

from pileus.node.monitor.inventory import EVERY_S

if TYPE_CHECKING:
    from tests.vm import realcloud
    from tests.vm.fleet_rig import Manager, add_image
    from tests.vm.realcloud import Json, SplitCloud, until
else:
    import realcloud
    from fleet_rig import Manager, add_image
    from realcloud import SplitCloud, until

pytestmark = pytest.mark.long
HERE, THERE = "acme", "beta"
BOOT_S = 240.0
"""From a disk, with its loader, under emulation, beside other tests."""
MEND = {
    "when": [{"field": "applications.web.state", "value": "failed"}],
    "do": [{"do": "restart-application", "application": "web"}],
    "mode": "enforce",
}
SNIPER = "[ -e /run/armed ] || { touch /run/armed; exit 0; }; read pid < /run/web.pid && kill -9 $pid"
"""Does nothing when it is started first, with the document."""
DOCUMENT = {
    "applications": {
        "web": {"command": ["sh", "-c", "echo $$ > /run/web.pid; while :; do sleep 1000; done"], "stop_s": 1},
        "sniper": {"command": ["sh", "-c", SNIPER], "stop_s": 1},
    }
}


class Site:
    """An account with two appliances that have an application each."""

    def __init__(self, cloud: SplitCloud, account: str) -> None:
        self.cloud, self.account = cloud, account
        self.own = ("--account", account)
        self.manager = Manager(cloud, "software", account)
        wish = ["apps", "--manager", "software", "--version", "1", "--image", "appliance", "--role", "applications"]
        cloud.pileus("create", "package", *wish, "--vcpus", "1", "--memory-mib", "192", "--nics", "0", *self.own)
        nodes = [self.manager.node(name, account, package="apps") for name in ("n0", "n1")]
        self.manager.ready(*nodes)
        self.nodes = [self.manager.told(node, DOCUMENT) for node in nodes]

    def everything(self, kind: str, **query: str) -> list[Json]:
        with self.cloud.client() as client:
            pages = client.pages(f"/v1/{kind}", [("account", self.account), *query.items()])
            return [dict(item) for page in pages for item in page["items"]]

    def one(self, kind: str, name: str) -> Json:
        return next(each for each in self.everything(kind) if each["name"] == name)

    def actions(self, state: str) -> list[Json]:
        return [each for each in self.everything("monitor.action") if each["observed"]["state"] == state]

    def webs(self) -> dict[str, str]:
        """Return the state of the application of each appliance that is watched, by VM."""
        rows = [row for row in self.everything("monitor.state") if row.get("observed")]
        return {row["assigned"]["vm"]: row["observed"]["applications"].get("web", {}).get("state") for row in rows}

    def are_watched(self) -> bool:
        return self.webs() == {node["assigned"]["vm"]: "running" for node in self.nodes}

    def snipe(self, node: Json) -> None:
        self.manager.ask(node, json.dumps({"do": "start", "application": "sniper"}))


@pytest.fixture(scope="module")
def cloud() -> Iterator[SplitCloud]:
    with realcloud.split() as made:
        made.pileus("patch", "zone", "one", "--router", "none")
        add_image(made, "appliance")
        made.pileus("create", "account", THERE)
        yield made


def disk_of_monitor(site: Site, folder: Path) -> Path:
    """Return the disk of the monitor's appliance as the cloud's operator gets it, while it runs: a VMDK."""
    (watcher,) = site.everything("monitor.watcher")
    (node,) = site.everything("fleet.node", owner=watcher["id"])
    with site.cloud.client() as client:
        vm = client.get(f"/v1/compute.vm/{node['assigned']['vm']}")
        volume = vm["assigned"]["volumes"][0]
    wait = ("--wait", "--timeout", "120")
    site.cloud.pileus("create", "snapshot", "left", "--volume", volume, *site.own, *wait, timeout_s=130)
    size = str(site.one("storage.snapshot", "left")["assigned"]["size_gib"])
    copy = ("create", "volume", "copy", "--snapshot", "left", "--size-gib", size)
    site.cloud.pileus(*copy, *site.own, *wait, timeout_s=130)
    file = folder / "monitor.vmdk"
    with site.cloud.client() as client, file.open("wb") as out:
        path = f"/v1/storage.volume/{site.one('storage.volume', 'copy')['id']}/content"
        for chunk in client.download(path, [("account", site.account)]):
            out.write(chunk)
    return file


def carried_as_qcow2(cloud: SplitCloud, disk: Path) -> str:
    flat = disk.with_suffix(".qcow2")
    subprocess.run(["qemu-img", "convert", "-f", "vmdk", "-O", "qcow2", str(disk), str(flat)], check=True)
    own = ("--account", THERE, "--wait", "--timeout", "120")
    cloud.pileus("create", "image", "flat", "--file", str(flat), *own, timeout_s=130)
    return "flat"


def carried_as_ova(cloud: SplitCloud, disk: Path) -> str:
    """Return the image that an import of a package with the disk makes."""
    told = json.loads(subprocess.run(
        ["qemu-img", "info", "--output", "json", str(disk)], check=True, capture_output=True, text=True
    ).stdout)  # fmt: skip
    content = disk.read_bytes()
    text = descriptor(
        {"root.vmdk": len(content)},
        {"root": ("root.vmdk", told["virtual-size"])},
        (System(name="mon", disks=("root",)),),
    )
    file = ova(disk.with_name("monitor.ova"), packed("mon", text, {"root.vmdk": content}))
    before = _images(cloud)
    own = ("--account", THERE, "--network", "default", "--name", "old")
    cloud.pileus("ovf", "import", str(file), *own, timeout_s=300)
    (made,) = _images(cloud) - before
    return made


def _images(cloud: SplitCloud) -> set[str]:
    return {one["name"] for one in cloud.json("get", "image", "--account", THERE)["items"]}


def moves_in(site: Site, name: str, image: str) -> Json:
    """Make a monitor of the image, and return it when it watches both appliances."""
    began = time.monotonic()
    site.cloud.pileus("create", "monitor", name, *site.own, "--form", "appliance", "--image", image)
    site.cloud.pileus("wait", "monitor", name, *site.own, "--timeout", str(int(BOOT_S)), timeout_s=BOOT_S + 10)
    print(f"measured: {name} goes on {time.monotonic() - began:.1f} s after it was made of its image")
    found = site.one("monitor.monitor", name)
    moved_in = found["assigned"]["moved_in"]
    assert (moved_in["problem"], moved_in["policies"], len(moved_in["vms"])) == ("", 1, 2), moved_in
    return found


def test_a_monitor_goes_on_in_another_account(cloud: SplitCloud, tmp_path: Path) -> None:
    here = Site(cloud, HERE)
    cloud.pileus("create", "monitor", "watch", *here.own, "--form", "appliance")
    body = {"kind": "monitor.policy", "name": "mend", "account": HERE, "desired": {"monitor": "watch", **MEND}}
    cloud.pileus("apply", "-f", cloud.file("mend.json", json.dumps(body)))
    until("both are watched", here.are_watched, BOOT_S)
    here.snipe(here.nodes[0])
    until("it is mended", lambda: len(here.actions("done")) == 1)
    until("both run", here.are_watched)
    settled = time.monotonic() + 2 * EVERY_S
    until("what is watched is on the disk, which takes EVERY_S", lambda: time.monotonic() > settled)
    disk = disk_of_monitor(here, tmp_path)
    for kind, name in (("policy", "mend"), ("monitor", "watch"), ("node", "n0"), ("node", "n1")):
        cloud.pileus("delete", kind, name, *here.own, "-y", "--wait", timeout_s=BOOT_S)

    there = Site(cloud, THERE)
    moves_in(there, "watch", carried_as_ova(cloud, disk))
    until("both are watched", there.are_watched)
    policy = there.one("monitor.policy", "mend")
    assert policy["desired"]["mode"] == "observe"
    there.snipe(there.nodes[0])
    until("it observes", lambda: len(there.actions("observed")) == 1)
    cloud.pileus("patch", "policy", "mend", *there.own, "--mode", "enforce")
    there.manager.ask(there.nodes[0], json.dumps({"do": "start", "application": "web"}))
    until("both run", there.are_watched)
    began = time.monotonic()
    there.snipe(there.nodes[1])
    until("it is mended", lambda: len(there.actions("done")) == 1)
    print(f"measured: killed, and restarted by the monitor that moved in {time.monotonic() - began:.2f} s later")
    until("both run", there.are_watched)

    moves_in(there, "second", carried_as_qcow2(cloud, disk))
    assert len([each for each in there.everything("monitor.policy") if "mend" in each["name"]]) == 2
