"""A command with verbs of its own, each in a module that is imported when the verb is used."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import click


class VerbGroup(click.Group):
    """``verbs``: verb → its module in pileus.cli.commands, which has ``command``, and its summary."""

    def __init__(self, *args: Any, verbs: Mapping[str, tuple[str, str]], **settings: Any) -> None:
        super().__init__(*args, **settings)
        self._verbs = verbs

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return all verbs."""
        return list(self._verbs)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a verb's command; None when there is none."""
        if cmd_name not in self._verbs:
            return None
        command = importlib.import_module(f"pileus.cli.commands.{self._verbs[cmd_name][0]}").command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the verbs without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(word, place[1]) for word, place in self._verbs.items()])
