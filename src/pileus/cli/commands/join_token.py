"""``pileus join-token HOST``: a one-time token with which the host's agent gets its certificate."""

from __future__ import annotations

import sys

import click

from pileus.cli.client import segment
from pileus.cli.completing import complete_names
from pileus.cli.output import Output, output_option, render
from pileus.cli.session import Session, root
from pileus.registry import KINDS


@click.command("join-token", no_args_is_help=True)
@click.argument("host", shell_complete=lambda ctx, param, text: complete_names(ctx, "infra.host", text))
@output_option("")
@click.pass_obj
def command(session: Session, /, host: str, output: Output) -> None:
    """Print a one-time token for the agent of a host, made before with `pileus create host`."""
    kind = KINDS["infra.host"]
    found = session.get(kind, host, "")
    answer = session.client.send("POST", f"{root(kind)}/{segment(found['id'])}/join-token", [], {})
    if output.form and not output.for_people:
        sys.stdout.write(f"{render(output, answer, [{**answer, 'name': host}])}\n")
        return
    sys.stdout.write(f"{answer['token']}\n")
    sys.stderr.write(f"It works once, until {answer['expires_at']}.\n")
