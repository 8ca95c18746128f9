"""The server half of an action: its steps are done one after another, and what came of each is written."""

from __future__ import annotations

from msgspec.structs import replace

from pileus.kernel.clock import Clock
from pileus.kernel.kind import Resource
from pileus.kernel.loop import Controller
from pileus.kernel.outbound import Outbound
from pileus.kernel.outcome import Done, Outcome
from pileus.kernel.store.store import Store
from pileus.kernel.transaction import Transaction
from pileus.monitor.acting import Silence, reconsider
from pileus.monitor.action import plan
from pileus.monitor.action.steps import StepDelayed, StepFailed, Task, doers
from pileus.monitor.action.types import KEPT_S, STEP_S, ActionAssigned, ActionDesired, ActionStep
from pileus.monitor.notes import note_action

LOOK_AGAIN_S = 0.2
ASK_AGAIN_S = 30.0
DELAYED_S = 5.0


class ActionController(Controller):
    """Brings each action to its end."""

    def __init__(self, outbound: Outbound, clock: Clock) -> None:
        self._doers = doers(outbound)
        self._clock = clock
        self._silence = Silence()

    async def reconcile(self, resource: Resource, store: Store) -> Outcome:
        """Begin the next step, or look whether the one that is under way is done."""
        assigned: ActionAssigned = resource.assigned
        desired: ActionDesired = resource.desired
        if resource.deleting:
            return Done()
        if assigned.verdict == "held" and not assigned.ended_at:
            silent = await self._silence.share(store)
            return Done(lambda tx: reconsider(tx, resource, silent), after_s=plan.HELD_S)
        position = plan.current(assigned.steps)
        if assigned.verdict != "do" or position == len(assigned.steps):
            return self._kept(resource)
        act = desired.do[position]
        task = Task(action=resource, position=position, act=act, subject=assigned.cause.subject)
        step = assigned.steps[position]
        vm = await store.find_id(assigned.vm)
        if step.state == "waiting":
            return Done(lambda tx: self._begin(tx, task), after_s=LOOK_AGAIN_S)
        return await self._look(store, task, step, vm)

    async def _begin(self, tx: Transaction, task: Task) -> None:
        """Do the step's part that is a write, with the note that it was done."""
        vm = await tx.find_id(task.action.assigned.vm)
        step = ActionStep(do=task.act.do, state="doing", began_at=tx.now)
        try:
            if vm is None:
                raise StepFailed("the VM was deleted")
            step = replace(step, made=await self._doers[task.act.do].begin(tx, task, vm))
        except StepFailed as failed:
            step = replace(step, state="failed", message=str(failed), ended_at=tx.now)
        await _write(tx, task, step)

    async def _look(self, store: Store, task: Task, step: ActionStep, vm: Resource | None) -> Outcome:
        now = self._clock()
        is_asking = task.act.do == "ask"
        delayed = ""
        try:
            said = await self._doers[task.act.do].look(store, task, step, vm)
        except StepFailed as failed:
            ended = replace(step, state="failed", message=str(failed), ended_at=now)
            return Done(lambda tx: _write(tx, task, ended))
        except StepDelayed as failed:
            said, delayed = None, str(failed)
        if said is not None:
            done = replace(step, state="done", message=said, ended_at=now)
            return Done(lambda tx: _write(tx, task, done), after_s=0.001)
        if not is_asking and now >= step.began_at + STEP_S:
            late = replace(
                step, state="failed", message=f"it was not done within {STEP_S:.0f} s {delayed}".rstrip(), ended_at=now
            )
            return Done(lambda tx: _write(tx, task, late))
        if delayed:
            return Done(after_s=DELAYED_S)
        return Done(after_s=ASK_AGAIN_S if is_asking else LOOK_AGAIN_S)

    def _kept(self, action: Resource) -> Outcome:
        """What is over is kept for a while."""
        assigned: ActionAssigned = action.assigned
        left_s = max(assigned.ended_at, assigned.cause.at) + KEPT_S - self._clock()
        if left_s > 0:
            return Done(after_s=left_s)

        async def forget(tx: Transaction) -> None:
            await tx.mark_deleting(await tx.get(action.id))

        return Done(forget)


async def _write(tx: Transaction, task: Task, step: ActionStep) -> None:
    """Write the step, how the action is now, and the end of it into the audit log."""
    current = await tx.get(task.action.id)
    assigned: ActionAssigned = current.assigned
    steps = plan.with_step(assigned.steps, task.position, step)
    is_over = plan.current(steps) == len(steps)
    decided = replace(assigned, steps=steps, ended_at=tx.now if is_over else 0.0)
    found = plan.observed(decided)
    await note_action(tx, await tx.update(current, assigned=decided, observed=found))
    if is_over:
        await tx.audit(audit_entry(current, found.state))


def audit_entry(action: Resource, outcome: str) -> dict[str, str]:
    """Return what the audit log says of an action: who, what, and with which outcome."""
    assigned: ActionAssigned = action.assigned
    return {
        "actor": assigned.cause.actor,
        "account_id": action.account_id,
        "verb": action.desired.do[0].do,
        "kind": "compute.vm",
        "id": assigned.vm,
        "name": action.name,
        "outcome": outcome,
        "address": "",
        "request": assigned.cause.key,
    }
