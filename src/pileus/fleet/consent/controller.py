"""The server half of a consent: what its manager asked for, and was not told yet, goes with it."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from pileus.fleet.consent.types import ConsentAssigned, ConsentDesired
from pileus.fleet.request.types import RequestAssigned, is_settled
from pileus.kernel.kind import Resource
from pileus.kernel.loop import Controller
from pileus.kernel.outcome import Done, Outcome, Wait
from pileus.kernel.store import statements as sql
from pileus.kernel.store.lists import Filter
from pileus.kernel.store.store import Store
from pileus.kernel.transaction import Transaction

PAGE = 200


class ConsentController(Controller):
    """A consent takes effect by being there; without it, what the manager asked for and no node has begun ends."""

    async def reconcile(self, resource: Resource, store: Store) -> Outcome:
        """Withdraw what the manager asked for, a page at a time, when it may not ask any more."""
        desired: ConsentDesired = resource.desired
        if not resource.deleting and "request" in desired.allows:
            return Done()
        asked = await _asked(resource, store)
        if not asked:
            return Done()
        return Wait("Withdrawing", "what its manager asked for is withdrawn", 0.1, lambda tx: _withdraw(tx, asked))

    async def release(self, tx: Transaction, resource: Resource) -> None:
        """Drop what waits to be told of the account."""
        await tx.change(sql.NOTICES_DELETE_OF, manager=resource.assigned.manager, account_id=resource.account_id)


async def _asked(consent: Resource, store: Store) -> list[Resource]:
    """Return requests of the manager that are not settled and not withdrawn yet, a page at most."""
    assigned: ConsentAssigned = consent.assigned
    filter = Filter(kind="fleet.request", account_id=consent.account_id, manager=assigned.manager)
    found: list[Resource] = []
    after = ""
    while len(found) < PAGE and (page := await store.list(filter, after=after, limit=PAGE)):
        found += [one for one in page if _is_wanted(one)]
        after = page[-1].id
    return found[:PAGE]


def _is_wanted(request: Resource) -> bool:
    decided: RequestAssigned = request.assigned
    return decided.asked_by == "manager" and decided.withdrawn == "no" and not is_settled(request)


async def _withdraw(tx: Transaction, asked: Sequence[Resource]) -> None:
    for one in asked:
        request = await tx.find_id(one.id)
        if request is not None and _is_wanted(request):
            await tx.update(request, assigned=replace(request.assigned, withdrawn="yes"))
