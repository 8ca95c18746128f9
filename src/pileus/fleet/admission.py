"""What all admissions of a fleet ask: what an account lets a manager do in it."""

from __future__ import annotations

from pileus.fleet.consent.types import Allowed, ConsentDesired, consent_space
from pileus.fleet.manager.types import ManagerDesired
from pileus.kernel.access import Principal
from pileus.kernel.errors import Denied
from pileus.kernel.kind import Resource
from pileus.kernel.reader import Reader
from pileus.kernel.transaction import Transaction

OWN_NODES_MAX = 10_000
"""Of an account's own manager; its quota ends first."""


async def consent_of(reader: Reader, account_id: str, manager: Resource) -> ConsentDesired | None:
    """Return what the account lets the manager do, None for nothing; its own manager may do everything in it."""
    if manager.account_id == account_id:
        return ConsentDesired(manager=manager.name, nodes_max=OWN_NODES_MAX)
    held = await reader.holder(consent_space(account_id), manager.id)
    found = await reader.find_id(held) if held else None
    return found.desired if found is not None and not found.deleting else None


async def require_consent(tx: Transaction, account_id: str, manager: Resource) -> ConsentDesired:
    """Return what the account lets the manager do. Raises: Denied for nothing, and for a manager that is disabled."""
    consent = await consent_of(tx, account_id, manager)
    if consent is None:
        raise Denied(
            f"the account has not consented to {manager}; "
            f"`pileus create consent {manager.name} --manager {manager.name}` does",
            code="no-consent",
        )
    refuse_disabled(manager)
    return consent


def refuse_disabled(manager: Resource) -> None:
    """Raises: Denied for a manager that is disabled."""
    desired: ManagerDesired = manager.desired
    if desired.state == "disabled":
        raise Denied(f"{manager} is disabled", code="disabled")


def refuse_other(principal: Principal, manager: Resource) -> None:
    """Raises: Denied for a manager that is not this one; users may all that their role lets them."""
    if principal.manager_id not in ("", manager.id):
        raise Denied(f"the nodes of {manager} are not yours", code="not-yours")


async def require(tx: Transaction, principal: Principal, account_id: str, manager: Resource, what: Allowed) -> None:
    """Raises: Denied for a manager that the account does not let do ``what``; the account's users may what they may."""
    refuse_other(principal, manager)
    if not principal.manager_id:
        return
    consent = await require_consent(tx, account_id, manager)
    if what not in consent.allows:
        raise Denied(f"the account's consent does not allow {what}; its owner can add that", code="no-consent")
