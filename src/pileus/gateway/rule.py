"""The server half that all gateway kinds share: is the wish in force on the router, and if not, why not.

The router's controller writes its nodes' documents; here they are only compared with what the rule needs. It wakes
the router when they differ, so nothing is lost with a wake-up that was.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

from msgspec import Struct

from pileus.fleet.node.types import answers
from pileus.gateway.facts import Facts
from pileus.gateway.reading import Appliance, Appliances, guests_of, living, read_facts
from pileus.gateway.router.types import RouterAssigned
from pileus.gateway.rules import RuleObserved
from pileus.kernel.kind import Resource
from pileus.kernel.loop import Controller
from pileus.kernel.outcome import Done, Outcome, Wait
from pileus.kernel.store.lists import Filter
from pileus.kernel.store.store import Store
from pileus.kernel.transaction import Transaction
from pileus.node.document import Document

LOOK_AGAIN_S = 10.0
"""The net under the router's wake-ups."""
IDLE_AGAIN_S = 300.0
"""A router that is not up wakes its rules when it comes."""
LEAVING_S = 1.0
"""A rule that goes is not in the router's view any more, so it looks by itself."""

CONFIGURING = "Configuring"
IDLE = "takes effect when the first VM starts: until then the router is not up"


class Site(Struct, frozen=True, kw_only=True):
    """A router that has to do with a rule, and what the rule's entries there are made from."""

    router: Resource | None
    appliances: Sequence[Appliance]
    facts: Facts
    wanted: Document
    """The rule's entries."""
    found: Sequence[Document]
    """What each appliance's document has of them."""

    @property
    def stale(self) -> bool:
        """Whether a document has not what the rule needs."""
        return any(each != self.wanted for each in self.found)


class Force(Struct, frozen=True, kw_only=True):
    """Whether a rule is in force; if not, a reason and a sentence."""

    reason: str = ""
    message: str = ""

    @property
    def holds(self) -> bool:
        """Whether it is in force."""
        return not self.reason


class RuleController(Controller):
    """Kinds say what is theirs in a document, what it should be, and what else they observe."""

    def __init__(self, entries: Callable[[Resource, Facts], Document]) -> None:
        self._entries = entries
        self._appliances = Appliances()

    # what kinds override

    again_s = 0.0
    """When a rule in force looks again without being woken; 0: never."""

    def zones(self, rule: Resource) -> Sequence[str]:
        """Return the zones whose routers have to do with the rule."""
        return (rule.assigned.zone,)

    def vms(self, rule: Resource) -> Collection[str]:
        """Return the VMs whose addresses the rule needs."""
        return ()

    def owns(self, rule: Resource, section: str, key: str) -> bool:
        """Tell whether an entry of a document is the rule's."""
        return key == rule.id

    def lacking(self, rule: Resource, facts: Facts) -> Force:
        """Return what the rule waits for besides the router."""
        return Force()

    def observed(self, rule: Resource, facts: Facts, statuses: Sequence[Any]) -> RuleObserved:
        """Return the observed section but for the state; ``statuses`` is what the nodes say of themselves."""
        return RuleObserved(state="pending")

    def others(self, rule: Resource, facts: Facts) -> Collection[str]:
        """Return what else must look again when the rule changes."""
        return ()

    # the rest

    async def reconcile(self, resource: Resource, store: Store) -> Outcome:
        """Compare the nodes with the wish; gone when no node has anything of it."""
        sites = [await self._site(resource, zone, store) for zone in self.zones(resource)]
        if resource.deleting:
            return self._leave(resource, sites)
        forces = [self._judge(resource, site) for site in sites]
        force = next((each for each in forces if not each.holds), Force())
        statuses = [each.observed.status for site in sites for each in site.appliances if each.observed is not None]
        seen = self.observed(resource, sites[0].facts, statuses)
        values = {name: getattr(seen, name) for name in seen.__struct_fields__}
        values |= {
            "state": "in-force" if force.holds else "pending",
            "reason": force.reason,
            "message": force.message or seen.message,
            "generation": resource.generation,
        }
        told = type(seen)(**values)
        stale = [site.router.id for site in sites if site.router is not None and site.stale]
        others = self.others(resource, sites[0].facts) if told != resource.observed else ()

        async def apply(tx: Transaction) -> None:
            for id in (*stale, *others):
                await tx.enqueue(id)
            await tx.update(resource, observed=told)

        if force.holds:
            return Done(apply, self.again_s)
        after_s = IDLE_AGAIN_S if force.reason in ("RouterIdle", "NoRouter") else LOOK_AGAIN_S
        return Wait(force.reason, force.message, after_s, apply)

    async def _site(self, rule: Resource, zone: str, store: Store) -> Site:
        routers = await living(store, Filter(kind="gateway.router", account_id=rule.account_id, zone=zone))
        router = routers[0] if routers else None
        appliances = await self._appliances.of(store, router.id) if router is not None else []
        guests = {} if rule.deleting else await guests_of(store, rule.account_id, self.vms(rule))
        facts = await read_facts(store, rule.account_id, zone, guests)
        wanted = {} if rule.deleting else self._entries(rule, facts)
        found = [self._own(rule, each.document) for each in appliances]
        return Site(router=router, appliances=appliances, facts=facts, wanted=wanted, found=found)

    def _own(self, rule: Resource, document: Document) -> Document:
        found = {
            section: {key: entry for key, entry in entries.items() if self.owns(rule, section, key)}
            for section, entries in document.items()
        }
        return {section: entries for section, entries in found.items() if entries}

    def _judge(self, rule: Resource, site: Site) -> Force:
        assigned: RouterAssigned | None = site.router.assigned if site.router is not None else None
        if site.router is None:
            return Force(reason="NoRouter", message="no network of the account in the zone has a router")
        if assigned is None or assigned.active == "no":
            return Force(reason="RouterIdle", message=IDLE)
        if not any(_answers(each) for each in site.appliances):
            return Force(reason="RouterStarting", message=f"{site.router} starts")
        lacking = self.lacking(rule, site.facts)
        if not lacking.holds:
            return lacking
        if site.stale:
            return Force(reason=CONFIGURING, message=f"{site.router} gets it now")
        forces = [_running(each) for each in site.appliances if _answers(each)]
        return next((each for each in forces if not each.holds), Force())

    def _leave(self, rule: Resource, sites: Sequence[Site]) -> Outcome:
        routers = [site.router.id for site in sites if site.router is not None]
        held = any(site.stale for site in sites)
        forces = [_running(each) for site in sites for each in site.appliances if _answers(each)]
        others = self.others(rule, sites[0].facts)

        async def apply(tx: Transaction) -> None:
            for id in (*routers, *others):
                await tx.enqueue(id)

        if held or any(force.reason == CONFIGURING for force in forces):
            return Wait("Deleting", "the router still has it", LEAVING_S, apply if held else None)
        return Done(apply)


def _answers(appliance: Appliance) -> bool:
    """Tell whether it can have a document; one of a pair that does not answer is no hindrance for the other."""
    return answers(appliance.resource)


def _running(appliance: Appliance) -> Force:
    """Return whether an appliance that answers runs the document that is wished."""
    observed = appliance.observed
    assert observed is not None
    if observed.problem is not None:
        return Force(reason=observed.problem.reason, message=observed.problem.message)
    if observed.hash != appliance.hash:
        return Force(reason=CONFIGURING, message="the router takes its newest document")
    return Force()
