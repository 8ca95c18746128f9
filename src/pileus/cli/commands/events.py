"""``pileus events``: what happened, oldest first."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any

import click
import msgspec

from pileus.cli.client import Json, segment
from pileus.cli.failure import UNREACHABLE, Failure
from pileus.cli.output import Output, names_of, output_option, render
from pileus.cli.session import Session, account_option, all_accounts_option, find_kind, root
from pileus.cli.table import age, plain
from pileus.kernel.kind import Kind

LIMIT = 100
RETRY_S = 1.0

HEADERS = ("AGE", "TYPE", "OBJECT", "REASON", "MESSAGE")


@click.command("events")
@click.argument("target", metavar="[KIND NAME]", nargs=-1)
@account_option
@all_accounts_option
@output_option()
@click.option("-f", "--follow", is_flag=True, help="Go on with every new event until ctrl-C.")
@click.option("--limit", type=click.IntRange(1, 1000), default=LIMIT, show_default=True, help="The newest so many.")
@click.pass_obj
def command(session: Session, /, target: tuple[str, ...], **options: Any) -> None:
    """Show what happened: in an account, everywhere (-A), or to one resource (KIND NAME)."""
    if len(target) not in (0, 2):
        raise click.UsageError("events takes KIND and NAME, or neither")
    reader = _Reader(session, options)
    if target:
        kind = find_kind(target[0])
        reader.choose(kind, session.get(kind, target[1], options["account"]))
    events = reader.newest()
    reader.show(events)
    if options["follow"]:
        for event in reader.follow():
            reader.show([event], more=True)


class _Reader:
    def __init__(self, session: Session, options: Json) -> None:
        self._session = session
        self._output: Output = options["output"]
        self._limit: int = options["limit"]
        self._all = bool(options["all_accounts"])
        account = options["account"] or session.context.account
        self._query = [("all_accounts", "1")] if self._all else [("account", account)]
        self._accounts: dict[str, str] = {}
        self._path = "/v1/event"
        self._id = ""
        self._last = 0

    def choose(self, kind: Kind, resource: Json) -> None:
        """Show only what happened to this resource."""
        self._path = f"{root(kind)}/{segment(resource['id'])}/events"
        self._id = resource["id"]
        self._query = [("account", resource["account"])]

    def newest(self) -> list[Json]:
        """Return the newest events, oldest first."""
        page = self._session.client.get(self._path, [*self._query, ("limit", str(self._limit))])
        return self._note(page["items"])

    def _note(self, events: Iterable[Json]) -> list[Json]:
        fresh = [event for event in events if event["seq"] > self._last and self._id in ("", event["id"])]
        self._last = max([self._last, *(event["seq"] for event in fresh)])
        return fresh

    def follow(self) -> Iterator[Json]:
        """Yield every further event for ever; a server that went away is asked again."""
        while True:
            query = [*self._query, ("watch", "1"), ("since", str(self._last))]
            try:
                for _, _, text in self._session.client.stream("/v1/event", query):
                    event = msgspec.json.decode(text, type=Json)
                    if "seq" in event:
                        yield from self._note([event])
            except Failure as failure:
                if failure.exit_code != UNREACHABLE:
                    raise
                sys.stderr.write(f"{failure.message}; trying again\n")
            time.sleep(RETRY_S)

    def show(self, events: list[Json], *, more: bool = False) -> None:
        """Print events in the chosen form; ``more``: they follow others."""
        if not self._output.for_people:
            if more:
                text = "\n".join(msgspec.json.encode(event).decode() for event in events)
            else:
                text = render(self._output, {"items": events}, events)
            sys.stdout.write(f"{text}\n" if text else "")
        elif events:
            lines = plain(self._headers(), self._rows(events)).split("\n")
            sys.stdout.write("\n".join(lines[1:] if more else lines) + "\n")
        elif not more:
            sys.stderr.write("no events\n")
        sys.stdout.flush()

    def _headers(self) -> tuple[str, ...]:
        return (HEADERS[0], "ACCOUNT", *HEADERS[1:]) if self._all else HEADERS

    def _rows(self, events: list[Json]) -> list[list[str]]:
        if self._all:
            unknown = sorted({event["account_id"] for event in events} - self._accounts.keys() - {""})
            self._accounts.update(names_of(self._session.client, "tenancy.account", unknown, []))
        rows = []
        for event in events:
            target = f"{event['kind'].partition('.')[2]} {event['name']}"
            row = [age(event["at"]), event["type"], target, event["reason"], event["message"]]
            if self._all:
                row.insert(1, self._accounts.get(event["account_id"], "-"))
            rows.append(row)
        return rows
