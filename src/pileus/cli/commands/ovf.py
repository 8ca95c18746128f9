"""``pileus ovf``: OVF and OVA packages; each verb is in a module of its own."""

from __future__ import annotations

import importlib

import click

VERBS = {
    "inspect": ("ovf_inspect", "Show what a package has: VMs, disks, networks, properties, signature."),
    "validate": ("ovf_validate", "Check all of a package: structure, digests, signature."),
    "convert": ("ovf_convert", "Take a package apart: its disks as qcow2 or raw, its VMs as JSON."),
    "import": ("ovf_import", "Make VMs of a package, or a fleet manager's package."),
    "export": ("ovf_export", "Make a package of stopped VMs."),
    "sign": ("ovf_sign", "Sign a package with a key and a certificate."),
}
"""Verb → its module in pileus.cli.commands, which has ``command``, and its summary."""


class Verbs(click.Group):
    """The verbs, each imported when it is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return all verbs."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a verb's command; None when there is none."""
        if cmd_name not in VERBS:
            return None
        command = importlib.import_module(f"pileus.cli.commands.{VERBS[cmd_name][0]}").command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the verbs without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(word, place[1]) for word, place in VERBS.items()])


@click.group("ovf", cls=Verbs)
def command() -> None:
    """Look at, check, convert, sign, import and export OVF packages and OVA archives."""
