"""``pileus get``: lists and shows resources of any kind, and follows their changes."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import click
import msgspec

from pileus.cli.client import Json
from pileus.cli.failure import NOT_FOUND, UNREACHABLE, Failure
from pileus.cli.labels import check_label
from pileus.cli.output import Output, Referred, output_option, render
from pileus.cli.session import (
    Session,
    account_option,
    all_accounts_option,
    kind_argument,
    names_argument,
    root,
)
from pileus.cli.table import Layout, coloured, needs_reason
from pileus.kernel.kind import Kind

RECONNECT_S = 1.0


def labels_of(ctx: click.Context, param: click.Parameter, given: Sequence[str]) -> tuple[str, ...]:
    """Return the given k=v, of which a comma starts another. Raises: UsageError."""
    labels = tuple(part for text in given for part in text.split(","))
    for label in labels:
        key, equals, value = label.partition("=")
        if not key or not equals:
            raise click.UsageError(f"{param.opts[-1]} takes KEY=VALUE, not {label!r}", ctx)
        check_label(key, value, param.opts[-1])
    return labels


@click.command("get", no_args_is_help=True)
@kind_argument
@names_argument(required=False)
@account_option
@all_accounts_option
@output_option()
@click.option(
    "-l", "--label", "labels", multiple=True, callback=labels_of, metavar="K=V,...", help="With these labels."
)
@click.option("--host", default="", metavar="HOST", help="On this host.")
@click.option("--zone", default="", metavar="ZONE", help="In this zone.")
@click.option("--vdc", default="", metavar="VDC", help="Of this vdc.")
@click.option("--manager", default="", metavar="MANAGER", help="Of this fleet manager.")
@click.option("--ready", type=click.Choice(["true", "false", "unknown"]), default=None, help="With this Ready.")
@click.option("--owned", is_flag=True, help="Also what belongs to another resource, such as a router's VM.")
@click.option("-w", "--watch", is_flag=True, help="Go on with every change until ctrl-C.")
@click.option("--limit", type=click.IntRange(min=1), default=None, help="At most so many.")
@click.option("--no-headers", is_flag=True, help="Leave the table's headers out.")
@click.pass_obj
def command(session: Session, /, kind: Kind, names: tuple[str, ...], **options: Any) -> None:
    """List the resources of a kind, or show those named.

    `pileus get vm`, `pileus get vm web -o yaml`, `pileus get vm -A --ready false`, `pileus get volume -l tier=db -w`
    """
    view = View(session, kind, tuple(dict.fromkeys(names)), options)
    if options["watch"]:
        view.follow()
    else:
        view.show()


class View:
    """One call of ``get``."""

    def __init__(self, session: Session, kind: Kind, names: tuple[str, ...], options: Json) -> None:
        self._session = session
        self._kind = kind
        self._names = names
        self._options = options
        self._all = bool(options["all_accounts"])
        self._output: Output = msgspec.structs.replace(options["output"], accounts=self._all)
        self._account: str = options["account"]
        scope = session.query(kind, self._account, all_accounts=self._all)
        self._filters = [
            *scope,
            *((word, options[word] or "") for word in ("host", "zone", "vdc", "manager", "ready")),
            *(("label", label) for label in options["labels"]),
            ("owned", "1" if options["owned"] else ""),
        ]
        self._referred = Referred(session.client, kind, wide=self._output.wide, query=scope)
        self._revision = 0

    def show(self) -> None:
        """Print what there is."""
        answer, items = self._load()
        if not self._output.for_people:
            text = render(self._output, answer, items)
            sys.stdout.write(f"{text}\n" if text else "")
        elif items:
            self._print_table(items)
        else:
            sys.stderr.write(f"no {self._kind.plural}{self._where()}\n")

    def follow(self) -> None:
        """Print what there is and then every change, until interrupted."""
        _, items = self._load()
        layout = self._print_table(items, reasons=True) if self._output.for_people else None
        if layout is None:
            for item in items:
                self._print_change(item)
        while True:
            try:
                for event, item in self._changes():
                    if layout is None:
                        self._print_change(item if event == "put" else {**item, "gone": True})
                    else:
                        self._print_row(layout, event, item)
            except Failure as failure:
                if failure.exit_code != UNREACHABLE:
                    raise
                sys.stderr.write(f"{failure.message}; trying again\n")
            time.sleep(RECONNECT_S)

    def _load(self) -> tuple[Json, list[Json]]:
        """Return the answer to print and its items: one resource by itself when one was named."""
        if self._names and not self._all:
            items = [self._session.get(self._kind, name, self._account) for name in self._names]
            self._revision = max(int(item["revision"]) for item in items)
            return (items[0] if len(items) == 1 else {"items": items}), items
        items = []
        limit = self._options["limit"] or 0
        for name in self._names or ("",):
            for page in self._session.client.pages(root(self._kind), [*self._filters, ("name", name)], limit):
                items.extend(page["items"])
                # The oldest page decides: a change after it is told again rather than lost.
                self._revision = min(self._revision or page["revision"], page["revision"])
        if self._names and not items:
            missing = " or ".join(self._names)
            raise Failure(f"there is no {self._kind.short} {missing} in any account", exit_code=NOT_FOUND)
        return {"items": items}, items

    def _changes(self) -> Iterator[tuple[str, Json]]:
        query = [*self._filters, ("watch", "1"), ("since", str(self._revision))]
        for event, ident, text in self._session.client.stream(root(self._kind), query):
            if event in ("put", "gone"):
                item = msgspec.json.decode(text, type=Json)
                if event == "gone" or self._wanted(item):
                    yield event, item
            if ident.isdigit():
                self._revision = max(self._revision, int(ident))

    def _wanted(self, item: Json) -> bool:
        if self._names and item["name"] not in self._names and item["id"] not in self._names:
            return False
        return all(item["labels"].get(key) == value for key, _, value in map(_split, self._options["labels"]))

    # printing

    def _print_table(self, items: Sequence[Json], *, reasons: bool = False) -> Layout:
        layout = Layout(
            self._kind,
            wide=self._output.wide,
            accounts=self._all and self._kind.scope != "cluster",
            reasons=reasons or needs_reason(items),
        )
        names = self._referred.learn(items)
        rows = [layout.cells(item, names) for item in items]
        layout.fit(rows)
        colour = coloured()
        lines = [layout.line(row, colour=colour) for row in rows]
        if not self._options["no_headers"]:
            lines.insert(0, layout.line(layout.headers))
        sys.stdout.write("".join(f"{line}\n" for line in lines))
        sys.stdout.flush()
        return layout

    def _print_row(self, layout: Layout, event: str, item: Json) -> None:
        if event == "gone":
            row = [item["name"], *("" for _ in layout.headers[1:])]
            row[layout.headers.index("READY")] = "gone"
        else:
            row = layout.cells(item, self._referred.learn([item]))
        layout.fit([row])
        sys.stdout.write(f"{layout.line(row, colour=coloured())}\n")
        sys.stdout.flush()

    def _print_change(self, item: Json) -> None:
        """Print one change on one line of JSON, or as the chosen form says."""
        if self._output.form == "json":
            text = msgspec.json.encode(item).decode()
        elif self._output.form == "yaml":
            text = f"---\n{render(self._output, item, [item])}"
        elif "gone" in item:
            return
        else:
            text = render(self._output, item, [item])
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()

    def _where(self) -> str:
        account = self._session.account_of(self._kind, self._account)
        place = " in any account" if self._all else f" in account {account}" if account else ""
        filtered = any(value for word, value in self._filters if word not in ("account", "all_accounts"))
        return f"{place} that match" if filtered else place


def _split(label: str) -> tuple[str, str, str]:
    return label.partition("=")
