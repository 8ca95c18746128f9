"""``pileus usage``: what was used, for how long, and how much passed."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import Any

import click

from pileus.cli.client import Json
from pileus.cli.failure import NOT_FOUND, Failure, usage
from pileus.cli.output import Output, output_option, render
from pileus.cli.session import Session, account_option, all_accounts_option, find_kind
from pileus.cli.table import plain
from pileus.registry import KINDS

NUMBERS = (
    ("VCPU-HOURS", "vcpu_hours"),
    ("MEMORY-GIB-HOURS", "memory_gib_hours"),
    ("DISK-GIB-HOURS", "disk_gib_hours"),
    ("ADDRESS-HOURS", "address_hours"),
    ("RECEIVED-GB", "received_gb"),
    ("SENT-GB", "sent_gb"),
)
LEAST = 0.001
"""What a table shows; -o json has more decimals."""


@click.command("usage")
@click.argument("target", metavar="[KIND NAME]", nargs=-1)
@account_option
@all_accounts_option
@click.option(
    "--since", metavar="TIME", default="", help="From when, such as 2030-01-31T00:00:00Z; else this month's begin."
)
@click.option("--until", metavar="TIME", default="", help="Until when; left out: now.")
@click.option(
    "--per", type=click.Choice(("hour", "day", "month", "all")), default="all", help="A line for each of these (UTC)."
)
@click.option("--by", type=click.Choice(("object", "account")), help="What a line is about; with -A it is an account.")
@output_option()
@click.pass_obj
def command(session: Session, /, target: tuple[str, ...], **options: Any) -> None:
    """Show what was used: CPUs, memory, disks and addresses by the hour, traffic by the GB.

    Of an account, of all (-A), or of one resource (KIND NAME). A VM that is off uses its disk only.
    """
    asked = {word: options[word] for word in ("since", "until", "per", "by") if options[word]}
    where = (
        [("all_accounts", "1")]
        if options["all_accounts"]
        else [("account", options["account"] or session.context.account)]
    )
    if target:
        if options["all_accounts"]:
            raise usage("-A is of all accounts, and a resource is of one; say which with --account")
        found = _resource(session, target, options["account"])
        where, asked = [("account", found["account"])], {"by": "object", **asked, "id": found["id"]}
    answer = session.client.get("/v1/usage", [*where, *asked.items()])
    output: Output = options["output"]
    if output.for_people:
        _show(answer, wide=output.wide, is_split=options["per"] != "all")
    else:
        named = [{"name": item["account"], **item} for item in answer["items"]]
        sys.stdout.write(render(output, answer, named) + "\n")


def _resource(session: Session, target: Sequence[str], account: str) -> Json:
    """Return what ``KIND NAME`` or ``KIND/NAME`` means. Raises: Failure, also for a kind that is not metered."""
    words = target[0].split("/", 1) if len(target) == 1 else target
    if len(words) != 2 or not all(words):
        raise click.UsageError("usage takes KIND and NAME, or neither")
    kind = find_kind(words[0])
    if kind.meter is None:
        metered = ", ".join(each.plural for each in KINDS if each.meter is not None)
        raise usage(f"{kind.plural} are not metered; {metered} are")
    try:
        return session.get(kind, words[1], account)
    except Failure as failure:
        if failure.exit_code == NOT_FOUND and not failure.hint:
            failure.hint = "`pileus usage` without a name has what is deleted, too"
        raise


def _show(answer: Json, *, wide: bool, is_split: bool) -> None:
    items, total = answer["items"], answer["total"]
    sys.stderr.write(f"from {_second(answer['since'])} to {_second(answer['until'])}\n")
    if not items:
        sys.stderr.write("nothing was used\n")
        return
    is_by_object = "kind" in items[0]
    accounts = {item["account_id"] for item in items}
    texts = (["SINCE"] if is_split else []) + (["ACCOUNT"] if len(accounts) > 1 or not is_by_object else [])
    texts += ["OBJECT"] if is_by_object else []
    numbers = [(header, word) for header, word in NUMBERS if wide or total[word]]
    rows = [[*_texts(item, texts), *_cells(item, numbers)] for item in items]
    if len(rows) > 1:
        rows.append(["total", *[""] * (len(texts) - 1), *_cells(total, numbers)])
    lines = [list(row) for row in _aligned(rows, len(texts), numbers)]
    headers = [*texts, *(header for header, _ in numbers)]
    if wide and is_by_object:
        headers.append("ID")
        for line, item in zip(lines, items, strict=False):
            line.append(item["id"])
        lines[-1] += [""] * (len(headers) - len(lines[-1]))
    sys.stdout.write(plain(headers, lines) + "\n")


def _texts(item: Json, words: Sequence[str]) -> Iterator[str]:
    kind = item.get("kind", "").partition(".")[2]
    shown = {"SINCE": _second(item["since"]), "ACCOUNT": item["account"], "OBJECT": f"{kind} {item.get('name', '')}"}
    return (shown[word] for word in words)


def _second(time: str) -> str:
    return f"{time[:19]}Z"


def _cells(amounts: Json, numbers: Sequence[tuple[str, str]]) -> list[str]:
    return [_cell(amounts[word]) for _, word in numbers]


def _cell(amount: float) -> str:
    if not amount:
        return "-"
    return f"{amount:,.3f}" if amount >= LEAST else f"<{LEAST}"


def _aligned(rows: Sequence[Sequence[str]], first: int, numbers: Sequence[tuple[str, str]]) -> Iterator[Sequence[str]]:
    """Yield the rows with their numbers, from column ``first`` on, moved to the right."""
    widths = [max(len(header), *(len(row[first + place]) for row in rows)) for place, (header, _) in enumerate(numbers)]
    for row in rows:
        yield [*row[:first], *(cell.rjust(width) for cell, width in zip(row[first:], widths, strict=True))]
