"""Words for the shell to complete: kinds and, from the server, names. A completion that fails offers nothing."""

from __future__ import annotations

import click
from click.shell_completion import CompletionItem

from pileus.cli.failure import Failure

TIMEOUT_S = 1.5
"""Who presses the tab key waits no longer for a lost server."""

LIMIT = 200


def complete_kinds(incomplete: str) -> list[CompletionItem]:
    """Return the kinds that start with what was typed."""
    from pileus.registry import KINDS

    return [CompletionItem(kind.short, help=kind.summary) for kind in KINDS if kind.short.startswith(incomplete)]


def complete_names(ctx: click.Context, kind_name: str, incomplete: str) -> list[CompletionItem]:
    """Return the names of a kind, in the account on the command line, that start with what was typed."""
    from pileus.cli.client import Client
    from pileus.cli.session import Session, root
    from pileus.registry import KINDS

    session = ctx.find_object(Session) or Session()
    kind = KINDS[kind_name]
    try:
        context = session.context
        query = session.query(
            kind,
            ctx.params.get("account") or "",
            all_accounts=bool(ctx.params.get("all_accounts")),
        )
        with Client(context, timeout_s=TIMEOUT_S) as client:
            page = client.get(root(kind), [*query, ("limit", str(LIMIT))])
    except Failure:
        return []
    names = dict.fromkeys(item["name"] for item in page["items"])
    return [CompletionItem(name) for name in names if name.startswith(incomplete)]


def complete_accounts(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Return the accounts that start with what was typed."""
    return complete_names(ctx, "tenancy.account", incomplete)
