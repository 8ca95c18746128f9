"""``pileus whoami``: who the key belongs to and what it allows."""

from __future__ import annotations

import sys

import click

from pileus.cli.client import Json
from pileus.cli.output import Output, output_option, render
from pileus.cli.session import Session, caller


@click.command("whoami")
@output_option("")
@click.pass_obj
def command(session: Session, /, output: Output) -> None:
    """Say who you are, at which server, and what you may do."""
    me = session.client.get("/v1/whoami")
    if output.form and not output.for_people:
        sys.stdout.write(f"{render(output, me, [{**me, 'name': me['user'] or me.get('manager', '')}])}\n")
        return
    sys.stdout.write(f"{_whose(me)}, at {session.client.server}\n")
    for rule in me["rules"]:
        sys.stdout.write(f"  may {', '.join(rule['verbs'])}: {', '.join(rule['kinds'])}\n")


def _whose(me: Json) -> str:
    account = f"account {me['account']}"
    if me.get("manager"):
        count = len(me["consents"])
        consents = f"{count} account consents" if count == 1 else f"{count} accounts consent"
        return f"{caller(me)} of {account if me['account'] else 'the cloud'}, to which {consents}"
    place = account if me["account"] else "no account: an operator of the cloud"
    return f"user {me['user']}, role {me['role']}, {place}"
