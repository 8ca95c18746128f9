"""Rollouts over real nodes without any NIC: one refuses, all go back; repaired, all change; then all get a new disk."""

from __future__ import annotations

import signal
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pileus.image.appliance_build import appliance_with
from pileus.image.recipes import ensure_image

if TYPE_CHECKING:
    from tests.vm.realcloud import Json, SplitCloud, split, until
else:
    from realcloud import Json, SplitCloud, split, until

GATE = Path(__file__).parent / "programs/gate"
RECIPE = appliance_with("test-gate", {"gate": GATE.read_bytes()})
BAD = "n3"
LIMIT_S = 600
ACME = ("--account", "acme")


def _furnish(cloud: SplitCloud, names: tuple[str, ...]) -> None:
    built = ensure_image(RECIPE.name, lambda line: None, recipe=RECIPE)
    files = ("--file", str(built.disk), "--kernel", str(built.kernel), "--initrd", str(built.initrd))
    cloud.pileus("create", "manager", "gates")
    cloud.pileus("create", "consent", "gates", *ACME, "--manager", "gates", "--nodes-max", "20")
    for version in ("1", "2"):
        image = f"gate-{version}"
        cloud.pileus("create", "image", image, "--append", built.append, *files, timeout_s=LIMIT_S)
        cloud.pileus("wait", "image", image, "--timeout", "60", timeout_s=70)
        cloud.pileus("create", "package", image, "--manager", "gates", "--version", version, "--image", image,
                     "--role", "gate", "--vcpus", "1", "--memory-mib", "192", "--nics", "0")  # fmt: skip
    for name in names:
        room = 1 if name == BAD else 9
        document = f'{{"rules": {{"ssh": 22}}, "own": {{"room": {room}}}}}'
        cloud.pileus("create", "node", name, *ACME, "--manager", "gates", "--package", "gate-1", "--document", document)
    cloud.pileus("wait", "node", *names, *ACME, "--timeout", str(LIMIT_S), timeout_s=LIMIT_S + 10)


def rollout(cloud: SplitCloud, name: str) -> Json:
    observed: Json = cloud.json("get", "rollout", name)["observed"]
    return observed


def nodes(cloud: SplitCloud) -> dict[str, Json]:
    return {node["name"]: node for node in cloud.json("get", "node", *ACME)["items"]}


def rules(cloud: SplitCloud) -> Counter[str]:
    """Return how many nodes run which rules, as their own programs say."""
    return Counter(node["observed"]["status"].get("rules", "") for node in nodes(cloud).values())


def until_phase(cloud: SplitCloud, name: str, phase: str) -> Json:
    until(f"{name} is {phase}", lambda: rollout(cloud, name)["phase"] == phase, limit_s=LIMIT_S)
    return rollout(cloud, name)


@pytest.mark.long
@pytest.mark.parametrize("count", [6, 20])
def test_real_nodes_of_which_one_refuses_go_back_and_change_after_repair_also_their_disks(count: int) -> None:
    names = tuple(f"n{number}" for number in range(count))
    with split() as cloud:
        _furnish(cloud, names)
        assert rules(cloud) == {"ssh": count}
        began = time.monotonic()
        cloud.pileus("create", "rollout", "r1", "--manager", "gates", "--document", '{"rules": {"web": 80}}',
                     "--settle-s", "1", "--waves", "20,100", "--timeout-s", str(LIMIT_S))  # fmt: skip
        until("the second wave", lambda: rollout(cloud, "r1")["wave"] == 1, limit_s=LIMIT_S)
        cloud.kill(cloud.server, signal.SIGKILL)
        cloud.kill(cloud.agent, signal.SIGKILL)
        cloud.start_server()
        cloud.start_agent()
        told = until_phase(cloud, "r1", "rolled-back")
        print(f"measured: rolled back {time.monotonic() - began:.1f} s after it began, with two kills")
        assert f"1 of {count} nodes failed: {BAD} of acme: no room for 2 rules" in told["message"]
        (result,) = [one for one in told["results"] if one["failure"]]
        assert (result["name"], result["state"]) == (BAD, "rolled-back")
        cloud.pileus("wait", "node", *names, *ACME, "--timeout", str(LIMIT_S), timeout_s=LIMIT_S + 10)
        assert rules(cloud) == {"ssh": count}

        cloud.pileus("patch", "node", BAD, *ACME, "--document", '{"own": {"room": 9}}')
        cloud.pileus("patch", "rollout", "r1", "--attempt", "1", "--wait", timeout_s=LIMIT_S)
        assert rollout(cloud, "r1")["done"] == count
        assert rules(cloud) == {"ssh web": count}

        before = nodes(cloud)
        began = time.monotonic()
        cloud.pileus("create", "rollout", "r2", "--manager", "gates", "--package", "gate-2", "--settle-s", "1",
                     "--waves", "50,100", "--wait", "--timeout", str(LIMIT_S), timeout_s=LIMIT_S + 10)  # fmt: skip
        print(f"measured: {count} nodes made anew in {time.monotonic() - began:.1f} s")
        after = nodes(cloud)
        for name in names:
            assert after[name]["assigned"]["vm"] == before[name]["assigned"]["vm"]
            assert after[name]["observed"]["boot_id"] != before[name]["observed"]["boot_id"]
            assert after[name]["assigned"]["package"] != before[name]["assigned"]["package"]
        assert rules(cloud) == {"ssh web": count}
        for name in names:
            cloud.pileus("delete", "node", name, *ACME, "-y", "--wait")
