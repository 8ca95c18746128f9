"""A verb whose next word is a kind and whose flags depend on it: ``create vm``, ``patch network``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from pileus.cli.session import find_kind
from pileus.kernel.kind import Kind
from pileus.registry import KINDS


class KindGroup(click.Group):
    """Makes the command of a kind when it is used. ``kinds`` says which kinds are offered."""

    def __init__(
        self, name: str, *, make: Callable[[Kind], click.Command], kinds: Callable[[Kind], bool], **attributes: Any
    ) -> None:
        super().__init__(name, subcommand_metavar="KIND NAME [FLAGS]...", **attributes)
        self._make = make
        self._kinds = kinds

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the kinds by their short words."""
        return [kind.short for kind in KINDS if self._kinds(kind)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return the command for a kind's word. Raises: UsageError with the closest kinds."""
        return None if cmd_name.startswith("-") else self._make(find_kind(cmd_name, ctx))

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the kinds with their summaries."""
        with formatter.section("Kinds"):
            formatter.write_dl([(kind.short, kind.summary) for kind in KINDS if self._kinds(kind)])


def refuse_made_by_cloud(kind: Kind) -> None:
    """Raises: UsageError for a kind that only the cloud itself makes."""
    if kind.created_by == "kernel":
        raise click.UsageError(
            f"{kind.plural} are made by the cloud itself, not by hand; see `pileus explain {kind.short}`"
        )
