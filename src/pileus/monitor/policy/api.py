"""Admission of a policy: clauses that mean something, and acts that can be done."""

from __future__ import annotations

from pileus.kernel.admission import Admission, Change
from pileus.kernel.errors import QuotaExceeded
from pileus.kernel.kind import Resource
from pileus.kernel.transaction import Transaction
from pileus.monitor.policy.plan import check_acts, check_whole, require_rights
from pileus.monitor.policy.types import PolicyDesired
from pileus.node.monitor.model import POLICIES_MAX


class PolicyAdmission(Admission):
    """What can be refused is refused here: the engine that will run the policy reads it."""

    async def admit(self, tx: Transaction, change: Change) -> Resource:
        """Return the policy. Raises: Invalid naming clause or act."""
        desired: PolicyDesired = change.new.desired
        check_acts(change.new, desired.do)
        if change.old is not None:
            require_rights(change.principal, change.old.desired.do)
        else:
            await _check_count(tx, change)
        require_rights(change.principal, desired.do)
        check_whole(change.new)
        return change.new


async def _check_count(tx: Transaction, change: Change) -> None:
    """Raises: QuotaExceeded: an engine refuses a document with more, and would watch nothing."""
    referrers = await tx.referrers(change.links["monitor"])
    if sum(1 for each in referrers if each.kind == change.new.kind) >= POLICIES_MAX:
        raise QuotaExceeded(
            f"monitor {change.new.desired.monitor} has {POLICIES_MAX} policies, the most there may be; delete one, or "
            "let one policy say more with match=any"
        )
