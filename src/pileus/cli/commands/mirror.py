"""``pileus mirror``: a tenant looks at its own packets; each verb is in a module of its own."""

from __future__ import annotations

import click

from pileus.cli.verbgroup import VerbGroup

VERBS = {
    "watch": ("mirror_watch", "Show a VM's packets live, or write them as pcapng."),
    "flows": ("mirror_flows", "Show who talked to whom, and how much."),
}


@click.group("mirror", cls=VerbGroup, verbs=VERBS)
def command() -> None:
    """Look at the packets of your VMs: live, as pcapng for Wireshark, or as flows."""
