"""``pileus apply -f``: makes what files say, and changes what is there already."""

from __future__ import annotations

import sys
from typing import Any

import click

from pileus.cli.client import Json, segment
from pileus.cli.documents import Document, read
from pileus.cli.failure import NOT_FOUND, Failure, usage
from pileus.cli.kindgroup import refuse_made_by_cloud
from pileus.cli.session import Session, root, wait_options
from pileus.cli.waiting import READY, wait_for


@click.command("apply", no_args_is_help=True)
@click.option("-f", "--file", "files", multiple=True, required=True, metavar="FILE", help="YAML or JSON; - for stdin.")
@click.option("--account", default="", metavar="ACCOUNT", help="For documents that name no account.")
@click.option("--dry-run", is_flag=True, help="Say what would be done, and change nothing.")
@wait_options
@click.pass_obj
def command(session: Session, /, files: tuple[str, ...], **options: Any) -> None:
    """Make or change resources as files say: documents of kind, name, account, labels, desired.

    Everything in `desired` is replaced: a field that is left out has its default. Prints created, changed or
    unchanged for each. All documents are read before the first one is applied.
    """
    documents = read(files)
    if not documents:
        raise usage("there is no document in these files")
    for document in documents:
        refuse_made_by_cloud(document.kind)
    applied = []
    for document in documents:
        verb, resource = _apply(session, document, options)
        applied.append((document, resource))
        sys.stdout.write(f"{document.kind.short} {document.name} {verb}\n")
        sys.stdout.flush()
    if options["wait"] and not options["dry_run"]:
        for document, resource in applied:
            wait_for(session, document.kind, [resource], READY, options["timeout"])


def _apply(session: Session, document: Document, options: Json) -> tuple[str, Json]:
    try:
        return _apply_one(session, document, options)
    except Failure as failure:
        failure.message = f"{document.where}: {document.kind.short} {document.name}: {failure.message}"
        raise


def _apply_one(session: Session, document: Document, options: Json) -> tuple[str, Json]:
    kind = document.kind
    account = session.account_of(kind, document.account or ("" if kind.scope == "cluster" else options["account"]))
    query = [("account", account), ("dry_run", "1" if options["dry_run"] else "")]
    path = f"{root(kind)}/{segment(document.name)}"
    wish: Json = {"labels": document.labels, "desired": document.desired}
    there = _there(session, path, account)
    if there is None:
        body = {"name": document.name, **wish, **({"account": account} if account else {})}
        answer = session.client.send("POST", root(kind), query, body)
        return "created" if not options["dry_run"] else "would be created", answer.get("resource", answer)
    after = session.client.send("PUT", path, query, wish)
    after = after.get("resource", after)
    same = after["desired"] == there["desired"] and after["labels"] == there["labels"]
    if same:
        return "unchanged", after
    return "changed" if not options["dry_run"] else "would be changed", after


def _there(session: Session, path: str, account: str) -> Json | None:
    """Return the resource of that account; one of the cloud's own with the same name is another."""
    try:
        found = session.client.get(path, [("account", account)])
    except Failure as failure:
        if failure.exit_code != NOT_FOUND:
            raise
        return None
    return found if not account or found["account"] == account or found["account_id"] == account else None
