"""``pileus patch KIND NAME --flag value``: changes the fields that are named and leaves the others."""

from __future__ import annotations

from typing import Any

import click

from pileus.cli.client import Json, segment
from pileus.cli.commands.create import say
from pileus.cli.failure import suggestion, usage
from pileus.cli.fields import fields_of
from pileus.cli.flags import DesiredCommand, desired_of, flags_of, given_flags
from pileus.cli.kindgroup import KindGroup, refuse_made_by_cloud
from pileus.cli.labels import check_label
from pileus.cli.output import Output, output_option
from pileus.cli.session import Session, a, account_option, name_argument, root, wait_options
from pileus.cli.waiting import READY, wait_for
from pileus.kernel.kind import Kind


def _command(kind: Kind) -> click.Command:
    refuse_made_by_cloud(kind)

    @output_option("")
    @wait_options
    @click.option("--label", "labels", multiple=True, metavar="K=V", help="Set a label; K- takes it away.")
    @click.option("--reset", multiple=True, metavar="FIELD", help="Give a field its default again; may be repeated.")
    @account_option
    @name_argument
    @click.pass_obj
    def callback(session: Session, /, **options: Any) -> None:
        patch(session, kind, **options)

    params = list(reversed(getattr(callback, "__click_params__", [])))
    flags = flags_of(kind)
    fixed = tuple(flag for flag in flags if (flag.group or flag.path)[0] in kind.immutable)
    changeable = tuple(flag for flag in flags if flag not in fixed)
    return DesiredCommand(
        kind.short, changeable, required=False, fixed=fixed, params=params, callback=callback,
        help=f"Change {a(kind.short)}: only what is named changes, a list is replaced as a whole.",
        context_settings={"max_content_width": 110},
    )  # fmt: skip


command = KindGroup(
    "patch",
    make=_command,
    kinds=lambda kind: kind.created_by == "user",
    help="Change some fields of a resource. The flags are those of create: `pileus patch vm --help`.",
)


def patch(session: Session, kind: Kind, **options: Any) -> None:
    """Send the merge patch (RFC 7396) and say what came of it."""
    desired = desired_of(given_flags())
    known = [field.name for field in fields_of(kind.desired)]
    for word in options["reset"]:
        name = word.replace("-", "_")
        if name not in known:
            raise click.UsageError(f"{a(kind.short)} has no field {word!r}{suggestion(name, known)}")
        desired[name] = None
    body: Json = {}
    if desired:
        body["desired"] = desired
    labels = _labels(options["labels"])
    if labels:
        body["labels"] = labels
    if not body:
        raise usage("nothing to change: name a flag", f"`pileus patch {kind.short} --help` lists them")
    query = session.query(kind, options["account"])
    answer = session.client.send("PATCH", f"{root(kind)}/{segment(options['name'])}", query, body)
    if options["wait"]:
        answer = wait_for(session, kind, [answer], READY, options["timeout"])[0]
    output: Output = options["output"]
    say(kind, answer, "is ready" if options["wait"] else "changed", output)


def _labels(given: tuple[str, ...]) -> dict[str, str | None]:
    labels: dict[str, str | None] = {}
    for text in (part for one in given for part in one.split(",")):
        key, equals, value = text.partition("=")
        check_label(key.removesuffix("-") if not equals else key, value, "--label")
        if equals and key:
            labels[key] = value
        elif key.endswith("-") and key != "-":
            labels[key[:-1]] = None
        else:
            raise click.UsageError(f"--label takes KEY=VALUE, or KEY- to take it away, not {text!r}")
    return labels
