"""The page of the command line, from its own help."""

from __future__ import annotations

from collections.abc import Iterator

import click

from pileus.cli.main import COMMANDS, cli
from tools.pages import GENERATED

WIDTH = 100


def cli_page() -> str:
    """Return the page."""
    return GENERATED + "\n".join(_page()) + "\n"


def _page() -> Iterator[str]:
    root = _context(cli, "pileus", None)
    yield "# The command `pileus`"
    yield ""
    yield from _block(cli.get_help(root))
    for title, words in COMMANDS.items():
        yield f"## {title}"
        yield ""
        for word in words:
            command = cli.get_command(root, word)
            if command is not None:
                yield from _command(command, word, root)


def _command(command: click.Command, word: str, parent: click.Context) -> Iterator[str]:
    context = _context(command, word, parent)
    yield f"### `{context.command_path}`"
    yield ""
    yield from _block(command.get_help(context))
    # The commands of kinds follow from the types: their flags are on the pages of the kinds.
    if type(command) is click.Group:
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            if below is not None:
                yield from _command(below, name, context)


def _block(text: str) -> list[str]:
    return ["```text", *[line.rstrip() for line in text.splitlines()], "```", ""]


def _context(command: click.Command, word: str, parent: click.Context | None) -> click.Context:
    return click.Context(command, info_name=word, parent=parent, terminal_width=WIDTH, max_content_width=WIDTH)
