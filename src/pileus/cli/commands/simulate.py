"""``pileus simulate``: what would have been; each verb is in a module of its own."""

from __future__ import annotations

import click

from pileus.cli.verbgroup import VerbGroup

VERBS = {"policy": ("simulate_policy", "Say what policies would have done over the past that a history tells of.")}


@click.group("simulate", cls=VerbGroup, verbs=VERBS)
def command() -> None:
    """Say what would have been, and do nothing."""
