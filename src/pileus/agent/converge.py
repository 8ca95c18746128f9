"""Makes the host follow its slice: every resource is observed, decided about and acted on until nothing is left to do."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import msgspec
import structlog

from pileus.agent.channel import Fetch
from pileus.drivers.host.errors import DriverError
from pileus.kernel.clock import Clock
from pileus.kernel.errors import PileusError, Transient
from pileus.kernel.failpoint import failpoint
from pileus.kernel.fields import Problem
from pileus.kernel.half import Half
from pileus.kernel.kind import Registry, Resource
from pileus.kernel.stream import Body, Fact

log = structlog.get_logger()

RESYNC_S = 30.0
"""Each resource is looked at this often even when nothing was heard of it."""
STEPS_MAX = 32
"""Steps in a row for one resource before others get their turn."""
BACKOFF_FIRST_S, BACKOFF_MAX_S = 0.5, 60.0
QUARANTINE_S = 60.0
"""How long something that no resource stands for is left alone: the slice may be behind."""
GONE_S = 3600.0
"""How long an id that is gone is remembered when nothing of it is on the host."""
AT_ONCE = 16
"""Resources acted on at the same time."""


class Converger:
    """All resources of the slice, and their facts. ``on_fact`` hears each fact that changed."""

    def __init__(
        self,
        registry: Registry,
        halves: Iterable[Half[Any, Any]],
        clock: Clock,
        fetch_image: Fetch,
        fetch_content: Fetch,
    ) -> None:
        self._registry = registry
        self._halves: Mapping[str, Half[Any, Any]] = {half.kind: half for half in halves}
        self._clock = clock
        self.fetch_image = fetch_image
        self._fetch_content = fetch_content
        self.on_fact: Callable[[Fact], None] = lambda fact: None
        self._resources: dict[str, Resource] = {}
        self._of_kind: dict[str, dict[str, Resource]] = defaultdict(dict)
        self._facts: dict[str, Fact] = {}
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._due: dict[str, None] = {}
        self._working: dict[str, asyncio.Task[None]] = {}
        self._failures: dict[str, int] = {}
        self._orphans: dict[tuple[str, str], float] = {}
        self._gone: dict[str, float] = {}
        """What may be removed, and since when."""
        self.unclaimed = 0
        """How much is on the host that no resource stands for and nobody called gone."""
        self._random = random.Random()
        self._closed = False

    # the slice

    def put(self, body: Body) -> None:
        """Take a resource as the server says it."""
        if body.kind not in self._registry or body.kind not in self._halves:
            log.warning("the server knows a kind that this agent does not", kind=body.kind)
            return
        kind = self._registry[body.kind]
        known = self._resources.get(body.id)
        taken = Resource(
            id=body.id,
            kind=body.kind,
            name=body.name,
            account_id=body.account_id,
            account=body.account,
            owner=body.owner,
            generation=body.generation,
            revision=body.revision,
            deleting_at=body.deleting_at,
            desired=self._registry.decode(kind.desired, body.desired),
            assigned=self._registry.decode(kind.assigned, body.assigned),
            observed=known.observed if known else None,
            conditions=known.conditions if known else (),
        )
        self._resources[body.id] = self._of_kind[body.kind][body.id] = taken
        self._failures.pop(body.id, None)
        self.wake(body.id)

    def drop(self, id: str) -> None:
        """Forget a resource that left the slice; what is left of it on the host stays, see ``allow_removal``."""
        dropped = self._resources.pop(id, None)
        if dropped is not None:
            del self._of_kind[dropped.kind][id]
        self._facts.pop(id, None)
        self._failures.pop(id, None)
        timer = self._timers.pop(id, None)
        if timer is not None:
            timer.cancel()

    def allow_removal(self, ids: Iterable[str]) -> None:
        """Take the word of a server that these are gone for ever: what is left of them goes after quarantine."""
        self._gone.update(dict.fromkeys(ids, self._clock()))

    def ids(self) -> set[str]:
        """Return the ids of the slice."""
        return set(self._resources)

    def facts(self) -> list[Fact]:
        """Return the newest fact of every resource."""
        return list(self._facts.values())

    # what halves may ask (Peers)

    def peer(self, id: str) -> Resource | None:
        """Return another resource of the slice with what was last observed of it."""
        return self._resources.get(id)

    def peers(self, kind: str) -> list[Resource]:
        """Return all resources of a kind in the slice."""
        return list(self._of_kind[kind].values())

    def now(self) -> float:
        """Return Unix seconds."""
        return self._clock()

    def image(self, id: str, part: str) -> AsyncIterator[bytes]:
        """Fetch a part of an image from the server."""
        return self.fetch_image(id, part)

    def content(self, id: str, part: str) -> AsyncIterator[bytes]:
        """Fetch bytes that the server keeps of a resource of the slice."""
        return self._fetch_content(id, part)

    def wake(self, id: str) -> None:
        """Look at a resource now, or once more if it is being looked at."""
        timer = self._timers.pop(id, None)
        if timer is not None:
            timer.cancel()
        if id not in self._resources or self._closed:
            return
        self._due[id] = None
        self._start_due()

    def wake_owner(self, id: str) -> None:
        """Look at what owns a resource, as a node its VM."""
        resource = self._resources.get(id)
        if resource is not None:
            self.wake(resource.owner)

    # work

    def _start_due(self) -> None:
        for id in list(self._due):
            if len(self._working) >= AT_ONCE:
                return
            if id in self._working:
                continue
            del self._due[id]
            self._working[id] = asyncio.create_task(self._work(id), name=f"converge {id}")

    async def _work(self, id: str) -> None:
        after_s = RESYNC_S * self._random.uniform(0.8, 1.2)
        try:
            resource = self._resources.get(id)
            if resource is not None:
                again_s = await self._converge(resource)
                after_s = after_s if again_s is None else min(again_s, after_s)
        except Exception:  # a defect in one kind must not stop the others: the loop survives
            log.exception("defect while converging", id=id)
            self._note_defect(id)
        finally:
            del self._working[id]
            if id in self._resources and id not in self._due and not self._closed:
                self._later(id, after_s)
            self._start_due()

    def _later(self, id: str, after_s: float) -> None:
        old = self._timers.pop(id, None)
        if old is not None:
            old.cancel()
        self._timers[id] = asyncio.get_running_loop().call_later(after_s, self.wake, id)

    async def _converge(self, resource: Resource) -> float | None:
        """Act until no step is left; return when to look again, None for the usual time."""
        half = self._halves[resource.kind]
        fact: Any = None
        problem: Problem | None = None
        again_s: float | None = None
        try:
            for _ in range(STEPS_MAX):
                fact = await half.observe(resource, self)
                step = half.plan(resource, fact, self)
                if step is None or step.verb == "wait":
                    again_s = step.after_s if step is not None else None
                    break
                failpoint(f"{resource.kind}.{step.verb}.before")
                await half.do(step, resource, self)
                failpoint(f"{resource.kind}.{step.verb}.after")
                log.info("did", step=step.verb, kind=resource.kind, id=resource.id, name=resource.name)
                resource = self._resources.get(resource.id, resource)
            else:
                again_s = 0.0
            self._failures.pop(resource.id, None)
        except (DriverError, Transient) as error:
            problem, again_s = self._failed(resource, error)
        self._note_fact(resource, half, fact, problem)
        return again_s

    def _note_defect(self, id: str) -> None:
        resource = self._resources.get(id)
        if resource is not None:
            problem = Problem(reason="AgentDefect", message="the host's agent has a defect here; see its log")
            self._note_fact(resource, self._halves[resource.kind], None, problem)

    def _failed(self, resource: Resource, error: PileusError) -> tuple[Problem, float]:
        failures = self._failures[resource.id] = self._failures.get(resource.id, 0) + 1
        reason = error.reason if isinstance(error, DriverError) else "Retrying"
        level = log.warning if failures >= 3 else log.info
        level("failed", kind=resource.kind, id=resource.id, name=resource.name, reason=reason, error=error.message)
        ceiling = min(BACKOFF_FIRST_S * 2.0 ** min(failures - 1, 16), BACKOFF_MAX_S)
        return Problem(reason=reason, message=error.message), float(ceiling * self._random.uniform(0.5, 1.0))

    def _note_fact(self, resource: Resource, half: Half[Any, Any], fact: Any, problem: Problem | None) -> None:
        current = self._resources.get(resource.id)
        if current is None:
            return
        observed = half.report(resource, fact, problem)
        condition = self._registry[resource.kind].ready(replace(resource, observed=observed))
        changed = observed != current.observed or (condition,) != current.conditions
        noted = replace(current, observed=observed, conditions=(condition,))
        self._resources[resource.id] = self._of_kind[resource.kind][resource.id] = noted
        text = msgspec.json.encode(observed).decode()
        told = Fact(resource.id, resource.kind, resource.generation, text)
        if self._facts.get(resource.id) != told:
            self._facts[resource.id] = told
            self.on_fact(told)
        if changed:
            self._wake_related(current)

    def _wake_related(self, resource: Resource) -> None:
        """Look at those that may have waited for this one: its owner, its parts, and whoever names it."""
        if resource.owner in self._resources:
            self.wake(resource.owner)
        for other in self._resources.values():
            named = (*getattr(other.assigned, "volumes", ()), getattr(other.assigned, "port", ""))
            if other.owner == resource.id or resource.id in named:
                self.wake(other.id)
        for volume in getattr(resource.assigned, "volumes", ()):
            self.wake(volume)

    # the rest of the host

    async def sweep(self) -> None:
        """Remove from the host what is gone, once no resource stood for it for QUARANTINE_S; count what else is there."""
        now = self._clock()
        seen: set[tuple[str, str]] = set()
        for half in self._halves.values():
            with contextlib.suppress(DriverError, Transient):
                seen.update((half.kind, id) for id in await half.inventory() if id not in self._resources)
        self._orphans = {key: self._orphans.get(key, now) for key in seen}
        held = {id for _, id in seen}
        self._gone = {id: since for id, since in self._gone.items() if id in held or now - since < GONE_S}
        due = [key for key, since in self._orphans.items() if now - since >= QUARANTINE_S]
        self._count_unclaimed(sorted({id for _, id in due} - self._gone.keys()))
        for kind, id in due:
            if id in self._gone and id not in self._resources:  # it may have come back meanwhile
                log.warning("removing what no resource stands for", kind=kind, id=id)
                with contextlib.suppress(DriverError, Transient):
                    await self._halves[kind].remove(id)

    def _count_unclaimed(self, ids: list[str]) -> None:
        if len(ids) != self.unclaimed:
            log.warning("on this host, but in no slice: left alone", count=len(ids), ids=ids[:10])
        self.unclaimed = len(ids)

    async def counters(self) -> dict[str, str]:
        """Return the counters of every resource that has some, as JSON by id."""
        result = {}
        for half in self._halves.values():
            with contextlib.suppress(DriverError, Transient):
                for id, counters in (await half.counters()).items():
                    if id in self._resources:
                        result[id] = msgspec.json.encode(counters).decode()
        return result

    async def close(self) -> None:
        """Stop acting; the host stays as it is."""
        self._closed = True
        for timer in self._timers.values():
            timer.cancel()
        self._due.clear()
        tasks = list(self._working.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for half in self._halves.values():
            await half.close()
