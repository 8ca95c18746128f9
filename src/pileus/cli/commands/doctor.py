"""``pileus doctor``: check this machine and say what to install."""

from __future__ import annotations

import asyncio
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from pileus.local.doctor import Finding

MARKS = {"ok": "ok     ", "warning": "warning", "error": "ERROR  "}


@click.command("doctor")
def command() -> None:
    """Check whether this machine can be a host, and say what to do where it cannot."""
    from pileus.local.doctor import Finding, examine

    findings = list(examine())
    if all(finding.level != "error" for finding in findings):
        click.echo("probing the accelerator (a few seconds) …", err=True)
        findings.append(asyncio.run(_accelerator()))
    else:
        findings.append(
            Finding(level="warning", subject="accelerator", message="not probed while programs are missing")
        )
    for finding in findings:
        click.echo(f"{MARKS[finding.level]} {finding.subject:20} {finding.message}")
    errors = sum(finding.level == "error" for finding in findings)
    click.echo("this machine can be a host" if not errors else f"{errors} things to mend before `pileus up`")
    sys.exit(1 if errors else 0)


async def _accelerator() -> Finding:
    from pileus.agent.run import test_guest
    from pileus.drivers.host.qemu.probe import choose
    from pileus.local.doctor import Finding

    with tempfile.TemporaryDirectory(prefix="pileus-doctor-") as folder:
        found = await choose(Path(folder), "auto", test_guest())
    if found.name == "kvm":
        return Finding(level="ok", subject="accelerator", message=f"KVM: {found.reason}")
    return Finding(level="warning", subject="accelerator", message=f"TCG, which is slower: {found.reason}")
