"""What a set does next to have the members that are wished, as they are wished. Pure."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Literal

from msgspec import Struct
from msgspec.structs import replace

from pileus.compute.set.types import NUMBER_LABEL, RESULTS_MAX, MemberResult, SetDesired, SetObserved
from pileus.compute.vm.types import VmDesired, VmObserved
from pileus.kernel.kind import Resource
from pileus.kernel.term import Phase, phase_of, stop_at

RESTART_PERCENT = 10
"""Of the members, how many may be on their way through a restart; at least one."""


class Member(Struct, frozen=True, kw_only=True):
    """A member as it is. ``boot_serial``: as its wish has it, ``booted``: as its host had it last."""

    id: str
    number: int
    power: str
    boot_serial: int
    booted: int
    is_ready: Literal["yes", "no"]
    is_going: Literal["yes", "no"]
    seen: str = ""
    """Its power, as its host sees it; empty: nothing was said yet."""
    reason: str = ""
    message: str = ""


class Plan(Struct, frozen=True, kw_only=True):
    """What is due: numbers to make, ids to remove, and ids whose wish is to be brought to the set's."""

    make: tuple[int, ...] = ()
    drop: tuple[str, ...] = ()
    stop: tuple[str, ...] = ()
    power: tuple[str, ...] = ()
    boot: tuple[str, ...] = ()


def term_of(desired: SetDesired, end: float, start: float, now: float) -> tuple[Phase, float]:
    """Return how near its end a set is that was made at ``start``, and when its members are told to stop; 0: never."""
    stops = stop_at(start, end, desired.shutdown_timeout_s)
    return phase_of(end, stops, desired.warn_s, now), stops


def due_of(desired: SetDesired, term: Phase) -> SetDesired:
    """Return what its members shall be now: as is wished, or stopped at its end."""
    return replace(desired, power="stopped") if term in ("ending", "ended") else desired


def member_of(vm: Resource) -> Member:
    """Return the VM as a member."""
    desired: VmDesired = vm.desired
    observed: VmObserved | None = vm.observed
    ready = vm.ready
    is_ready = ready is not None and ready.status == "true"
    return Member(
        id=vm.id,
        number=int(vm.labels[NUMBER_LABEL]),
        power=desired.power,
        boot_serial=desired.boot_serial,
        booted=observed.boot_serial if observed is not None else 0,
        is_ready="yes" if is_ready else "no",
        is_going="yes" if vm.deleting else "no",
        seen=observed.power if observed is not None else "",
        reason=ready.reason if ready is not None else "",
        message=ready.message if ready is not None else "",
    )


def plan(wanted: Collection[int], members: Sequence[Member], desired: SetDesired, off: Collection[int] = ()) -> Plan:
    """Return what is due now: all that is missing, too much, or in another power; restarts a few at a time.

    ``off``: numbers of members that are stopped whatever is wished, for they are about to go to another host.
    """
    taken = {member.number for member in members}
    stay = [member for member in members if member.is_going == "no" and member.number in wanted]
    going = [member for member in members if member.is_going == "no" and member.number not in wanted]
    return Plan(
        make=tuple(sorted(set(wanted) - taken)),
        drop=tuple(member.id for member in sorted(going, key=lambda each: -each.number)),
        stop=tuple(each.id for each in stay if each.number in off and each.power != "stopped"),
        power=tuple(each.id for each in stay if each.number not in off and each.power != desired.power),
        boot=_boots(stay, desired),
    )


def _boots(stay: Sequence[Member], desired: SetDesired) -> tuple[str, ...]:
    serial = desired.restart_serial
    late = sorted((each for each in stay if each.boot_serial < serial), key=lambda each: each.number)
    if desired.power != "running":
        return tuple(each.id for each in late)
    busy = sum(each.boot_serial == serial > 0 and not is_as_wished(each, desired) for each in stay)
    room = max(len(stay) * RESTART_PERCENT // 100, 1) - busy
    return tuple(each.id for each in late[: max(room, 0)])


def is_as_wished(member: Member, desired: SetDesired) -> bool:
    """Tell whether the member is what the set shall be, restarts included."""
    is_booted = member.booted >= desired.restart_serial or desired.power != "running"
    same = (member.power, member.boot_serial) == (desired.power, max(desired.restart_serial, member.boot_serial))
    return member.is_ready == "yes" and member.is_going == "no" and same and is_booted


def observe(wanted: Collection[int], members: Sequence[Member], desired: SetDesired) -> SetObserved:
    """Return what is said of the set."""
    powers: dict[str, int] = {}
    for member in members:
        word = member.seen or "starting"
        powers[word] = powers.get(word, 0) + 1
    others = [each for each in members if not is_as_wished(each, desired)]
    return SetObserved(
        wanted=len(wanted),
        members=len(members),
        ready=len(members) - len(others),
        powers=dict(sorted(powers.items())),
        results=tuple(_result(each) for each in sorted(others, key=lambda each: each.number)[:RESULTS_MAX]),
    )


def _result(member: Member) -> MemberResult:
    if member.is_ready == "yes":
        return MemberResult(number=member.number, vm=member.id, reason="Restarting", message="its restart is due")
    return MemberResult(number=member.number, vm=member.id, reason=member.reason, message=member.message)
