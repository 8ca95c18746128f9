"""``pileus whoami``: who the key belongs to and what it allows."""

from __future__ import annotations

import sys

import click

from pileus.cli.output import Output, output_option, render
from pileus.cli.session import Session


@click.command("whoami")
@output_option("")
@click.pass_obj
def command(session: Session, /, output: Output) -> None:
    """Say who you are, at which server, and what you may do."""
    me = session.client.get("/v1/whoami")
    if output.form and not output.for_people:
        sys.stdout.write(f"{render(output, me, [{**me, 'name': me['user']}])}\n")
        return
    account = f"account {me['account']}" if me["account"] else "no account: an operator of the cloud"
    sys.stdout.write(f"user {me['user']}, role {me['role']}, {account}, at {session.client.server}\n")
    for rule in me["rules"]:
        sys.stdout.write(f"  may {', '.join(rule['verbs'])}: {', '.join(rule['kinds'])}\n")
