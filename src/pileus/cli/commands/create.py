"""``pileus create KIND NAME``: flags, help and checks come from the kind's type."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import click

from pileus.cli.client import Json
from pileus.cli.commands.get import labels_of
from pileus.cli.flags import DesiredCommand, check, desired_of, flags_of, given_flags
from pileus.cli.kindgroup import KindGroup, refuse_made_by_cloud
from pileus.cli.output import Output, output_option, render
from pileus.cli.session import Session, account_option, noun, root, wait_options
from pileus.cli.table import plain
from pileus.cli.waiting import READY, wait_for
from pileus.kernel.kind import Kind


def _command(kind: Kind) -> click.Command:
    refuse_made_by_cloud(kind)
    if kind.name == "storage.image":
        from pileus.cli.commands.upload import create_image, upload_options

        return _build(kind, create_image, upload_options)
    if kind.name == "fleet.request":
        from pileus.cli.commands.request import create_request, payload_option

        return _build(kind, create_request, payload_option)
    return _build(kind, create, lambda function: function)


def _build(kind: Kind, run: Callable[..., None], more: Callable[[Any], Any]) -> click.Command:
    # A default, be it None, makes an argument one that may be left out.
    named: dict[str, Any] = {"required": False, "default": ""} if kind.name_prefix else {}

    @output_option("")
    @click.option("--dry-run", is_flag=True, help="Ask the server what it would do, and change nothing.")
    @wait_options
    @click.option(
        "--label", "labels", multiple=True, callback=labels_of, metavar="K=V", help="A label; may be repeated."
    )
    @account_option
    @more
    @click.argument("name", **named)
    @click.pass_obj
    def callback(session: Session, /, **options: Any) -> None:
        run(session, kind, **options)

    params = list(reversed(getattr(callback, "__click_params__", [])))
    return DesiredCommand(
        kind.short, flags_of(kind), required=True, params=params, callback=callback, help=kind.summary,
        context_settings={"max_content_width": 110},
    )  # fmt: skip


command = KindGroup(
    "create",
    make=_command,
    kinds=lambda kind: kind.created_by == "user",
    help="Make a resource. The flags follow from the kind: `pileus create vm --help`.",
)


def create(session: Session, kind: Kind, **options: Any) -> None:
    """Make the resource and say so."""
    desired = desired_of(given_flags())
    check(kind, desired)
    finish(session, kind, post(session, kind, desired, options), options)


def post(session: Session, kind: Kind, desired: Json, options: Json) -> Json:
    """Return the server's answer to the creation."""
    body: Json = {"name": options["name"], "desired": desired}
    labels = dict(label.split("=", 1) for label in options["labels"])
    if labels:
        body["labels"] = labels
    account = session.account_of(kind, options["account"])
    if account:
        body["account"] = account
    query = [("dry_run", "1" if options["dry_run"] else "")]
    return session.client.send("POST", root(kind), query, body)


def finish(session: Session, kind: Kind, answer: Json, options: Json) -> None:
    """Wait when that was asked for, and print the resource or a sentence."""
    output: Output = options["output"]
    if options["dry_run"]:
        _print_decisions(kind, answer, output)
        return
    secret = answer.pop("secret", None)
    if options["wait"]:
        answer = wait_for(session, kind, [answer], READY, options["timeout"])[0]
    if secret is not None:
        answer["secret"] = secret
    say(kind, answer, "is ready" if options["wait"] else "created", output)
    if secret is not None and not output.form:
        sys.stdout.write(f"{secret}\n")
        sys.stderr.write("This secret is shown only now; keep it safe.\n")


def say(kind: Kind, resource: Json, verb: str, output: Output) -> None:
    """Print a sentence, or the resource in the chosen form."""
    if not output.form:
        # The secret of a key goes to standard output alone, so that it can be caught by a script.
        stream = sys.stderr if "secret" in resource else sys.stdout
        stream.write(f"{noun(kind, resource)} {verb}\n")
    elif output.for_people:
        from pileus.cli.table import Layout, needs_reason

        layout = Layout(kind, wide=output.wide, reasons=needs_reason([resource]))
        row = layout.cells(resource, {})
        layout.fit([row])
        sys.stdout.write(f"{layout.line(layout.headers)}\n{layout.line(row)}\n")
    else:
        sys.stdout.write(f"{render(output, resource, [resource])}\n")


def _print_decisions(kind: Kind, answer: Json, output: Output) -> None:
    if output.form and not output.for_people:
        sys.stdout.write(f"{render(output, answer, [answer['resource']])}\n")
        return
    sys.stdout.write(f"{noun(kind, answer['resource'])} would be created (nothing was changed)\n")
    rows = [[one["subject"], one["verdict"], one["reason"], one["message"]] for one in answer["decisions"]]
    if rows:
        sys.stdout.write(f"\n{plain(('SUBJECT', 'VERDICT', 'REASON', 'MESSAGE'), rows)}\n")
