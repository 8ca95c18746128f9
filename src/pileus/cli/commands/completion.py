"""``pileus completion``: the script that lets a shell complete verbs, kinds, flags and names."""

from __future__ import annotations

import sys

import click
from click.shell_completion import get_completion_class

_HOW = {
    "bash": 'put  eval "$(pileus completion bash)"  into ~/.bashrc',
    "zsh": 'put  eval "$(pileus completion zsh)"  into ~/.zshrc, after compinit',
    "fish": "pileus completion fish > ~/.config/fish/completions/pileus.fish",
}


@click.command("completion", no_args_is_help=True)
@click.argument("shell", type=click.Choice(sorted(_HOW)))
@click.pass_context
def command(ctx: click.Context, shell: str) -> None:
    """Print the completion script of your shell; names come from the server."""
    maker = get_completion_class(shell)
    assert maker is not None
    sys.stdout.write(maker(ctx.find_root().command, {}, "pileus", "_PILEUS_COMPLETE").source())
    if sys.stdout.isatty():
        sys.stderr.write(f"\nTo use it: {_HOW[shell]}\n")
