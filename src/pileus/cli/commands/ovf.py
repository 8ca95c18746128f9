"""``pileus ovf``: OVF and OVA packages; each verb is in a module of its own."""

from __future__ import annotations

import click

from pileus.cli.verbgroup import VerbGroup

VERBS = {
    "inspect": ("ovf_inspect", "Show what a package has: VMs, disks, networks, properties, signature."),
    "validate": ("ovf_validate", "Check all of a package: structure, digests, signature."),
    "convert": ("ovf_convert", "Take a package apart: its disks as qcow2 or raw, its VMs as JSON."),
    "import": ("ovf_import", "Make VMs of a package, or a fleet manager's package."),
    "export": ("ovf_export", "Make a package of stopped VMs."),
    "sign": ("ovf_sign", "Sign a package with a key and a certificate."),
}


@click.group("ovf", cls=VerbGroup, verbs=VERBS)
def command() -> None:
    """Look at, check, convert, sign, import and export OVF packages and OVA archives."""
