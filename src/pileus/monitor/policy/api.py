"""Admission of a policy: clauses that mean something, and acts that can be done."""

from __future__ import annotations

import re

from pileus.kernel.admission import Admission, Change
from pileus.kernel.errors import Invalid, QuotaExceeded
from pileus.kernel.kind import Resource
from pileus.kernel.transaction import Transaction
from pileus.monitor.policy.plan import check_acts, check_clauses, check_words, engine_policy, require_rights
from pileus.monitor.policy.types import PolicyDesired
from pileus.node.monitor.engine import Engine
from pileus.node.monitor.model import POLICIES_MAX

_CLAUSE = re.compile(r"when\[(\d+)\]\.(\w+)[^:]*: (.*)")


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
        is_found = any("*" in clause.field.split(".") for clause in desired.when)
        for number, act in enumerate(desired.do):
            if act.do.endswith("-application") and not act.application and not is_found:
                raise Invalid(
                    f"{change.new}: act {number + 1}, {act.do}: say which application it is, or let a clause find it with "
                    "* such as applications.*.state",
                    field=f"desired.do.{number}.application",
                )
        check_clauses(change.new)
        try:
            Engine().configure({"settings": {}, "appliances": {}, "policies": {"policy": engine_policy(change.new)}})
        except ValueError as wrong:
            raise _refusal(change.new, str(wrong)) from None
        check_words(change.new)
        return change.new


async def _check_count(tx: Transaction, change: Change) -> None:
    """Raises: QuotaExceeded: an engine refuses a document with more, and would watch nothing."""
    referrers = await tx.referrers(change.links["monitor"])
    if sum(1 for each in referrers if each.kind == change.new.kind) >= POLICIES_MAX:
        raise QuotaExceeded(
            f"monitor {change.new.desired.monitor} has {POLICIES_MAX} policies, the most there may be; delete one, or "
            "let one policy say more with match=any"
        )


def _refusal(policy: Resource, words: str) -> Invalid:
    """Return what the engine says, in words for people."""
    words = words.removeprefix("policies.policy.")
    found = _CLAUSE.fullmatch(words)
    if found is None:
        return Invalid(f"{policy}: {words}", field="desired.when")
    place, name, why = int(found[1]), found[2], found[3]
    desired: PolicyDesired = policy.desired
    shown = f"{name} {getattr(desired.when[place], name, '')!r}"
    return Invalid(f"{policy}: clause {place + 1}, {shown}: {why}", field=f"desired.when.{place}.{name}")
