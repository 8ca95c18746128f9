"""How a rollout goes on: which nodes change now, which are through, when the next wave begins, when it turns back. Pure.

Everything follows from what was decided and noted before and from the nodes as they are now: a server that takes over
in the middle comes to the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from msgspec import Struct
from msgspec.structs import replace

from pileus.fleet.node.plan import is_made_of
from pileus.fleet.node.types import NodeAssigned, NodeBefore, NodeObserved, answers, in_force
from pileus.fleet.rollout.types import (
    CHANGED,
    OVER,
    RolloutAssigned,
    RolloutDesired,
    RolloutObserved,
    RolloutResult,
    State,
)
from pileus.kernel.kind import Resource
from pileus.node.document import document_hash

AT_ONCE = 50
"""Nodes that are changed in one transaction: others write in between."""
NAMED_MAX = 3
"""Failed nodes that a message names."""

REFUSALS = frozenset({"NodeRefused", "Refused", "Quarantined"})
"""Problems of a node that time does not mend."""

Results = tuple[RolloutResult, ...]


class NodeSeen(Struct, frozen=True, kw_only=True):
    """A node as it is now. ``other``: what it has is not what this rollout wrote. ``turned``: what it wrote last."""

    state: Literal["gone", "other", "moving", "refused", "in-force"]
    turned: Literal["", "forward", "back"] = ""
    message: str = ""


class Decision(Struct, frozen=True, kw_only=True):
    """What is written now; ``changes``: ids of the nodes that are brought to where ``assigned.turn`` leads."""

    assigned: RolloutAssigned
    results: Results
    changes: tuple[str, ...] = ()


# the start


def order(nodes: Iterable[Resource]) -> list[Resource]:
    """Return the nodes in the order in which they are changed."""
    return sorted(nodes, key=lambda node: (node.account, node.name, node.id))


def waves_of(ids: Sequence[str], percents: Sequence[int]) -> tuple[tuple[str, ...], ...]:
    """Return the nodes of each wave; ``percents`` say how many are through by its end. No wave is empty."""
    ends = [-(-len(ids) * percent // 100) for percent in percents]
    starts = [0, *ends]
    return tuple(tuple(ids[start:end]) for start, end in zip(starts, ends, strict=False) if end > start)


def results_of(nodes: Iterable[Resource], waves: Sequence[Sequence[str]]) -> Results:
    """Return the results of a rollout that did nothing yet."""
    wave_of = {id: number for number, wave in enumerate(waves) for id in wave}
    return tuple(
        RolloutResult(node=node.id, name=node.name, account=node.account, wave=wave_of[node.id]) for node in nodes
    )


# the nodes


def see(node: Resource | None, vm: Resource | None, rollout: str) -> NodeSeen:
    """Return what a node is to the rollout. ``vm``: its VM, when it may have to be made anew."""
    if node is None or node.deleting:
        return NodeSeen(state="gone", message="it was deleted")
    assigned: NodeAssigned = node.assigned
    before = assigned.before
    if before is None or before.rollout != rollout:
        return NodeSeen(state="other", message="another rollout changed it since, and it is left as it is")
    if is_touched(node, before):
        message = "it was changed by hand meanwhile, and is left as it is"
        return NodeSeen(state="other", turned=before.turned, message=message)
    refused = _refusal(node, before)
    if refused:
        return NodeSeen(state="refused", turned=before.turned, message=refused)
    missing = _missing(node, vm, before)
    return NodeSeen(state="moving" if missing else "in-force", turned=before.turned, message=missing)


def is_touched(node: Resource, before: NodeBefore) -> bool:
    """Tell whether somebody else changed the document or the package since the rollout did."""
    if node.generation == before.generation:
        return False
    return node.assigned.package != before.made_of or document_hash(node.desired.document) != before.hash


def _refusal(node: Resource, before: NodeBefore) -> str:
    """Return why the node will not take what was written, empty when it may."""
    assigned: NodeAssigned = node.assigned
    observed: NodeObserved | None = node.observed
    if assigned.quarantined:
        return f"it is quarantined: {assigned.quarantined}"
    problem = observed.problem if observed is not None else None
    if before.turned == "back":
        return ""  # what it complains of may be the document that is gone
    is_new = node.observed_generation >= before.generation
    return problem.message if problem is not None and is_new and problem.reason in REFUSALS else ""


def _missing(node: Resource, vm: Resource | None, before: NodeBefore) -> str:
    """Return what is missing until the node is as was written, empty for nothing."""
    observed: NodeObserved | None = node.observed
    if vm is not None and not is_made_of(node.assigned.footprint, vm):
        return "its VM is made anew"
    if node.desired.power == "stopped":
        return ""
    if vm is not None and (vm.ready is None or vm.ready.status != "true"):
        return "its VM does not run yet"
    if before.turned == "back" and answers(node) and observed is not None and observed.hash == before.hash:
        return _old_disk(before, observed)
    if node.ready is None or node.ready.status != "true":
        return node.ready.message if node.ready is not None else "nothing is known of it"
    if not in_force(node) or observed is None:
        return "it does not run its newest document yet"
    return _old_disk(before, observed)


def _old_disk(before: NodeBefore, observed: NodeObserved) -> str:
    return "its VM is made anew" if before.boot_id and observed.boot_id == before.boot_id else ""


# the decision


def decide(
    desired: RolloutDesired, assigned: RolloutAssigned, results: Results, seen: Mapping[str, NodeSeen], now: float
) -> Decision:
    """Return how the rollout goes on. ``seen``: at least the nodes of ``looked_at``."""
    assigned, results = _turn(desired, assigned, results)
    if assigned.turn == "back":
        return _back(desired, assigned, results, seen, now)
    return _forward(desired, assigned, results, seen, now)


def looked_at(results: Results) -> list[RolloutResult]:
    """Return the results of which it matters how the node is."""
    return [one for one in results if one.state in ("changing", "done", "failed", "rolling-back")]


def _turn(desired: RolloutDesired, assigned: RolloutAssigned, results: Results) -> tuple[RolloutAssigned, Results]:
    """Return where it goes from now on: the wish may turn it, and a new attempt begins what failed anew."""
    if desired.state == "rolled-back":
        if assigned.turn == "forward":
            assigned = replace(assigned, turn="back", cause="wish", phase="rolling-back", healthy_since=0.0)
        return assigned, results
    is_again = desired.attempt > assigned.attempt
    assigned = replace(assigned, attempt=max(desired.attempt, assigned.attempt))
    if assigned.turn == "back" and (is_again or (assigned.cause == "wish" and desired.state == "running")):
        assigned = replace(assigned, turn="forward", cause="", phase="running", wave=0, healthy_since=0.0)
        return assigned, tuple(_waiting(one) for one in results)
    if assigned.turn == "forward" and is_again:
        assigned = replace(assigned, phase="running", healthy_since=0.0)
        return assigned, tuple(_waiting(one) if one.state in ("failed", "skipped") else one for one in results)
    return assigned, results


def _waiting(result: RolloutResult) -> RolloutResult:
    return result if result.state == "gone" else replace(result, state="waiting", since=0.0, failure="", message="")


def _forward(
    desired: RolloutDesired, assigned: RolloutAssigned, results: Results, seen: Mapping[str, NodeSeen], now: float
) -> Decision:
    if assigned.phase == "done":
        return Decision(assigned=assigned, results=results)
    results = tuple(
        _followed(one, seen[one.node], desired.timeout_s, now) if one.state in CHANGED else one for one in results
    )
    failed = sum(one.state == "failed" for one in results)
    if failed > desired.failures_max:
        if desired.on_failure == "roll-back":
            turned = replace(assigned, turn="back", cause="failure", healthy_since=0.0)
            return _back(desired, turned, results, seen, now)
        return Decision(assigned=replace(assigned, phase="stopped", healthy_since=0.0), results=results)
    if desired.state == "paused":
        return Decision(assigned=replace(assigned, phase="paused", healthy_since=0.0), results=results)
    return _next_wave(desired, replace(assigned, phase="running"), results, now)


def _next_wave(desired: RolloutDesired, assigned: RolloutAssigned, results: Results, now: float) -> Decision:
    """Return the changes of the wave, or of the next one when this one was healthy for long enough."""
    while True:
        wave = [one for one in results if one.wave <= assigned.wave]
        waiting = [one.node for one in wave if one.state == "waiting"][:AT_ONCE]
        if waiting or any(one.state == "changing" for one in wave):
            assigned = replace(assigned, healthy_since=0.0)
            return Decision(
                assigned=assigned, results=_marked(results, waiting, "changing", now), changes=tuple(waiting)
            )
        assigned = replace(assigned, healthy_since=assigned.healthy_since or now)
        if now - assigned.healthy_since < desired.settle_s:
            return Decision(assigned=assigned, results=results)
        if assigned.wave >= len(assigned.waves) - 1:
            return Decision(assigned=replace(assigned, phase="done"), results=results)
        assigned = replace(assigned, wave=assigned.wave + 1, healthy_since=0.0)


def _followed(result: RolloutResult, seen: NodeSeen, timeout_s: float, now: float) -> RolloutResult:
    """Return the result of a node that was changed."""
    match seen.state:
        case "gone":
            return _now(result, "gone", now, message=seen.message)
        case "other":
            return _now(result, "skipped", now, message=seen.message)
        case "refused":
            return _now(result, "failed", now, failure=seen.message, message="")
        case "in-force":
            return result if result.state == "done" else _now(result, "done", now, message=seen.message)
    if result.state == "done":
        return _now(result, "changing", now, message=seen.message)
    if now - result.since >= timeout_s:
        return _now(result, "failed", now, failure=_late(timeout_s, seen), message="")
    return replace(result, message=seen.message)


def _back(
    desired: RolloutDesired, assigned: RolloutAssigned, results: Results, seen: Mapping[str, NodeSeen], now: float
) -> Decision:
    """Return the decision on the way back: in reverse order, and those that failed, too."""
    if assigned.phase == "rolled-back":
        return Decision(assigned=assigned, results=results)
    held = {one.node for one in looked_at(results)}
    results = tuple(
        _returned(one, seen[one.node], desired.timeout_s, now) if one.node in held else one for one in results
    )
    changes = [one.node for one in reversed(results) if one.node in held and _is_ahead(one, seen[one.node])]
    if desired.state == "paused":
        return Decision(assigned=replace(assigned, phase="paused"), results=results)
    if not changes and not any(one.state == "rolling-back" for one in results):
        return Decision(assigned=replace(assigned, phase="rolled-back"), results=results)
    chosen = changes[:AT_ONCE]
    results = _marked(results, chosen, "rolling-back", now)
    return Decision(assigned=replace(assigned, phase="rolling-back"), results=results, changes=tuple(chosen))


def _is_ahead(result: RolloutResult, seen: NodeSeen) -> bool:
    """Tell whether the node still has to be brought back."""
    return seen.turned == "forward" and result.state in ("changing", "done", "failed")


def _returned(result: RolloutResult, seen: NodeSeen, timeout_s: float, now: float) -> RolloutResult:
    """Return the result of a node on the way back."""
    if seen.state == "gone":
        return _now(result, "gone", now, message=seen.message)
    if seen.state == "other":
        never = result.state == "failed" and not seen.turned  # it failed before anything was written
        return result if never else _now(result, "skipped", now, message=seen.message)
    if result.state != "rolling-back" or seen.turned != "back":
        return result
    if seen.state == "in-force":
        return _now(result, "rolled-back", now, message="")
    if seen.state == "refused" or now - result.since >= timeout_s:
        why = seen.message if seen.state == "refused" else _late(timeout_s, seen)
        return _now(result, "failed", now, failure=result.failure or why, message=f"it has its old wish, and: {why}")
    return replace(result, message=seen.message)


def _late(timeout_s: float, seen: NodeSeen) -> str:
    return f"not in force after {timeout_s:.0f} s: {seen.message}"


def _now(result: RolloutResult, state: State, now: float, **changes: Any) -> RolloutResult:
    return replace(result, state=state, since=now, **changes)


def _marked(results: Results, nodes: Sequence[str], state: State, now: float) -> Results:
    """Return the results with a new state of some nodes; what was said of them before stays."""
    if not nodes:
        return results
    chosen = set(nodes)
    return tuple(_now(one, state, now) if one.node in chosen else one for one in results)


# what is told


def observed_of(assigned: RolloutAssigned, results: Results) -> RolloutObserved:
    """Return what the rollout says of itself."""
    return RolloutObserved(
        phase=assigned.phase,
        wave=assigned.wave,
        waves=len(assigned.waves),
        done=sum(one.state == "done" for one in results),
        failed=sum(bool(one.failure) for one in results),
        total=len(results),
        results=results,
        message=_message(assigned, results),
    )


def _message(assigned: RolloutAssigned, results: Results) -> str:
    failed = [one for one in results if one.failure]
    named = "; ".join(f"{one.name} of {one.account}: {one.failure}" for one in failed[:NAMED_MAX])
    more = f"; and {len(failed) - NAMED_MAX} more" if len(failed) > NAMED_MAX else ""
    words = f"{len(failed)} of {len(results)} nodes failed: {named}{more}" if failed else ""
    if assigned.phase == "rolled-back" and not words:
        return "the nodes are as they were, as wished"
    if assigned.phase == "stopped":
        return f"{words}; after repair, raise attempt to go on"
    return words


def ahead_of(results: Results) -> list[RolloutResult]:
    """Return the nodes that were changed and not brought back."""
    return [one for one in results if one.state in ("changing", "done", "failed")]


def is_over(assigned: RolloutAssigned) -> bool:
    """Tell whether it holds its nodes no more."""
    return assigned.phase in OVER
