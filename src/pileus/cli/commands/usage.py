"""``pileus usage``: what was used, for how long, and how much passed."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import Any

import click

from pileus.cli.client import Json
from pileus.cli.output import Output, output_option, render
from pileus.cli.session import Session, account_option, all_accounts_option, find_kind
from pileus.cli.table import plain

NUMBERS = (
    ("VCPU-HOURS", "vcpu_hours"),
    ("MEMORY-GIB-HOURS", "memory_gib_hours"),
    ("DISK-GIB-HOURS", "disk_gib_hours"),
    ("ADDRESS-HOURS", "address_hours"),
    ("RECEIVED-GB", "received_gb"),
    ("SENT-GB", "sent_gb"),
)


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

    Of an account, of all (-A), or of one resource (KIND NAME). What is off uses its disk only.
    """
    if len(target) not in (0, 2):
        raise click.UsageError("usage takes KIND and NAME, or neither")
    asked = {word: options[word] for word in ("since", "until", "per", "by") if options[word]}
    account = options["account"] or session.context.account
    if target:
        found = session.get(find_kind(target[0]), target[1], options["account"])
        account, asked = found["account"], {**asked, "id": found["id"], "by": "object"}
    where = [("all_accounts", "1")] if options["all_accounts"] else [("account", account)]
    answer = session.client.get("/v1/usage", [*where, *asked.items()])
    output: Output = options["output"]
    if output.for_people:
        _show(answer, wide=output.wide, is_split=options["per"] != "all")
    else:
        sys.stdout.write(render(output, answer, answer["items"]) + "\n")


def _show(answer: Json, *, wide: bool, is_split: bool) -> None:
    items = answer["items"]
    sys.stderr.write(f"from {answer['since']} to {answer['until']}\n")
    if not items:
        sys.stderr.write("nothing was used\n")
        return
    texts = (["SINCE"] if is_split else []) + (["ACCOUNT"] if _is_mixed(items) else []) + ["OBJECT"]
    numbers = [(header, word) for header, word in NUMBERS if wide or answer["total"][word]]
    rows = [[*_texts(item, texts), *_cells(item, numbers)] for item in items]
    rows.append([*_texts({"since": "", "account": "", "name": "total"}, texts), *_cells(answer["total"], numbers)])
    sys.stdout.write(
        plain([*texts, *(header for header, _ in numbers)], list(_aligned(rows, len(texts), numbers))) + "\n"
    )


def _is_mixed(items: Sequence[Json]) -> bool:
    return any("kind" not in item for item in items) or len({item["account_id"] for item in items}) > 1


def _texts(item: Json, words: Sequence[str]) -> Iterator[str]:
    kind = item.get("kind", "").partition(".")[2]
    shown = {"SINCE": item["since"].removesuffix(".000Z"), "ACCOUNT": item["account"]}
    shown["OBJECT"] = f"{kind} {item['name']}".strip() if "name" in item else "all"
    return (shown[word] for word in words)


def _cells(amounts: Json, numbers: Sequence[tuple[str, str]]) -> list[str]:
    return [f"{amounts[word]:,.3f}" for _, word in numbers]


def _aligned(rows: Sequence[Sequence[str]], first: int, numbers: Sequence[tuple[str, str]]) -> Iterator[Sequence[str]]:
    """Yield the rows with their numbers, from column ``first`` on, moved to the right."""
    widths = [max(len(header), *(len(row[first + place]) for row in rows)) for place, (header, _) in enumerate(numbers)]
    for row in rows:
        yield [*row[:first], *(cell.rjust(width) for cell, width in zip(row[first:], widths, strict=True))]
