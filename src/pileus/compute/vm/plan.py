"""What a VM becomes: its size, its parts, and on its host the next step from any state to any wish. Pure."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping, Sequence
from typing import Literal

from msgspec import Struct
from msgspec.structs import replace

from pileus.compute.vm.types import Power, VmAssigned, VmBar, VmDesired, VmNic, VmObserved, is_of_cloud
from pileus.kernel.errors import Invalid
from pileus.kernel.kind import Resource
from pileus.network.network.types import NetworkObserved
from pileus.network.port.types import PortDesired

BACKOFF_FIRST_S, BACKOFF_MAX_S = 10.0, 300.0
"""Between restarts of a VM that keeps failing; the first restart is at once (reliability: monitoring defaults)."""
PRESS_AGAIN_S = 5.0
"""The power button is pressed this often: a guest in the middle of its boot misses the first time."""
STABLE_S = 60.0
"""A VM that ran this long is no longer failing."""
DISK_RETRY_S = 5.0
"""Between two tries of a write that failed; a VM that ran this long after a try has a disk again."""

_SSH_KEY = re.compile(r"((?:ssh|ecdsa|sk)-[a-z0-9@.-]{1,60}) ([A-Za-z0-9+/]{16,16384}={0,3})(?: [^\r\n]*)?")
"""What a seed can say (drivers.host.guest.seed), so that no VM is taken that could never start."""


def refuse_bad_keys(texts: Sequence[str]) -> None:
    """Raises: Invalid for an SSH key that is no public key line. Source: RFC 4253 6.6, the key begins with its type."""
    for position, text in enumerate(texts):
        match = _SSH_KEY.fullmatch(text.strip())
        if match is None or not _begins_with_type(*match.groups()):
            field = f"desired.ssh_keys[{position}]"
            raise Invalid(f"{field} is not a public key line such as 'ssh-ed25519 AAAA… name'", field=field)


def _begins_with_type(type: str, key: str) -> bool:
    try:
        blob = base64.b64decode(key, validate=True)
    except binascii.Error:
        return False
    return blob.startswith(len(type).to_bytes(4, "big") + type.encode())


def hold_of(vm: Resource, networks: Sequence[Resource]) -> str:
    """Return why the VM may not start yet: a network that its router does not serve; an appliance waits for nobody."""
    if is_of_cloud(vm):
        return ""
    for network in networks:
        observed: NetworkObserved | None = network.observed
        if network.assigned.router != "none" and (observed is None or observed.state != "served"):
            return f"{network} is not served yet: {observed.message if observed else 'its router is being made'}"
    return ""


def is_off(vm: Resource) -> bool:
    """Tell whether the VM shall not run and does not: its host says so, or it has none yet."""
    observed: VmObserved | None = vm.observed
    return vm.desired.power == "stopped" and (
        not vm.host or (observed is not None and observed.power in ("stopped", "absent"))
    )


def is_resting(vm: Resource) -> bool:
    """Tell whether the VM is off and stays so until somebody wishes otherwise; its host knows of the newest wish."""
    observed: VmObserved | None = vm.observed
    if not vm.host:
        return bool(vm.desired.power == "stopped")
    return observed is not None and observed.rests == "yes" and vm.observed_generation >= vm.generation


def forbidden(vm: Resource) -> Literal["", "start", "run"]:
    """Return what the VM may not: by its bar, and no start for a wish that nobody has looked at where that is needed."""
    assigned: VmAssigned = vm.assigned
    if assigned.bar is not None:
        return assigned.bar.forbids
    return "start" if 0 <= assigned.cleared_generation < vm.generation else ""


def power_of(vm: Resource) -> Power:
    """Return what the VM shall be now: what is wished, unless that is forbidden."""
    desired: VmDesired = vm.desired
    bar: VmBar | None = vm.assigned.bar
    return "stopped" if bar is not None and bar.forbids == "run" else desired.power


NicKey = tuple[str, str, str, tuple[str, ...]]
"""What a NIC is by: the network's id, its attachment, and the addresses asked for. Two NICs may be alike."""


