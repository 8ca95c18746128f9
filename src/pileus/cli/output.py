"""The forms of -o: table, wide, json, yaml, name, jsonpath=PATH, custom-columns=HEADER:PATH,..."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click
import msgspec

from pileus.cli import table
from pileus.cli.client import Client, Json
from pileus.cli.paths import find, first, parse
from pileus.kernel.ids import is_id
from pileus.kernel.kind import Kind

F = TypeVar("F", bound=Callable[..., Any])

FORMS = ("table", "wide", "json", "yaml", "name", "jsonpath=", "custom-columns=")
IDS_PER_CALL = 200
"""36 characters each: keeps the request line below the 8 KiB that servers take."""


class Output(msgspec.Struct, frozen=True):
    """A form and its argument: a path, or columns."""

    form: str = "table"
    argument: str = ""
    accounts: bool = False
    """Whether names are of several accounts, and the form ``name`` has to say of which."""

    @property
    def wide(self) -> bool:
        """Whether all columns are wanted."""
        return self.form == "wide"

    @property
    def for_people(self) -> bool:
        """Whether it is a table."""
        return self.form in ("table", "wide")


class OutputWord(click.ParamType[Output]):
    """Parses the value of -o."""

    name = "form"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Output:
        """Return the form. Raises: UsageError."""
        if isinstance(value, Output):
            return value
        form, _, argument = str(value).partition("=")
        if form not in {known.rstrip("=") for known in FORMS} or (f"{form}=" in FORMS) != bool(argument):
            raise click.UsageError(f"-o takes {', '.join(FORMS)}, not {value!r}", ctx)
        try:
            if form == "jsonpath":
                parse(argument)
            elif form == "custom-columns":
                _columns(argument)
        except ValueError as error:
            raise click.UsageError(f"-o {form}: {error}", ctx) from None
        return Output(form, argument)

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[click.shell_completion.CompletionItem]:
        """Return the forms that start so."""
        return [click.shell_completion.CompletionItem(form) for form in FORMS if form.startswith(incomplete)]


def output_option(default: str = "table") -> Callable[[F], F]:
    """Add -o. A default of "" means a sentence."""
    return click.option(
        "-o", "--output", type=OutputWord(), default=Output(default), metavar="FORM",
        help="table, wide, json, yaml, name, jsonpath={.path} or custom-columns=HEADER:.path,...",
    )  # fmt: skip


def render(output: Output, answer: Json, items: Sequence[Json]) -> str:
    """Return ``answer`` (one resource, or a list with ``items``) in a form for programs."""
    if output.form == "json":
        return msgspec.json.format(msgspec.json.encode(answer), indent=2).decode()
    if output.form == "yaml":
        return to_yaml(answer).rstrip("\n")
    if output.form == "name":
        return "\n".join(_name(item, accounts=output.accounts) for item in items)
    if output.form == "jsonpath":
        return "\n".join(_text(value) for value in find(answer, parse(output.argument)))
    columns = _columns(output.argument)
    rows = [[",".join(map(_text, find(item, parse(path)))) or "-" for _, path in columns] for item in items]
    return table.plain([header for header, _ in columns], rows)


def _name(item: Json, *, accounts: bool) -> str:
    return f"{item['account']}/{item['name']}" if accounts and item["account"] else str(item["name"])


def _text(value: Any) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def _columns(argument: str) -> list[tuple[str, str]]:
    columns = []
    for part in argument.split(","):
        header, colon, path = part.partition(":")
        if not colon or not header:
            raise ValueError(f"{part!r} is not HEADER:.path")
        parse(path)
        columns.append((header, path))
    return columns


def to_yaml(content: Any) -> str:
    """Return YAML with the keys in their order and texts of several lines as blocks."""
    import yaml

    class Dumper(yaml.SafeDumper):
        pass

    def text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)

    Dumper.add_representer(str, text)
    made: str = yaml.dump(content, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=100)
    return made


class Referred:
    """Names of the resources that ref columns point at, asked for once each."""

    def __init__(self, client: Client, kind: Kind, *, wide: bool, query: Sequence[tuple[str, str]]) -> None:
        self._client = client
        self._columns = [column for column in table.columns_of(kind, wide=wide) if column.ref]
        self._query = list(query)
        self.names: dict[str, str] = {}

    def learn(self, items: Sequence[Json]) -> dict[str, str]:
        """Return the names of all ids in the ref columns of ``items``; what may not be read keeps its id."""
        wanted: dict[str, set[str]] = {}
        for column in self._columns:
            ids = {str(first(item, column.path) or "") for item in items}
            wanted.setdefault(column.ref, set()).update(one for one in ids if is_id(one) and one not in self.names)
        for ref, ids in wanted.items():
            self.names.update(names_of(self._client, ref, sorted(ids), self._query))
        return self.names


def names_of(client: Client, ref: str, ids: Sequence[str], query: Sequence[tuple[str, str]]) -> dict[str, str]:
    """Return id → name of resources of the kind ``ref``; an id that cannot be read stands for itself."""
    from pileus.cli.failure import NOT_FOUND, REFUSED, Failure

    names: dict[str, str] = {}
    for start in range(0, len(ids), IDS_PER_CALL):
        part = ids[start : start + IDS_PER_CALL]
        names.update((one, one) for one in part)
        try:
            page = client.get(f"/v1/{ref}", [*query, ("id", ",".join(part)), ("limit", str(IDS_PER_CALL))])
        except Failure as failure:
            if failure.exit_code not in (REFUSED, NOT_FOUND):
                raise
            continue
        names.update((item["id"], item["name"]) for item in page["items"])
    return names
