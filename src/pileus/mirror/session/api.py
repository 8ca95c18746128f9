"""Admission of a session: a NIC of one of the account's VMs, a filter that is understood, a sniffer elsewhere."""

from __future__ import annotations

from dataclasses import replace

import msgspec

from pileus.infra.zone.types import ZoneDesired
from pileus.kernel.admission import Admission, Change
from pileus.kernel.errors import Conflict, Denied, Invalid
from pileus.kernel.kind import Resource
from pileus.kernel.transaction import Exhausted, Transaction
from pileus.mirror.admission import refuse_appliance, require_nic
from pileus.mirror.filter.plan import expression_rules
from pileus.mirror.session.types import (
    SESSIONS_PER_ACCOUNT_MAX,
    SessionAssigned,
    SessionDesired,
    account_space,
)
from pileus.mirror.sniffer.types import SnifferDesired, sniffer_space, source_space
from pileus.node.mirror.rules import SESSIONS_PER_PORT_MAX, SNAP_BYTES_MIN


class SessionAdmission(Admission):
    """What can be refused is refused here, before a packet is copied."""

    async def admit(self, tx: Transaction, change: Change) -> Resource:
        """Return the session. Raises: Invalid, Denied, Conflict (loop, other-zone, too-many-sessions)."""
        new, old = change.new, change.old
        desired: SessionDesired = new.desired
        # Packets say as much as a console.
        change.principal.require("console", "compute.vm")
        _check_approval(change)
        _check_filter(desired)
        if old is not None:
            _refuse_ended(old)
            return _with_approval(change)
        vm = await tx.get(change.links["vm"])
        refuse_appliance(vm, "desired.vm")
        require_nic(vm, desired.nic)
        zone = await tx.get(vm.zone)
        _refuse_forbidden(zone)
        await _refuse_loop(tx, vm, desired.nic)
        await _check_sniffer(tx, change, vm)
        await _claim_place(tx, new, vm)
        change.links["vdc"] = vm.vdc
        assigned = SessionAssigned(zone=zone.id, vdc=vm.vdc, vm=vm.id, sniffer=change.links.get("sniffer", ""))
        return replace(new, assigned=assigned)


def _check_approval(change: Change) -> None:
    before = change.old.desired.approval if change.old is not None else ""
    if change.new.desired.approval != before and not change.principal.operator:
        raise Denied("approval is given by the cloud's operators; ask one of them")


def _with_approval(change: Change) -> Resource:
    """Return the changed session: what an operator approved was another one, if it was changed by somebody else."""
    desired: SessionDesired = change.new.desired
    if change.principal.operator or change.old is None or desired == change.old.desired:
        return change.new
    return replace(change.new, desired=msgspec.structs.replace(desired, approval=""))


def _check_filter(desired: SessionDesired) -> None:
    if desired.filter and desired.expression:
        raise Invalid("a session has a filter or an expression of its own, not both", field="desired.expression")
    if desired.expression:
        expression_rules(desired.expression)
    if 0 < desired.snap_bytes < SNAP_BYTES_MIN:
        raise Invalid(
            f"snap_bytes {desired.snap_bytes} would cut addresses off; say {SNAP_BYTES_MIN} or more, or 0 for all",
            field="desired.snap_bytes",
        )


def _refuse_ended(old: Resource) -> None:
    assigned: SessionAssigned = old.assigned
    if assigned.ended != "no":
        raise Conflict(f"{old} has ended; make another one", code="ended")


def _refuse_forbidden(zone: Resource) -> None:
    desired: ZoneDesired = zone.desired
    if desired.mirroring == "forbidden":
        raise Denied(f"{zone} forbids mirroring; its operators decide that")


async def _refuse_loop(tx: Transaction, vm: Resource, nic: int) -> None:
    """Raises: Conflict (loop) for a NIC that mirrored packets go to."""
    sniffer = await tx.holder(sniffer_space(), f"{vm.id}/{nic}")
    if sniffer is not None:
        raise Conflict(
            f"NIC {nic} of {vm} is {await tx.get(sniffer)}: what it gets would be copied again, without end; "
            "watch another NIC or VM",
            code="loop",
            field="desired.vm",
        )


async def _check_sniffer(tx: Transaction, change: Change, vm: Resource) -> None:
    if "sniffer" not in change.links:
        return
    sniffer = await tx.get(change.links["sniffer"])
    if sniffer.zone != vm.zone:
        raise Invalid(f"{sniffer} is in another zone than {vm}; use one in its zone", field="desired.sniffer")
    desired: SnifferDesired = sniffer.desired
    if (sniffer.assigned.vm, desired.nic) == (vm.id, change.new.desired.nic):
        raise Conflict(f"{sniffer} is the very NIC that is to be watched", code="loop", field="desired.sniffer")


async def _claim_place(tx: Transaction, session: Resource, vm: Resource) -> None:
    """Take one of the few places at the NIC. Raises: Conflict (too-many-sessions)."""
    nic = session.desired.nic
    try:
        await tx.claim_number(source_space(vm.id, nic), 1, SESSIONS_PER_PORT_MAX, session.id)
    except Exhausted:
        raise Conflict(
            f"NIC {nic} of {vm} has {SESSIONS_PER_PORT_MAX} mirror sessions, which is the most; delete one first, "
            f"or widen the filter of one: `pileus get session`",
            code="too-many-sessions",
            field="desired.vm",
        ) from None
    try:
        await tx.claim_number(account_space(session.account_id), 1, SESSIONS_PER_ACCOUNT_MAX, session.id)
    except Exhausted:
        raise Conflict(
            f"account {session.account} has {SESSIONS_PER_ACCOUNT_MAX} mirror sessions, which is the most; delete some first",
            code="too-many-sessions",
        ) from None