def nic_key(network: str, nic: VmNic | PortDesired) -> NicKey:
    """Return what a NIC, or the port made for it, is by."""
    return (network, nic.attachment, nic.address, nic.extra_addresses)


class Made(Struct, frozen=True):
    """What NIC a port was made for, and the address that it got; empty before."""

    key: NicKey
    address: str = ""


def matched(wished: Sequence[NicKey], ports: Mapping[str, Made]) -> list[str]:
    """Return for each wished NIC the port that was made for one like it, in the order of both; empty for none.

    A NIC that asks for the address that a port got, without anybody having asked, is that port's too.
    """
    free = dict(ports)
    found = [""] * len(wished)
    for is_match in (_is_made_for, _got_what_is_wished):
        for position, key in enumerate(wished):
            if not found[position]:
                found[position] = next((id for id, made in free.items() if is_match(key, made)), "")
                free.pop(found[position], None)
    return found


def _is_made_for(key: NicKey, made: Made) -> bool:
    return made.key == key


def _got_what_is_wished(key: NicKey, made: Made) -> bool:
    network, attachment, address, extra = key
    return bool(address) and made.address == address and made.key == (network, attachment, "", extra)


def isolation_noted(vm: Resource, who: str) -> VmAssigned:
    """Return the decision of a VM whose wish ``isolated`` was just changed by ``who`` (such as ``monitor watch``)."""
    decided: VmAssigned = vm.assigned
    desired: VmDesired = vm.desired
    return replace(decided, isolated_by=who if desired.isolated == "yes" else "")


def is_switched_only(before: VmDesired, after: VmDesired) -> bool:
    """Tell whether nothing else changes but ``isolated``: that costs nothing, and is never refused for other reasons."""
    return replace(after, isolated=before.isolated) == before


class Wish(Struct, frozen=True, kw_only=True):
    """What the host shall make true. ``missing`` says what a start still waits for; empty: nothing."""

    deleting: bool
    power: Power
    boot_serial: int
    restart: str
    shutdown_timeout_s: int
    volumes: tuple[str, ...]
    ports: tuple[str, ...]
    missing: str = ""
    forbids: Literal["", "start", "run"] = ""
    """What may not be, whatever is wished."""


class Fact(Struct, frozen=True, kw_only=True):
    """What the host has, and what this agent or an earlier one noted about it (kept on disk).

    ``exit_reason`` is empty unless the last process ended; ``failures`` counts ends in a row that nobody asked for.
    """

    state: str
    volumes: tuple[str, ...] = ()
    ports: tuple[str, ...] = ()
    exit_reason: str = ""
    exit_at: float = 0.0
    boot_serial: int = 0
    failures: int = 0
    shutdown_asked_at: float | None = None
    shutdown_pressed_at: float | None = None
    paused_by: str = ""
    disk_tried_at: float = 0.0
    slack: tuple[str, ...] = ()
    """Disks of the running machine whose limits are other than wished."""
    process: Literal["answers", "hung"] = "answers"
    """``hung``: its QEMU is there and does not answer; ``state`` is as last known."""
    noted: bool = False
    """Whether something of an absent machine (a seed, a note) may be left."""


class Step(Struct, frozen=True, kw_only=True):
    """One thing to do; ``target`` is the volume or port it is about. ``after_s`` is set for ``wait`` only."""

    verb: str
    target: str = ""
    after_s: float = 0.0


def plan(wish: Wish, fact: Fact, now: float) -> Step | None:
    """Return the next step from ``fact`` to ``wish``; None when nothing is to be done until something changes."""
    if wish.deleting:
        return None if fact.state == "absent" and not fact.noted else Step(verb="remove")
    if wish.power == "stopped" or wish.forbids == "run":
        return _plan_stop(wish, fact, now)
    if fact.state in ("absent", "stopped"):
        return _plan_start(wish, fact, now)
    if fact.process == "hung":
        return _plan_hung(wish, fact)
    if wish.power == "paused":
        return Step(verb="pause") if fact.state == "running" else None
    if fact.state == "paused":
        return _plan_resume(fact, now)
    if wish.boot_serial > fact.boot_serial:
        return Step(verb="reset")
    return _plan_devices(wish, fact) or _plan_limits(fact) or _plan_calm(fact, now)


