"""What the verbs of actions do: begun in one transaction with the note that they were, then looked after until their end.

So a server that dies in between neither forgets a step nor does it twice.
"""

from __future__ import annotations

import json
from typing import Protocol

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from pileus.compute.vm.types import VmDesired, VmObserved, is_of_cloud
from pileus.fleet.asking import ask, node_of
from pileus.fleet.node.types import NodeDesired, NodeObserved, in_force
from pileus.fleet.request.types import RequestObserved, is_settled
from pileus.fleet.rollout.plan import REFUSALS
from pileus.kernel.errors import Rejected, Transient
from pileus.kernel.kind import Resource
from pileus.kernel.merge import merge_patch
from pileus.kernel.outbound import Outbound
from pileus.kernel.reader import Reader
from pileus.kernel.signing import Signer, load_signer
from pileus.kernel.store.store import Store
from pileus.kernel.transaction import Transaction
from pileus.monitor.action.types import STEP_S, ActionDesired, ActionStep
from pileus.monitor.policy.types import PolicyAct
from pileus.storage.evidence import take_snapshot
from pileus.storage.snapshot.types import SnapshotObserved


class StepFailed(Exception):
    """A step cannot be done; the message is for people."""


class StepDelayed(Exception):
    """A step was not done, and is tried again; the message says why."""


class Task(Struct, frozen=True, kw_only=True):
    """One step of an action. ``subject``: the application that the clauses found, if they did."""

    action: Resource
    position: int
    act: PolicyAct
    subject: str


class Doer(Protocol):
    """How a verb is done. ``begin`` is in the transaction that notes it; ``look`` may raise StepDelayed."""

    async def begin(self, tx: Transaction, task: Task, vm: Resource) -> str:
        """Ask for it, and return what tells whether it is done (the step's ``made``). Raises: StepFailed."""

    async def look(self, store: Store, task: Task, step: ActionStep, vm: Resource | None) -> str | None:
        """Return what to say once it is done, None as long as it is not. Raises: StepFailed."""


class OfApplication:
    """Asks the node's role to do something with one application."""

    def __init__(self, word: str) -> None:
        self._word = word

    async def begin(self, tx: Transaction, task: Task, vm: Resource) -> str:
        node = await node_of(tx, vm)
        if node is None:
            raise StepFailed("the VM is no node of a manager: nothing in it can be asked for that")
        name = task.act.application or task.subject
        if not name:
            raise StepFailed("no application is named, and the policy's clauses found none: use applications.*.state")
        payload = json.dumps({"do": self._word, "application": name})
        try:
            made = await ask(tx, node, task.action, _name(task), payload, tx.now + STEP_S)
        except Rejected as refused:
            raise StepFailed(refused.message) from refused
        return made.id

    async def look(self, store: Store, task: Task, step: ActionStep, vm: Resource | None) -> str | None:
        request = await store.find_id(step.made)
        if request is None:
            raise StepFailed("its request was deleted")
        if not is_settled(request):
            return None
        observed: RequestObserved = request.observed
        said = observed.answer[:500] if observed.encoding == "utf-8" else ""
        if observed.state != "applied":
            raise StepFailed(f"the appliance did not: {observed.state} {said}".rstrip())
        return said


class Restart:
    """Boots the VM once more, whatever it does now."""

    async def begin(self, tx: Transaction, task: Task, vm: Resource) -> str:
        desired: VmDesired = vm.desired
        await set_power(tx, vm, "running")
        vm = await tx.get(vm.id)
        serial = desired.boot_serial + 1
        await tx.update(vm, desired=replace(vm.desired, boot_serial=serial))
        return str(serial)

    async def look(self, store: Store, task: Task, step: ActionStep, vm: Resource | None) -> str | None:
        observed: VmObserved | None = _there(vm).observed
        is_done = observed is not None and observed.boot_serial >= int(step.made) and observed.power == "running"
        return "it boots" if is_done else None


class Power:
    """Lets the VM be paused or stopped."""

    def __init__(self, wanted: str) -> None:
        self._wanted = wanted

    async def begin(self, tx: Transaction, task: Task, vm: Resource) -> str:
        await set_power(tx, vm, self._wanted)
        return self._wanted

    async def look(self, store: Store, task: Task, step: ActionStep, vm: Resource | None) -> str | None:
        observed: VmObserved | None = _there(vm).observed
        return f"it is {self._wanted}" if observed is not None and observed.power == self._wanted else None


class Isolate:
    """Lets nothing pass the VM's NICs any more."""

    async def begin(self, tx: Transaction, task: Task, vm: Resource) -> str:
        decided = replace(vm.assigned, isolated_by=task.action.assigned.cause.actor)
        await tx.update(vm, desired=replace(vm.desired, isolated="yes"), assigned=decided)
        return "isolated"

    async def look(self, store: Store, task: Task, step: ActionStep, vm: Resource | None) -> str | None:
        observed: VmObserved | None = _there(vm).observed
        return "nothing passes its NICs" if observed is not None and observed.isolated == "yes" else None


