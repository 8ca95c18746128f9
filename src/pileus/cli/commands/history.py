"""``pileus history``: a monitor's history in a file of the user's; each verb is in a module of its own."""

from __future__ import annotations

import click

from pileus.cli.verbgroup import VerbGroup

VERBS = {"pull": ("history_pull", "Fetch what a monitor saw and did into an SQLite file.")}


@click.group("history", cls=VerbGroup, verbs=VERBS)
def command() -> None:
    """Keep a monitor's history in a file of yours."""
