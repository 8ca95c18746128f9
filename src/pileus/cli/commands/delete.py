"""``pileus delete``: asks for deletions, and waits until nothing is left when told so."""

from __future__ import annotations

import sys
from typing import Any

import click

from pileus.cli.client import Json, segment
from pileus.cli.failure import usage
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

NEVER_UNASKED = ("tenancy.account", "tenancy.vdc")
"""With these goes what cannot be listed on one screen: a script says -y for them."""


@click.command("delete", no_args_is_help=True)
@kind_argument
@names_argument(required=True)
@account_option
@wait_options
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@click.pass_obj
def command(session: Session, /, kind: Kind, names: tuple[str, ...], account: str, **options: Any) -> None:
    """Delete resources. What belongs to them goes too: with an account its VMs, with a VM its root volume.

    On a terminal it asks first; `-y` answers. Elsewhere accounts and vdcs are only deleted with `-y`.
    """
    ask = not options["yes"] and sys.stdin.isatty() and sys.stderr.isatty()
    if kind.name in NEVER_UNASKED and not options["yes"] and not ask:
        raise usage(f"not a terminal: say -y to delete {kind.short} {' '.join(names)}")
    found = [session.get(kind, name, account) for name in names]
    for resource in found if ask else ():
        click.confirm(question(kind, resource), abort=True, err=True)
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


def question(kind: Kind, resource: Json) -> str:
    """Return what a person is asked before the resource is deleted."""
    more = "All its VMs, volumes and networks go with it. " if kind.name == "tenancy.account" else ""
    return f"{more}Delete {noun(kind, resource)}?"
