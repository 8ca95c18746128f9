"""What a scanner's report says of a disk: pure decisions."""

from __future__ import annotations

from pileus.monitor.look.types import DISK_FINDINGS_MAX, DiskFinding, DiskLook
from pileus.scan.report import Report


def disk_look(volume: str, name: str, report: Report) -> DiskLook:
    """Return what is told of a disk: findings in files first, which say more to people."""
    found = sorted(report.findings, key=lambda one: one.where != "file")
    findings = tuple(
        DiskFinding(rule=one.rule, path=one.path, partition=one.partition, offset=one.offset)
        for one in found[:DISK_FINDINGS_MAX]
    )
    return DiskLook(
        volume=volume,
        name=name,
        state=report.state,
        message=report.message,
        findings=findings,
        left_out=report.left_out + len(found) - len(findings),
        files=report.files,
        scanned_bytes=report.scanned_bytes,
    )


def unread(volume: str, name: str, message: str) -> DiskLook:
    """Return what is told of a disk that could not be read."""
    return DiskLook(volume=volume, name=name, state="unknown", message=message)
