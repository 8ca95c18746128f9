"""What a node's answer says of a scan: pure decisions over untrusted words."""

from __future__ import annotations

import json
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from pileus.kernel.words import printable
from pileus.monitor.scan.types import FINDINGS_MAX, Finding, ScanObserved

COUNT_MAX = (1 << 63) - 1
"""More is no number that a program counted, nor one that a database takes."""


class Said(Struct, frozen=True):
    """The answer to the request ``scan``."""

    state: str
    message: str = ""
    findings: list[Finding] = []
    files: Annotated[int, Meta(ge=0, le=COUNT_MAX)] = 0
    processes: Annotated[int, Meta(ge=0, le=COUNT_MAX)] = 0


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
        first = findings[0]
        place = first.path or f"process {first.pid}"
        return ScanObserved(state="found", message=f"{first.rule} in {place}", findings=findings, **looked)
    words = printable(said.message)[:500]
    if said.state == "clean":
        return ScanObserved(state="clean", message=words, **looked)
    return ScanObserved(state="unknown", message=words or "the appliance could not say", **looked)


def _printable(finding: Finding) -> Finding:
    return Finding(
        rule=printable(finding.rule)[:128],
        where=printable(finding.where)[:16],
        path=printable(finding.path)[:500],
        pid=finding.pid if 0 <= finding.pid <= COUNT_MAX else 0,
    )