def _plan_hung(wish: Wish, fact: Fact) -> Step | None:
    """Nothing can be asked of it. A restart ends the process, whose next one then starts; else it may come to itself."""
    is_asked = wish.power == "running" and wish.boot_serial > fact.boot_serial
    return Step(verb="power_off") if is_asked else None


def _plan_resume(fact: Fact, now: float) -> Step:
    left = fact.disk_tried_at + DISK_RETRY_S - now if fact.paused_by == "disk-error" else 0.0
    return Step(verb="resume") if left <= 0 else Step(verb="wait", after_s=left)


def _plan_calm(fact: Fact, now: float) -> Step | None:
    """Look again when a VM whose disk failed has run long enough to be well."""
    left = fact.disk_tried_at + DISK_RETRY_S - now
    return Step(verb="wait", after_s=left) if left > 0 else None


def _plan_stop(wish: Wish, fact: Fact, now: float) -> Step | None:
    if fact.state in ("absent", "stopped"):
        return None
    if fact.state == "paused" or wish.shutdown_timeout_s == 0:
        return Step(verb="power_off")
    if fact.shutdown_asked_at is None:
        return Step(verb="shutdown")
    left = fact.shutdown_asked_at + wish.shutdown_timeout_s - now
    if left <= 0:
        return Step(verb="power_off")
    if fact.process == "hung":
        return Step(verb="wait", after_s=left)
    again = (fact.shutdown_pressed_at or fact.shutdown_asked_at) + PRESS_AGAIN_S - now
    return Step(verb="shutdown") if again <= 0 else Step(verb="wait", after_s=min(left, again))


def _plan_start(wish: Wish, fact: Fact, now: float) -> Step | None:
    if wish.missing or wish.forbids:
        return None
    if _is_asked(wish, fact):
        return Step(verb="start")
    if fact.exit_reason == "guest-shutdown":
        return Step(verb="start") if wish.restart == "always" else None
    if wish.restart == "never":
        return None
    left = fact.exit_at + backoff_s(fact.failures) - now
    return Step(verb="start") if left <= 0 else Step(verb="wait", after_s=left)


def _is_asked(wish: Wish, fact: Fact) -> bool:
    """Tell whether somebody wishes a start of a VM that is off, and not only its restart."""
    return wish.boot_serial > fact.boot_serial or fact.exit_reason in ("", "powered-off")


def stays_off(wish: Wish, fact: Fact) -> bool:
    """Tell whether the VM is off and nothing starts it but another wish."""
    if fact.state not in ("absent", "stopped"):
        return False
    if wish.power == "stopped":
        return True
    is_ended = wish.restart == "never" or (wish.restart == "on-failure" and fact.exit_reason == "guest-shutdown")
    return is_ended and not _is_asked(wish, fact)


def backoff_s(failures: int) -> float:
    """Return the seconds between the end of a VM and its restart: none for the first, then 10 s doubling to 5 min."""
    return 0.0 if failures <= 1 else min(BACKOFF_FIRST_S * 2.0 ** min(failures - 2, 16), BACKOFF_MAX_S)


def _plan_limits(fact: Fact) -> Step | None:
    return Step(verb="throttle", target=fact.slack[0]) if fact.slack else None


def _plan_devices(wish: Wish, fact: Fact) -> Step | None:
    if wish.missing:
        return None
    for verb, have, want in (("volume", fact.volumes, wish.volumes), ("port", fact.ports, wish.ports)):
        for id in have:
            if id not in want:
                return Step(verb=f"detach_{verb}", target=id)
        for id in want:
            if id not in have:
                return Step(verb=f"attach_{verb}", target=id)
    return None
