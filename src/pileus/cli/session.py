"""What every command shares: the chosen context, its client, and the words for kinds, names and accounts."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import click
from click.shell_completion import CompletionItem

from pileus.cli.client import Client, Json, segment
from pileus.cli.completing import complete_accounts, complete_kinds, complete_names
from pileus.cli.contexts import Context, choose, load
from pileus.cli.failure import NOT_FOUND, Failure, suggestion
from pileus.kernel.errors import NotFound
from pileus.kernel.kind import Kind
from pileus.registry import KINDS

F = TypeVar("F", bound=Callable[..., Any])
Query = list[tuple[str, str]]


class Session:
    """One run of the command: the context by name ("" for the current one) and what is derived from it."""

    def __init__(self, name: str = "") -> None:
        self._name = name

    @functools.cached_property
    def context(self) -> Context:
        """The context. Raises: Failure."""
        return choose(self._name)

    @property
    def context_name(self) -> str:
        """The name of the context. Raises: Failure when there is none."""
        choose(self._name)
        return self._name or load().current

    @functools.cached_property
    def client(self) -> Client:
        """The client of its server. Raises: Failure."""
        return Client(self.context)

    def close(self) -> None:
        """Close the client's connection, if there is one."""
        if "client" in self.__dict__:
            self.client.close()

    def account_of(self, kind: Kind, account: str) -> str:
        """Return the account that is meant: the given one, else the context's where the kind has accounts."""
        return account or ("" if kind.scope == "cluster" else self.context.account)

    def query(self, kind: Kind, account: str, *, all_accounts: bool = False) -> Query:
        """Return the query that says which account is meant."""
        if all_accounts:
            return [("all_accounts", "1")]
        return [("account", self.account_of(kind, account))]

    def get(self, kind: Kind, name: str, account: str) -> Json:
        """Return one resource by name or id. Raises: Failure, with close names when there is none."""
        try:
            return self.client.get(f"{root(kind)}/{segment(name)}", self.query(kind, account))
        except Failure as failure:
            if failure.exit_code == NOT_FOUND:
                failure.hint = self._close_names(kind, name, account)
            raise

    def _close_names(self, kind: Kind, name: str, account: str) -> str:
        try:
            page = self.client.get(root(kind), [*self.query(kind, account), ("limit", "1000")])
        except Failure:
            return f"{kind.plural} belong to accounts; say which with --account" if kind.scope == "account" else ""
        names = [item["name"] for item in page["items"]]
        return suggestion(name, names).removeprefix("; ")


def root(kind: Kind) -> str:
    """Return the path of a kind's resources."""
    return f"/v1/{kind.name}"


def noun(kind: Kind, resource: Json) -> str:
    """Return how people call the resource: ``vm web of account acme``."""
    account = f" of account {resource['account']}" if resource.get("account") else ""
    return f"{kind.short} {resource['name']}{account}"


def caller(me: Json) -> str:
    """Return how people call who has the key: ``alice``, or ``manager firewalls``."""
    return f"manager {me['manager']}" if me.get("manager") else str(me["user"])


def a(word: str) -> str:
    """Return the word with its article: ``a vm``, ``an account``."""
    return f"{'an' if word[:1] in 'aeio' else 'a'} {word}"


class KindWord(click.ParamType[Kind]):
    """A kind by its full name, short word, plural or alias."""

    name = "kind"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Kind:
        """Return the kind. Raises: UsageError with the closest kinds."""
        return value if isinstance(value, Kind) else find_kind(value, ctx)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Return the kinds that start so."""
        return complete_kinds(incomplete)


def find_kind(word: str, ctx: click.Context | None = None) -> Kind:
    """Return the kind for a word. Raises: UsageError with the closest kinds."""
    try:
        return KINDS.find(word.lower())
    except NotFound:
        words = [known for kind in KINDS for known in (kind.short, kind.plural, kind.name, *kind.aliases)]
        close = suggestion(word.lower(), words) or "; `pileus explain` lists the kinds"
        raise click.UsageError(f'there is no kind "{word}"{close}', ctx) from None


def _names(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    kind = ctx.params.get("kind")
    return complete_names(ctx, kind.name, incomplete) if isinstance(kind, Kind) else []


def kind_argument(function: F) -> F:
    """Add the argument KIND."""
    return click.argument("kind", type=KindWord())(function)


def name_argument(function: F) -> F:
    """Add the argument NAME."""
    return click.argument("name", shell_complete=_names)(function)


def names_argument(*, required: bool) -> Callable[[F], F]:
    """Add the argument NAME..."""
    return click.argument("names", metavar="[NAME]...", nargs=-1, required=required, shell_complete=_names)


def account_option(function: F) -> F:
    """Add --account."""
    return click.option(
        "--account", metavar="ACCOUNT", default="", help="The account, by name.", shell_complete=complete_accounts
    )(function)


def all_accounts_option(function: F) -> F:
    """Add -A."""
    return click.option("-A", "--all-accounts", is_flag=True, help="Of all accounts.")(function)


def wait_options(function: F) -> F:
    """Add --wait and --timeout."""
    from pileus.cli.waiting import DEFAULT_TIMEOUT_S, Timeout

    timed = click.option(
        "--timeout", type=Timeout(), default=DEFAULT_TIMEOUT_S, show_default="5m", metavar="TIME",
        help="How long to wait: 90, 90s, 5m, 1h.",
    )(function)  # fmt: skip
    return click.option("--wait", is_flag=True, help="Wait until it is so.")(timed)
