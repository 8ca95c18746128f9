"""What a node is to a rollout that changed it, and that a host brings a document again to a node that still complains."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import pytest
from msgspec.structs import replace as changed

from pileus.compute.vm.types import VmAppliance, VmAssigned, VmDesired
from pileus.drivers.host.guest.base import NodeFact
from pileus.fleet.node.host import Seen, Step, plan
from pileus.fleet.node.types import Footprint, NodeAssigned, NodeBefore, NodeDesired, NodeObserved
from pileus.fleet.rollout.plan import see
from pileus.kernel.condition import ready, unready
from pileus.kernel.fields import Problem
from pileus.kernel.kind import Resource
from pileus.node.document import document_hash

OLD, NEW = {"rules": {"ssh": 22}}, {"rules": {"ssh": 22, "web": 80}}
HASH = document_hash(NEW)
BEFORE = NodeBefore(
    rollout="r", package="p", package_id="p1", document=OLD, generation=2, hash=HASH, made_of="p1", boot_id=""
)
NODE = Resource(
    id="n", kind="fleet.node", name="n", generation=2, observed_generation=2, conditions=(ready(),),
    desired=NodeDesired(manager="m", document=NEW),
    assigned=NodeAssigned(zone="", vdc="", package="p1", hash=HASH, host="h", before=BEFORE, footprint=Footprint(image="i")),
    observed=NodeObserved(state="ready", hash=HASH, boot_id="b1"),
)  # fmt: skip
APPLIANCE = VmAppliance(channel="serial", role="")
VM = Resource(
    id="v", kind="compute.vm", name="v", conditions=(ready(),), desired=VmDesired(appliance=APPLIANCE),
    assigned=VmAssigned(zone="", vdc="", image="i", vcpus=1, memory_mib=192, disk_gib=1),
)  # fmt: skip
REFUSED = Problem(reason="NodeRefused", message="no room")
SILENT = Problem(reason="NodeSilent", message="it says nothing")


def assigned(**changes: Any) -> Resource:
    return replace(NODE, assigned=changed(NODE.assigned, **changes))


def before(**changes: Any) -> Resource:
    return assigned(before=changed(BEFORE, **changes))


def observed(node: Resource = NODE, **changes: Any) -> Resource:
    return replace(node, observed=changed(node.observed, **changes))


CASES: dict[str, tuple[Resource | None, Resource | None, str]] = {
    "as written": (NODE, None, "in-force"),
    "its VM is as written": (NODE, VM, "in-force"),
    "no row": (None, None, "gone"),
    "being deleted": (replace(NODE, deleting_at="now"), None, "gone"),
    "never changed": (assigned(before=None), None, "other"),
    "another rollout's": (before(rollout="other"), None, "other"),
    "document changed by hand": (replace(NODE, generation=3, desired=NodeDesired(manager="m")), None, "other"),
    "package changed by hand": (replace(assigned(package="p9"), generation=3), None, "other"),
    "another wish by hand": (replace(NODE, generation=3), None, "in-force"),
    "quarantined": (assigned(quarantined="garbage"), None, "refused"),
    "refuses": (observed(problem=REFUSED), None, "refused"),
    "refused what was before": (observed(replace(NODE, observed_generation=1), problem=REFUSED), None, "moving"),
    "cannot be reached": (
        observed(replace(NODE, conditions=(unready("NodeSilent", "it says nothing"),)), problem=SILENT),
        None, "moving"),
    "old document": (observed(hash="0"), None, "moving"),
    "not ready": (replace(NODE, conditions=(unready("Silent", "it says nothing"),)), None, "moving"),
    "nothing is known": (replace(NODE, observed=None, conditions=()), None, "moving"),
    "old disk": (NODE, replace(VM, assigned=changed(VM.assigned, image="old")), "moving"),
    "VM starts": (NODE, replace(VM, conditions=(unready("Starting"),)), "moving"),
    "told before the disk was replaced": (before(boot_id="b1"), VM, "moving"),
    "told after the disk was replaced": (before(boot_id="b0"), VM, "in-force"),
    "stopped": (replace(NODE, observed=None, desired=changed(NODE.desired, power="stopped")), VM, "in-force"),
    "stopped, old disk": (
        replace(NODE, desired=changed(NODE.desired, power="stopped")),
        replace(VM, assigned=changed(VM.assigned, image="old")), "moving"),
    "back, and complains": (
        observed(replace(before(turned="back"), conditions=(unready("Refused"),)), problem=REFUSED), None, "in-force"),
    "back, and quarantined": (before(turned="back", boot_id="b1"), None, "moving"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_node_is_looked_at(case: str) -> None:
    node, vm, expected = CASES[case]
    seen = see(node, vm, "r")
    assert seen.state == expected
    assert bool(seen.message) == (expected != "in-force")


@pytest.mark.parametrize(
    ("state", "hash", "refused", "step"),
    [
        ("ready", "new", "", None),
        ("ready", "old", "", Step(verb="configure")),
        ("ready", "new", "it refused another", Step(verb="configure")),
        ("silent", "new", "it refused another", None),
    ],
)
def test_a_node_that_complains_of_another_document_gets_its_own_again(
    state: Literal["ready", "silent"], hash: str, refused: str, step: Step | None
) -> None:
    fact = NodeFact(machine="m", state=state, hash=hash, refused=refused)
    assert plan("held", "new", Seen(fact, running=True)) == step
