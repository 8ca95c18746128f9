"""From where an appliance is looked at, and what node and host say of it: pure decisions over untrusted words."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from pileus.compute.vm.types import VmObserved
from pileus.kernel.words import printable
from pileus.monitor.look.types import DiskFinding, DiskLook, LookObserved, words
from pileus.monitor.scan.types import FINDINGS_MAX, OVER, Finding, ScannedDisk, ScanObserved

COUNT_MAX = (1 << 63) - 1
"""More is no number that a program counted, nor one that a database takes."""


class Said(Struct, frozen=True):
    """The answer to the request ``scan``."""

    state: str
    message: str = ""
    findings: list[Finding] = []
    files: Annotated[int, Meta(ge=0, le=COUNT_MAX)] = 0
    processes: Annotated[int, Meta(ge=0, le=COUNT_MAX)] = 0


Side = Literal["inside", "outside"]

BOOT_S = 180.0
"""A node that was started so shortly ago is awaited, before its disks are looked at instead."""


class Appliance(Struct, frozen=True, kw_only=True):
    """What is known of an appliance that is to be scanned. ``up_s``: how long it runs, 0: not known.

    ``unseen``: why its disks cannot be looked at; empty: they can.
    """

    power: str
    is_node: bool = False
    answers: bool = False
    up_s: float = 0.0
    unseen: str = ""


class Begin(Struct, frozen=True, kw_only=True):
    """The sides that are begun, and why others are not."""

    wanted: Literal["auto", "inside", "outside", "both"]
    sides: tuple[Side, ...] = ()
    refused: str = ""


def begin(wanted: Literal["auto", "inside", "outside", "both"], seen: Appliance) -> Begin | None:
    """Return from where to look; None: not yet, because the appliance is only being made."""
    if seen.power in ("unknown", "absent"):
        return None
    runs = seen.power == "running"
    chosen: tuple[Side, ...] = ("inside", "outside") if wanted == "both" else ("outside",)
    if wanted == "inside" or (wanted == "auto" and runs and seen.answers):
        chosen = ("inside",)
    elif wanted == "auto" and runs and seen.is_node and seen.up_s < BOOT_S:
        return None
    refused = {
        "inside": _deaf(seen),
        "outside": seen.unseen,
    }
    return Begin(
        wanted=wanted,
        sides=tuple(side for side in chosen if not refused[side]),
        refused="; ".join(refused[side] for side in chosen if refused[side]),
    )


def _deaf(seen: Appliance) -> str:
    """Return why nothing can answer from inside."""
    if not seen.is_node:
        return "the VM is no node of a manager: it cannot be looked at from inside"
    return "" if seen.power == "running" else _silenced(seen.power)


def stopped(vm: VmObserved | None) -> str:
    """Return why nothing in a VM answers any more; empty: it may."""
    return _silenced(vm.power) if vm is not None and vm.power in ("paused", "stopped", "absent") else ""


def _silenced(power: str) -> str:
    return f"the VM is {power}: nothing in it answers"


def request(rules: str, paths: tuple[str, ...]) -> str:
    """Return the payload that asks a node for a scan."""
    return json.dumps({"do": "scan", "rules": rules, "paths": list(paths)})


def observed(answer: bytes) -> ScanObserved:
    """Return what the answer says; what cannot be read is unknown."""
    try:
        said = msgspec.json.decode(answer, type=Said)
    except (msgspec.ValidationError, msgspec.DecodeError, RecursionError):
        return ScanObserved(state="unknown", message="the appliance's answer cannot be read")
    findings = tuple(_printable(each) for each in said.findings[:FINDINGS_MAX])
    looked: dict[str, Any] = {"files": said.files, "processes": said.processes}
    if findings:
        return ScanObserved(state="found", message=_where(findings[0]), findings=findings, **looked)
    words = printable(said.message)[:500]
    if said.state == "clean":
        return ScanObserved(state="clean", message=words, **looked)
    return ScanObserved(state="unknown", message=words or "the appliance could not say", **looked)


def outside(look: LookObserved | None) -> ScanObserved:
    """Return what a host says of an appliance's disks."""
    if look is None:
        return unknown("what its host was to look at is gone")
    if look.problem is not None:
        return unknown(look.problem.message)
    if look.state != "over":
        return ScanObserved(state="running", message=words(look))
    disks = tuple(_scanned(disk) for disk in look.disks)
    told: dict[str, Any] = {"files": sum(disk.files for disk in look.disks), "disks": disks}
    findings = tuple(_finding(disk, one) for disk in look.disks for one in disk.findings)[:FINDINGS_MAX]
    if findings:
        return ScanObserved(state="found", message=_where(findings[0]), findings=findings, **told)
    failed = next((disk for disk in look.disks if disk.state != "clean"), None)
    if failed is not None or not disks:
        why = f"volume {failed.name}: {failed.message}" if failed is not None else "it has no disk"
        return ScanObserved(state="unknown", message=why[:500], **told)
    return ScanObserved(state="clean", **told)


def unknown(message: str) -> ScanObserved:
    """Return that nothing is known, and why."""
    return ScanObserved(state="unknown", message=message[:500])


def merged(parts: Sequence[ScanObserved]) -> ScanObserved:
    """Return what is known from all sides: found if one found something, clean if all say so, else unknown."""
    pending = next((part for part in parts if part.state not in OVER), None)
    if pending is not None:
        return pending
    first = next((part for state in ("found", "unknown", "clean") for part in parts if part.state == state), None)
    if first is None:
        return unknown("it was not looked at")
    return ScanObserved(
        state=first.state,
        message=first.message,
        findings=tuple(finding for part in parts for finding in part.findings)[:FINDINGS_MAX],
        files=sum(part.files for part in parts),
        processes=sum(part.processes for part in parts),
        disks=tuple(disk for part in parts for disk in part.disks),
    )


def _scanned(disk: DiskLook) -> ScannedDisk:
    return ScannedDisk(
        volume=disk.name,
        state=disk.state,
        message=disk.message[:500],
        findings=len(disk.findings) + disk.left_out,
        files=disk.files,
        scanned_bytes=disk.scanned_bytes,
    )


def _finding(disk: DiskLook, found: DiskFinding) -> Finding:
    return Finding(
        rule=printable(found.rule)[:128],
        where="file" if found.path else "disk",
        path=printable(found.path)[:500],
        volume=disk.name,
        partition=found.partition,
        offset=found.offset,
    )


def _where(finding: Finding) -> str:
    """Return where the first finding is, for people."""
    if finding.where == "disk":
        return f"{finding.rule} at byte {finding.offset} of volume {finding.volume}"
    if finding.volume:
        return f"{finding.rule} in {finding.path} of volume {finding.volume}"
    return f"{finding.rule} in {finding.path or f'process {finding.pid}'}"


def _printable(finding: Finding) -> Finding:
    return Finding(
        rule=printable(finding.rule)[:128],
        where=printable(finding.where)[:16],
        path=printable(finding.path)[:500],
        pid=finding.pid if 0 <= finding.pid <= COUNT_MAX else 0,
    )
