"""Actions are written: by a watcher that still has the appliance, once for each incident, under the caps; or by a person."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from pileus.kernel.kind import Resource
from pileus.kernel.lease import Lease, check
from pileus.kernel.store.lists import Filter
from pileus.kernel.store.store import Store
from pileus.kernel.transaction import AlreadyClaimed, Transaction
from pileus.kernel.words import printable
from pileus.monitor.action import plan
from pileus.monitor.action.types import ActionAssigned, ActionCause, ActionDesired, key_space
from pileus.monitor.monitor.plan import is_over, recent
from pileus.monitor.monitor.types import MonitorAssigned, MonitorDesired
from pileus.monitor.notes import note_action
from pileus.monitor.policy.types import PolicyAct, PolicyDesired
from pileus.monitor.state.types import StateAssigned, StateObserved

CLAUSES_BYTES_MAX = 16_384


class Proposed(Struct, frozen=True, kw_only=True):
    """What an engine wants done (``Engine.work``): an appliance VM says it, too, so each word of it is checked."""

    vm: str
    epoch: int
    policy: str
    subject: str = ""
    incident: int
    cause: dict[str, Any] = {}


class Told(Struct, frozen=True, kw_only=True):
    """What the server knows besides. ``silent``: share of the hosts that are silent."""

    lease: Lease
    row: str
    silent: float = 0.0


class _Parties(Struct, frozen=True):
    """Whom an action is about, as they are inside the transaction."""

    monitor: Resource
    policy: Resource
    row: Resource
    vm: Resource


async def write_action(tx: Transaction, told: Told, proposed: Proposed) -> Resource | None:
    """Return the action, written with what becomes of it; None when it is written already, or is not the watcher's.

    Raises: LeaseLost when another server runs the watcher.
    """
    await check(tx, told.lease)
    parties = await _parties(tx, told, proposed)
    if parties is None:
        return None
    monitor, vm = parties.monitor, parties.vm
    cause = _cause(parties, proposed, tx.now)
    desired: PolicyDesired = parties.policy.desired
    word, why = _verdict(monitor, parties.row, desired, told.silent, tx.now)
    if word != "do" and _undone(parties.row.assigned, tx.now) >= plan.UNDONE_MAX:
        return None
    id = tx.new_id()
    try:
        await tx.claim(key_space(monitor.id), cause.key, id)
    except AlreadyClaimed:
        return None
    decided = ActionAssigned(
        zone=vm.zone, vdc=vm.vdc, vm=vm.id, cause=cause, verdict=word, why=why, steps=plan.first_steps(desired.do)
    )
    action = Resource(
        id=id,
        kind="monitor.action",
        name=f"a-{id[-12:]}",
        account_id=monitor.account_id,
        account=monitor.account,
        owner=monitor.account_id,
        zone=vm.zone,
        vdc=vm.vdc,
        desired=ActionDesired(vm=vm.name, do=desired.do),
        assigned=decided,
        observed=plan.observed(decided),
    )
    if word == "do":
        await _count(tx, monitor, parties.row, desired.do)
    else:
        await _count_undone(tx, parties.row)
    made = await tx.create(action)
    await note_action(tx, made)
    return made


async def reconsider(tx: Transaction, action: Resource, silent: float) -> None:
    """Let a held action be done once nothing holds it, or end it when what it is about has passed."""
    assigned: ActionAssigned = action.assigned
    cause = assigned.cause
    row, policy = await tx.find_id(cause.row), await tx.find_id(cause.policy)
    monitor = await tx.find_id(cause.monitor)
    if row is None or policy is None or monitor is None or is_over(monitor, tx.now) or not _stands(row, cause):
        decided = replace(assigned, why=f"{assigned.why}; it passed without it", ended_at=tx.now)
    else:
        desired: PolicyDesired = policy.desired
        word, why = _verdict(monitor, row, desired, silent, tx.now)
        decided = replace(assigned, verdict=word, why=why, ended_at=tx.now if word == "observe" else 0.0)
        if word == "do":
            await _count(tx, monitor, row, action.desired.do)
    if decided != assigned:
        await note_action(tx, await tx.update(action, assigned=decided, observed=plan.observed(decided)))


def _stands(row: Resource, cause: ActionCause) -> bool:
    """Tell whether the incident is the newest of its kind, and holds still."""
    observed: StateObserved | None = row.observed
    found = observed.standing.get(f"{cause.policy}/{cause.subject}") if observed is not None else None
    return not row.deleting and plan.stands(found, cause.incident)


class Silence:
    """The share of the hosts that are silent, looked up now and then."""

    EVERY_S = 5.0

    def __init__(self) -> None:
        self._share, self._at = 0.0, float("-inf")

    async def share(self, store: Store) -> float:
        """Return it, a few seconds old at most."""
        now = store.clock()
        if not 0 <= now - self._at < self.EVERY_S:
            hosts = await store.list_all(Filter(kind="infra.host"))
            silent = sum(1 for host in hosts if host.assigned is not None and host.assigned.silent == "yes")
            self._share, self._at = silent / len(hosts) if hosts else 0.0, now
        return self._share


async def _parties(tx: Transaction, told: Told, proposed: Proposed) -> _Parties | None:
    """Return whom it is about; None when the appliance is not the watcher's, the policy not its monitor's, or that ended."""
    row, policy = await tx.find_id(told.row), await tx.find_id(proposed.policy)
    if row is None or policy is None or row.deleting or policy.deleting or policy.kind != "monitor.policy":
        return None
    assigned: StateAssigned = row.assigned
    is_its = (assigned.watcher, assigned.epoch, assigned.vm) == (told.lease.id, proposed.epoch, proposed.vm)
    monitor, vm = await tx.find_id(assigned.monitor), await tx.find_id(assigned.vm)
    if (
        not is_its
        or monitor is None
        or vm is None
        or is_over(monitor, tx.now)
        or (await tx.links(policy.id)).get("monitor") != monitor.id
    ):
        return None
    return _Parties(monitor, policy, row, vm)


def _cause(parties: _Parties, proposed: Proposed, now: float) -> ActionCause:
    subject = printable(proposed.subject)[:63]
    return ActionCause(
        actor=f"monitor {parties.monitor.name}",
        monitor=parties.monitor.id,
        policy=parties.policy.id,
        row=parties.row.id,
        subject=subject,
        incident=proposed.incident,
        epoch=proposed.epoch,
        # By row, not by VM: one that is watched anew counts its incidents from the first again.
        key=f"{parties.policy.id}/{parties.row.id}/{subject}/{proposed.incident}",
        cause=f"policy {parties.policy.name}: {printable(str(proposed.cause.get('text', '')))[:400]}",
        clauses=tuple(_clauses(proposed.cause)),
        at=now,
    )


def _verdict(
    monitor: Resource, row: Resource, policy: PolicyDesired, silent: float, now: float
) -> tuple[Literal["do", "observe", "held"], str]:
    wish: MonitorDesired = monitor.desired
    decided: MonitorAssigned = monitor.assigned
    watched = monitor.observed.watched if monitor.observed is not None else 0
    return plan.verdict(
        plan.Proposal(
            vm=row.assigned.vm,
            do=policy.do,
            policy_mode=policy.mode,
            monitor_mode=wish.mode,
            acted=plan.in_hour(row.assigned.acted, now),
            per_hour=wish.actions_per_hour,
            acted_whole=frozenset(vm for vm, _ in recent(decided.acted, now)),
            appliances=watched,
            fleet_percent=wish.fleet_percent,
            silent=silent,
        )
    )


async def _count(tx: Transaction, monitor: Resource, row: Resource, do: tuple[PolicyAct, ...]) -> None:
    """Note the action where the caps look."""
    assigned: StateAssigned = row.assigned
    await tx.update(row, assigned=replace(assigned, acted=(*plan.in_hour(assigned.acted, tx.now), tx.now)))
    if plan.is_whole(do):
        decided: MonitorAssigned = monitor.assigned
        acted = (*recent(decided.acted, tx.now), (assigned.vm, tx.now))
        await tx.update(monitor, assigned=replace(decided, acted=acted))


def _undone(assigned: StateAssigned, now: float) -> int:
    """Return how many actions were written in this hour, and not done."""
    return plan.undone_in_hour(assigned.hour, assigned.undone, now)


async def _count_undone(tx: Transaction, row: Resource) -> None:
    assigned: StateAssigned = row.assigned
    counted = replace(assigned, hour=int(tx.now // plan.HOUR_S), undone=_undone(assigned, tx.now) + 1)
    await tx.update(row, assigned=counted)


def _clauses(cause: dict[str, Any]) -> list[dict[str, Any]]:
    found = cause.get("clauses")
    if not isinstance(found, list) or len(msgspec.json.encode(found)) > CLAUSES_BYTES_MAX:
        return []
    return [each for each in found[:16] if isinstance(each, dict)]
