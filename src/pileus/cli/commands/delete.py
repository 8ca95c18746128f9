"""``pileus delete``: asks for deletions, and waits until nothing is left when told so."""

from __future__ import annotations

import sys
from typing import Any

import click

from pileus.cli.client import segment
from pileus.cli.session import (
    Session,
    account_option,
    kind_argument,
    names_argument,
    noun,
    root,
    wait_options,
)
from pileus.cli.waiting import DELETED, wait_for
from pileus.kernel.kind import Kind


@click.command("delete", no_args_is_help=True)
@kind_argument
@names_argument(required=True)
@account_option
@wait_options
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@click.pass_obj
def command(session: Session, /, kind: Kind, names: tuple[str, ...], account: str, **options: Any) -> None:
    """Delete resources. What belongs to them goes too: with an account its VMs, with a VM its root volume.

    On a terminal it asks first; `-y` answers.
    """
    found = [session.get(kind, name, account) for name in names]
    if not options["yes"] and sys.stdin.isatty() and sys.stderr.isatty():
        for resource in found:
            click.confirm(f"Delete {noun(kind, resource)}?", abort=True, err=True)
    deleting = []
    for resource in found:
        query = [("account", resource["account"])]
        deleting.append(session.client.delete(f"{root(kind)}/{segment(resource['id'])}", query) or resource)
        if not options["wait"]:
            sys.stdout.write(f"{noun(kind, resource)} is being deleted\n")
    if options["wait"]:
        wait_for(session, kind, deleting, DELETED, options["timeout"])
        for resource in found:
            sys.stdout.write(f"{noun(kind, resource)} is gone\n")
