"""Which host a VM goes to: a filter with a reason for each refusal, then a score. Pure and deterministic."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

from msgspec import Struct


class Candidate(Struct, frozen=True, kw_only=True):
    """A host as placement sees it: what is free of its budgets, and what keeps VMs away from it (a reason, or empty)."""

    host: str
    name: str
    zone: str
    vcpus: int
    memory_mib: int
    disk_gib: int
    pool: str = ""
    refuses: str = ""
    roles: tuple[str, ...] = ("compute", "routing", "storage")
    public: Literal["yes", "no"] = "no"
    """Whether the host has an uplink to the public segment."""
    uefi: Literal["yes", "no"] = "no"
    """Whether VMs start by UEFI there."""


class Need(Struct, frozen=True, kw_only=True):
    """What a VM needs. ``only_host`` is set when a volume of it lies on a host already.

    ``role``: what the host must be for. ``avoid``: the host of another VM that shall not fail together with this one.
    """

    zone: str
    vcpus: int
    memory_mib: int
    disk_gib: int
    only_host: str = ""
    role: str = "compute"
    avoid: str = ""
    public: Literal["yes", "no"] = "no"
    """Whether only hosts with an uplink to the public segment will do."""
    uefi: Literal["yes", "no"] = "no"


class Refusal(Struct, frozen=True):
    """Why a host does not take the VM."""

    host: str
    reason: str
    message: str


def refusal(candidate: Candidate, need: Need) -> Refusal | None:
    """Return why ``candidate`` cannot take the VM; None when it can."""
    checks = (
        (candidate.zone != need.zone, "OtherZone", "is in another zone"),
        (bool(candidate.refuses), candidate.refuses, "takes no VMs now"),
        (need.role not in candidate.roles, f"Not{need.role.capitalize()}", f"is not for {need.role}"),
        (need.public == "yes" and candidate.public == "no", "NoPublic", "has no uplink to the public segment"),
        (need.uefi == "yes" and candidate.uefi == "no", "NoUefi", "has no UEFI firmware: the package ovmf"),
        (bool(need.only_host) and candidate.host != need.only_host, "VolumeElsewhere", "a volume is on another host"),
        (
            candidate.memory_mib < need.memory_mib,
            "NoMemory",
            f"{candidate.memory_mib} MiB free, {need.memory_mib} needed",
        ),
        (candidate.vcpus < need.vcpus, "NoVcpus", f"{candidate.vcpus} vCPUs free, {need.vcpus} needed"),
        (candidate.disk_gib < need.disk_gib, "NoDisk", f"{candidate.disk_gib} GiB free, {need.disk_gib} needed"),
    )
    for refused, reason, message in checks:
        if refused:
            return Refusal(candidate.name, reason, message)
    return None


def fits(candidate: Candidate, need: Need) -> bool:
    """Tell whether there is no refusal; the quick form for many hosts."""
    return (
        candidate.memory_mib >= need.memory_mib
        and candidate.vcpus >= need.vcpus
        and candidate.disk_gib >= need.disk_gib
        and candidate.zone == need.zone
        and not candidate.refuses
        and need.role in candidate.roles
        and (need.public == "no" or candidate.public == "yes")
        and (need.uefi == "no" or candidate.uefi == "yes")
        and (not need.only_host or candidate.host == need.only_host)
    )


def rank(candidates: Iterable[Candidate], need: Need, limit: int = 8) -> list[Candidate]:
    """Return the best hosts, best first: most memory free (spreads load and failures), then the lower id.

    A host to avoid comes last.
    """
    fitting = [candidate for candidate in candidates if fits(candidate, need)]
    if len(fitting) > limit * 4:
        threshold = sorted((candidate.memory_mib for candidate in fitting), reverse=True)[limit]  # one may be avoided
        fitting = [candidate for candidate in fitting if candidate.memory_mib >= threshold]
    return sorted(fitting, key=lambda each: (each.host == need.avoid, -each.memory_mib, each.host))[:limit]


def explain(candidates: Sequence[Candidate], need: Need) -> list[Refusal]:
    """Return every host's refusal."""
    return [found for candidate in candidates if (found := refusal(candidate, need)) is not None]


def summary(refusals: Sequence[Refusal]) -> str:
    """Return one sentence for the VM's owner about why no host takes it: reasons, but no host's name and no size."""
    if not refusals:
        return "there is no host yet"
    return f"no host takes it: {', '.join(reasons(refusals))}; ask for less, or wait until there is room"


def reasons(refusals: Sequence[Refusal]) -> list[str]:
    """Return the different reasons, sorted."""
    return sorted({each.reason for each in refusals})
