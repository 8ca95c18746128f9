"""``pileus mirror``: a tenant looks at its own packets; each verb is in a module of its own."""

from __future__ import annotations

import importlib

import click

VERBS = {
    "watch": ("mirror_watch", "Show a VM's packets live, or write them as pcapng."),
    "flows": ("mirror_flows", "Show who talked to whom, and how much."),
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


@click.group("mirror", cls=Verbs)
def command() -> None:
    """Look at the packets of your VMs: live, as pcapng for Wireshark, or as flows."""