class Snapshot:
    """Keeps the root volume as it is now: evidence, which outlives the appliance."""

    async def begin(self, tx: Transaction, task: Task, vm: Resource) -> str:
        if not vm.assigned.volumes:
            raise StepFailed("the VM has no disk yet")
        account = await tx.get(vm.account_id)
        cause = task.action.assigned.cause
        reason = f"{task.action.name}: {cause.cause}"[:1000]
        try:
            made = await take_snapshot(tx, vm.assigned.volumes[0], _name(task), account, reason, cause.actor)
        except Rejected as refused:
            raise StepFailed(refused.message) from refused
        return made.id

    async def look(self, store: Store, task: Task, step: ActionStep, vm: Resource | None) -> str | None:
        snapshot = await store.find_id(step.made)
        if snapshot is None:
            raise StepFailed("the snapshot was deleted")
        observed: SnapshotObserved | None = snapshot.observed
        if observed is not None and observed.problem is not None:
            raise StepFailed(observed.problem.message)
        return f"kept as {snapshot}" if observed is not None and observed.state == "present" else None


class Terminate:
    """Deletes the appliance: its node with its VM, or the VM."""

    async def begin(self, tx: Transaction, task: Task, vm: Resource) -> str:
        node = await node_of(tx, vm)
        if node is not None:
            await tx.mark_deleting(node)
        await tx.mark_deleting(await tx.get(vm.id))
        return vm.id

    async def look(self, store: Store, task: Task, step: ActionStep, vm: Resource | None) -> str | None:
        return "it is gone" if vm is None else None


class Configure:
    """Merges a document into the node's: versions of applications, users and rights, registrations."""

    async def begin(self, tx: Transaction, task: Task, vm: Resource) -> str:
        node = await node_of(tx, vm)
        if node is None:
            raise StepFailed("the VM is no node of a manager: it has no document")
        desired: NodeDesired = node.desired
        document = merge_patch(desired.document, task.act.document)
        # As by hand: it is not in force before its controller has looked.
        decided = node.assigned if document == desired.document else replace(node.assigned, hash="")
        await tx.update(node, desired=replace(desired, document=document), assigned=decided)
        return node.id

    async def look(self, store: Reader, task: Task, step: ActionStep, vm: Resource | None) -> str | None:
        node = await store.find_id(step.made)
        if node is None:
            raise StepFailed("its node was deleted")
        if not node.assigned.hash:
            return None
        refused = _refusal(node)
        if refused:
            raise StepFailed(f"the appliance refuses it: {refused}")
        return "it runs the new document" if in_force(node) else None


def _refusal(node: Resource) -> str:
    """Return why the node will not run its newest document, empty when that is not known; what it said of others is old."""
    observed: NodeObserved | None = node.observed
    problem = observed.problem if observed is not None else None
    is_answer = node.observed_generation >= node.generation
    return problem.message if is_answer and problem is not None and problem.reason in REFUSALS else ""


class Ask:
    """Waits for a person: ``approved`` of the action."""

    async def begin(self, tx: Transaction, task: Task, vm: Resource) -> str:
        await tx.event(
            task.action, "Asks", "Asks", f"{task.action} about {vm} waits for your answer, approved=yes or no"
        )
        return "asked"

    async def look(self, store: Store, task: Task, step: ActionStep, vm: Resource | None) -> str | None:
        desired: ActionDesired = task.action.desired
        if desired.approved == "no":
            raise StepFailed("a person said no")
        return "a person said yes" if desired.approved == "yes" else None


class Webhook:
    """Posts the cause to a URL, signed as managers' notices are; tried again until it is taken, so it may come twice."""

    def __init__(self, outbound: Outbound) -> None:
        self._outbound = outbound
        self._signer: Signer | None = None

    async def begin(self, tx: Transaction, task: Task, vm: Resource) -> str:
        return f"{task.action.id}-{task.position}"

    async def look(self, store: Store, task: Task, step: ActionStep, vm: Resource | None) -> str | None:
        self._signer = self._signer or await load_signer(store)
        cause = task.action.assigned.cause
        told = {"action": task.action.id, "account": task.action.account, "vm": task.action.assigned.vm, "cause": cause}
        body = msgspec.json.encode(told)
        try:
            async with self._outbound.open("public", "") as poster:
                status = await poster.post(task.act.url, body, self._signer.headers(step.made, store.clock(), body))
        except Transient as failed:
            raise StepDelayed(failed.message) from failed
        if not 200 <= status < 300:
            raise StepDelayed(f"it answered with status {status}")
        return f"taken with status {status}"


def _name(task: Task) -> str:
    """Return the name of what is made for the step: by the action's id, so that nobody has taken it before."""
    return f"a-{task.action.id}-{task.position}"


def _there(vm: Resource | None) -> Resource:
    if vm is None:
        raise StepFailed("the VM was deleted")
    return vm


async def set_power(tx: Transaction, vm: Resource, power: str) -> None:
    """Let the VM be ``power``; that of a node is its node's wish. Raises: StepFailed."""
    if is_of_cloud(vm):
        raise StepFailed("the VM is one of the cloud's own appliances")
    node = await node_of(tx, vm)
    if node is not None and not node.desired.vm:
        await tx.update(node, desired=replace(node.desired, power=power))
    await tx.update(await tx.get(vm.id), desired=replace(vm.desired, power=power))


def doers(outbound: Outbound) -> dict[str, Doer]:
    """Return how each verb of an act is done."""
    return {
        "restart-application": OfApplication("restart"),
        "suspend-application": OfApplication("suspend"),
        "resume-application": OfApplication("resume"),
        "terminate-application": OfApplication("terminate"),
        "restart": Restart(),
        "suspend": Power("paused"),
        "stop": Power("stopped"),
        "isolate": Isolate(),
        "snapshot": Snapshot(),
        "terminate": Terminate(),
        "configure": Configure(),
        "ask": Ask(),
        "webhook": Webhook(outbound),
    }
