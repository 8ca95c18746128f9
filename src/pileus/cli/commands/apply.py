"""``pileus apply -f``: makes what files say, and changes what is there already."""

from __future__ import annotations

import sys
from typing import Any

import click
import msgspec

from pileus.cli.client import Json, segment
from pileus.cli.documents import Document, read
from pileus.cli.failure import NOT_FOUND, Failure, usage
from pileus.cli.kindgroup import refuse_made_by_cloud
from pileus.cli.session import Session, root, wait_options
from pileus.cli.waiting import READY, wait_for
from pileus.kernel.kind import Kind


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
    query = [("account", account)]
    path = f"{root(kind)}/{segment(document.name)}"
    wish: Json = {"labels": document.labels, "desired": document.desired}
    there = _there(session, path, account)
    if there is None:
        body = {"name": document.name, **wish, **({"account": account} if account else {})}
        if options["dry_run"]:
            return "would be created", session.client.send("POST", root(kind), [("dry_run", "1")], body)["resource"]
        return "created", session.client.send("POST", root(kind), [], body)
    wished = complete(kind, document.desired)
    if wished == there["desired"] and document.labels == there["labels"]:
        return "unchanged", there
    if options["dry_run"]:
        return "would be changed", there
    after = session.client.send("PUT", path, query, wish)
    # Not the wish is compared: what is private of it is in no answer.
    same = after["generation"] == there["generation"] and after["labels"] == there["labels"]
    return "unchanged" if same else "changed", after


def complete(kind: Kind, desired: Json) -> Json:
    """Return the wish with its defaults, as the server keeps it; as it is when the server will refuse it."""
    try:
        made: Json = msgspec.json.decode(msgspec.json.encode(msgspec.convert(desired, kind.desired)))
    except msgspec.ValidationError:
        return desired
    return made


def _there(session: Session, path: str, account: str) -> Json | None:
    """Return the resource of that account; one of the cloud's own with the same name is another."""
    try:
        found = session.client.get(path, [("account", account)])
    except Failure as failure:
        if failure.exit_code != NOT_FOUND:
            raise
        return None
    return found if not account or found["account"] == account or found["account_id"] == account else None
