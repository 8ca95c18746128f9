"""What a request does next: from its times, its rows and its machines as they are. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

from msgspec import Struct
from msgspec.structs import replace

from pileus.compute.offers import Choice, Machine, summary
from pileus.compute.placement.types import HELD, Contribution, PlacementAssigned, State
from pileus.compute.request.types import RequestAssigned, RequestDesired
from pileus.compute.vm.plan import is_off
from pileus.compute.vm.types import VmObserved
from pileus.kernel import term
from pileus.kernel.kind import Resource

CONFIRM_S = 60.0
"""How long a host may be silent about a machine that it was told to start."""
PROBLEM_S = 10.0
"""How long it may report a problem with it: what passes sooner is no refusal."""
START_MAX_S = 600.0
"""How long a machine may take in all that its host says is on its way: its image is fetched, its disk made."""
RETRY_S = 30.0
"""How often a place is looked for again for machines that are missing."""
NOT_FREE = "NotFree"
LATE_S = 30.0
"""How long one that was promised room waits for it at least, when what should have ended there has not."""
LOOK_S = 2.0
"""How late a silence is seen; what is said wakes the request."""

SILENT = frozenset({"HostSilent", "HostReturned", "NotReported"})
NOT_THE_HOST = frozenset({"NetworkNotServed", "ImageNotReady"})
"""What a machine may wait for without its host being in doubt."""
DOUBTED = frozenset({"Ended", "NoAddress", "AddressInUse", "NoVlan", "PoolFull"})
"""What is a problem although no host calls it one: what a machine, a network or a pool says."""

Changes = dict[str, Any]
"""Fields of a row that change."""


class VmSeen(Struct, frozen=True, kw_only=True):
    """A machine as it is. ``is_done``: its guest powered itself off."""

    power: str
    reason: str
    message: str
    is_running: Literal["yes", "no"]
    is_done: Literal["yes", "no"]
    has_problem: Literal["yes", "no"]
    is_off: Literal["yes", "no"] = "no"
    """Whether its host knows that it shall be stopped, and says that it is: it does not run there any more."""


class Next(Struct, frozen=True, kw_only=True):
    """What is to be written, and when to look again; ``rows``: what changes, by id."""

    assigned: RequestAssigned
    rows: dict[str, Changes] = {}
    power: Literal["", "stopped"] = ""
    """What the set is told; empty: nothing."""
    drop: Literal["yes", "no"] = "no"
    """Whether the set goes, and what rows hold."""
    after_s: float = LOOK_S


def end_of(desired: RequestDesired, assigned: RequestAssigned) -> float:
    """Return when it ends; 0: at no certain time."""
    return term.end_of(assigned.start or assigned.start_from, 0.0, desired.duration_s)


def stop_at(desired: RequestDesired, assigned: RequestAssigned) -> float:
    """Return when its machines are told to stop, so that none runs past the end; 0: never."""
    return term.stop_at(assigned.start or assigned.start_from, assigned.end, desired.shutdown_timeout_s)


def late_by(desired: RequestDesired, assigned: RequestAssigned) -> float:
    """Return until when it waits for the room that it was promised: for all of it as long as it may start."""
    patience = assigned.start + LATE_S
    return max(assigned.start_by, patience) if desired.mode == "all-or-nothing" else patience


def needs(
    desired: RequestDesired, assigned: RequestAssigned, links: Mapping[str, str], numbers: Sequence[int], now: float
) -> list[Machine]:
    """Return what the machines with these numbers need: from any moment of the window, or beside those that have theirs."""
    first, last, duration_s = max(assigned.start_from, now), max(assigned.start_by, now), float(desired.duration_s)
    if assigned.room_by > now:
        last = first  # room is being made at once, so it waits for no later one
    if assigned.start:
        first = last = max(assigned.start, now)
        duration_s = max(assigned.end - first, 0.001) if assigned.end else 0.0
    networks = tuple(links[f"nics.{position}.network"] for position in range(len(desired.nics)))
    return [
        Machine(
            number=number,
            vcpus=assigned.vcpus,
            memory_mib=assigned.memory_mib,
            disk_gib=assigned.disk_gib,
            iops=desired.iops_limit,
            rate_kbps=desired.rate_limit_kbps * len(networks),
            service=desired.service,
            image=assigned.image,
            networks=networks,
            zone=assigned.zone,
            start_from=first,
            start_by=last,
            duration_s=duration_s,
            uefi="yes" if assigned.firmware == "uefi" and not assigned.append else "no",
        )
        for number in numbers
    ]


def see(vm: Resource) -> VmSeen:
    """Return the VM as a machine of a request."""
    observed: VmObserved | None = vm.observed
    ready = vm.ready
    reason, message = (ready.reason, ready.message) if ready is not None else ("NotReported", "")
    exit = observed.exit if observed is not None else None
    stopped = observed is not None and observed.power == "stopped" and vm.desired.power == "running"
    is_held = vm.assigned.bar is not None  # its guest was told to power off, or did so before
    running = observed is not None and observed.power == "running" and ready is not None and ready.status == "true"
    has_problem = (observed is not None and observed.problem is not None) or reason in DOUBTED
    return VmSeen(
        power=observed.power if observed is not None else "",
        reason=reason if observed is not None or reason in SILENT | NOT_THE_HOST else "NotReported",
        message=message,
        is_running="yes" if running else "no",
        is_done="yes" if stopped and not is_held and exit is not None and exit.reason == "guest-shutdown" else "no",
        has_problem="yes" if has_problem else "no",
        is_off="yes" if _is_off(vm) else "no",
    )


def _is_off(vm: Resource) -> bool:
    observed: VmObserved | None = vm.observed
    if not is_off(vm) or observed is None or observed.problem is not None:
        return False
    return not vm.unheard and vm.observed_generation >= vm.generation


def follow(
    desired: RequestDesired,
    assigned: RequestAssigned,
    rows: Mapping[str, PlacementAssigned],
    vms: Mapping[str, VmSeen],
    now: float,
) -> Next:
    """Return what is due of a request that has its places."""
    if assigned.phase == "releasing":
        return Next(assigned=assigned)
    stops = stop_at(desired, assigned)
    if stops and now >= stops:
        return _end(assigned, rows, vms, now)
    if assigned.phase == "reserved" and now < assigned.start:
        return Next(assigned=assigned, after_s=assigned.start - now)
    changes = {id: change for id, row in rows.items() if (change := _change(desired, assigned, row, vms, now))}
    after = {id: replace(row, **changes.get(id, {})) for id, row in rows.items()}
    refused = [row for row in after.values() if row.state == "refused"]
    if refused and desired.mode == "all-or-nothing" and assigned.phase != "running":
        return release(assigned, changes, "refused", "Refused", _blame(refused))
    if after and all(row.state == "released" for row in after.values()):
        return release(assigned, changes, "ended", "Done", "every machine has done its task")
    is_starting = any(row.state in ("instructed", "moving") for row in after.values())
    then = replace(assigned, phase="starting" if is_starting and assigned.phase != "running" else "running")
    after_s = LOOK_S if is_starting else _next_look_s(desired, then, stops, now)
    return Next(assigned=then, rows=changes, after_s=after_s)


def begins(row: PlacementAssigned, changes: Changes) -> bool:
    """Tell whether what was promised to a machine is needed now."""
    return row.promised == "yes" and changes.get("state") == "instructed"


def without_room(desired: RequestDesired, decided: Next, late: Collection[str], *, is_over: bool) -> Next:
    """Return what was decided, but for the machines in these rows, whose promised room is not free: they wait.

    ``is_over``: no longer; they look for other places, or all is released.
    """
    begun: Changes = {"promised": "no"}
    rows = {
        id: {**changes, **begun} if changes.get("state") == "instructed" else changes
        for id, changes in decided.rows.items()
        if id not in late
    }
    if not late or not is_over:
        return replace(decided, rows=rows)
    if desired.mode == "all-or-nothing":
        return release(decided.assigned, {}, "refused", NOT_FREE, not_free(len(late)))
    refused: Changes = {"state": "refused", "promised": "no", "reason": NOT_FREE, "message": not_free(1)}
    return replace(decided, rows={**rows, **dict.fromkeys(late, refused)})


def not_free(count: int) -> str:
    """Return why machines do not start that were promised room."""
    return f"what should have ended has not, and has the room that {count} of the machines were promised"


def found(choice: Choice, start: float) -> str:
    """Return what is said of a choice of which those that start first are taken; empty: all is well."""
    late = sum(each.start > start for each in choice.chosen)
    said = f"{late} of the machines find a place later only, and come when they do" if late else ""
    return "; ".join(filter(None, (summary(choice), said)))


def _end(
    assigned: RequestAssigned, rows: Mapping[str, PlacementAssigned], vms: Mapping[str, VmSeen], now: float
) -> Next:
    """Tell the machines to stop; at the end, or when all did, release them."""
    live = [vms[row.vm] for row in rows.values() if row.vm in vms]
    is_off = all(vm.power in ("stopped", "absent") for vm in live)
    if now >= assigned.end or (assigned.phase == "ending" and is_off):
        return release(assigned, {}, "ended", "Ended", "its time is over")
    then = replace(assigned, phase="ending", message="its machines are told to stop")
    return Next(assigned=then, power="stopped", after_s=min(assigned.end - now, LOOK_S))


def release(
    assigned: RequestAssigned,
    changes: dict[str, Changes],
    outcome: Literal["ended", "refused"],
    reason: str,
    message: str,
) -> Next:
    """Return that all of it goes, and what it comes to."""
    then = replace(assigned, phase="releasing", outcome=outcome, reason=reason, message=message)
    return Next(assigned=then, rows=changes, drop="yes")


def _blame(refused: Sequence[PlacementAssigned]) -> str:
    first = min(refused, key=lambda row: row.number)
    more = f", and {len(refused) - 1} more were refused" if len(refused) > 1 else ""
    why = f"{first.reason}: {first.message}" if first.message else first.reason
    return f"host {first.server} refused machine {first.number} ({why}){more}; all of it was released"


def _change(
    desired: RequestDesired, assigned: RequestAssigned, row: PlacementAssigned, vms: Mapping[str, VmSeen], now: float
) -> Changes:
    """Return what changes of a row: its state, and its end when that was put off."""
    later: Changes = {"end": assigned.end} if row.state in HELD and row.end != assigned.end else {}
    return {**later, **_judge(desired, row, vms.get(row.vm), now)}


def _judge(desired: RequestDesired, row: PlacementAssigned, vm: VmSeen | None, now: float) -> Changes:
    """Return what changes of a row that is not yet confirmed, or whose machine has done its task."""
    if row.state in ("released", "preempted", "moving"):
        return {}
    if row.state == "offered":
        return {"state": "instructed", "since": now, "start": now}
    if vm is None:
        return {}  # it is just being made
    if desired.until == "exit" and vm.is_done == "yes":
        return {"state": "released", "reason": "TaskDone", "message": "its guest powered itself off", "end": now}
    if vm.is_running == "yes":
        known = row.state == "confirmed"
        return {} if known else {"state": "confirmed", "reason": "", "message": "", "doubted_at": 0.0}
    return _doubt(row, vm, now) if row.state == "instructed" else {}


def _doubt(row: PlacementAssigned, vm: VmSeen, now: float) -> Changes:
    waited = now - row.since
    if vm.reason in NOT_THE_HOST:
        return {"since": now, "doubted_at": 0.0} if waited > CONFIRM_S / 2 else {}
    if vm.has_problem == "yes" and not row.doubted_at:
        return {"doubted_at": now}
    has_problem = vm.has_problem == "yes" and now - row.doubted_at >= PROBLEM_S
    is_silent = vm.reason in SILENT and waited >= CONFIRM_S
    if has_problem or is_silent or waited >= START_MAX_S:
        return {"state": "refused", "reason": vm.reason, "message": vm.message}
    return {"doubted_at": 0.0} if row.doubted_at and vm.has_problem == "no" else {}


def _next_look_s(desired: RequestDesired, assigned: RequestAssigned, stops: float, now: float) -> float:
    """Return when something is due by the clock alone; 0: never."""
    times = [stops, assigned.end - desired.warn_s if assigned.end else 0.0]
    if desired.mode == "best-effort" or desired.service == "best-effort":
        times.append(now + RETRY_S)
    return term.next_look_s(times, now)


def is_silent(row: PlacementAssigned) -> bool:
    """Tell whether nobody knows if the machine runs: then it is not put anywhere else."""
    return row.reason in SILENT


def contributions(row: PlacementAssigned, state: State, reason: str) -> tuple[Contribution, ...]:
    """Return the row's contributions as they are in this state; it is the host that refuses."""
    return tuple(
        replace(each, state=state, reason=reason if each.kind == "host" else "")
        if state != "refused" or each.kind == "host"
        else each
        for each in row.contributions
    )
