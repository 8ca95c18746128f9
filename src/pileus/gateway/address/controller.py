"""The server half of a public address: it goes back to the pool once no router has it."""

from __future__ import annotations

from pileus.gateway.facts import Facts
from pileus.gateway.rule import RuleController
from pileus.kernel.kind import Resource
from pileus.kernel.outcome import Done, Outcome
from pileus.kernel.store.store import Store
from pileus.node.document import Document


def _no_entries(address: Resource, facts: Facts) -> Document:
    """An address is the router's own affair: what its document shall have of it is not asked here."""
    return {}


class AddressController(RuleController):
    """Held from the wish on; nothing waits for it but its end."""

    def __init__(self) -> None:
        super().__init__(_no_entries)

    def owns(self, rule: Resource, section: str, key: str) -> bool:
        """Tell whether it is the entry of the address."""
        return section == "addresses" and key == rule.assigned.address

    async def reconcile(self, resource: Resource, store: Store) -> Outcome:
        """Keep it out of other accounts' hands until the router let go of it."""
        return await super().reconcile(resource, store) if resource.deleting else Done()
