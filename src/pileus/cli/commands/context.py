"""``pileus context``: which clouds there are, and which of them is meant."""

from __future__ import annotations

import sys

import click
import msgspec
from click.shell_completion import CompletionItem

from pileus.cli import contexts
from pileus.cli.failure import Failure, usage
from pileus.cli.session import Session
from pileus.cli.table import plain


def _complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    try:
        return [CompletionItem(name) for name in contexts.load().contexts if name.startswith(incomplete)]
    except Failure:
        return []


@click.group("context")
def command() -> None:
    """List, choose, change or show the clouds that you use."""


@command.command("list")
def list_() -> None:
    """List the contexts; * marks the current one."""
    config = contexts.load()
    if not config.contexts:
        sys.stderr.write("no contexts; `pileus up` or `pileus login` makes one\n")
        return
    rows = [
        ["*" if name == config.current else "", name, context.server, context.account or "-"]
        for name, context in sorted(config.contexts.items())
    ]
    sys.stdout.write(f"{plain(('', 'NAME', 'SERVER', 'ACCOUNT'), rows)}\n")


@command.command("use")
@click.argument("name", shell_complete=_complete)
def use(name: str) -> None:
    """Make a context the current one."""
    contexts.choose(name)
    config = contexts.load()
    config.current = name
    contexts.save(config)
    sys.stdout.write(f"context {name} is current\n")


@command.command("set")
@click.argument("name", required=False, default="", shell_complete=_complete)
@click.option("--account", metavar="ACCOUNT", default=None, help="Account to use when --account is left out; '': none.")
@click.option("--server", metavar="URL", default=None, help="Where its server is.")
@click.pass_obj
def set_(session: Session, /, name: str, account: str | None, server: str | None) -> None:
    """Change a context, the current one when none is named."""
    if account is None and server is None:
        raise usage("nothing to set: give --account or --server")
    context = contexts.choose(name) if name else session.context
    config = contexts.load()
    named = name or next(key for key, value in config.contexts.items() if value == context)
    changes = {key: value for key, value in (("account", account), ("server", server)) if value is not None}
    config.contexts[named] = msgspec.structs.replace(context, **changes)
    contexts.save(config)
    sys.stdout.write(f"context {named}: {', '.join(f'{key} {value or None}' for key, value in changes.items())}\n")


@command.command("show")
@click.argument("name", required=False, default="", shell_complete=_complete)
@click.pass_obj
def show(session: Session, /, name: str) -> None:
    """Show a context; its key stays hidden."""
    context = contexts.choose(name) if name else session.context
    sys.stdout.write(f"file     {contexts.path()}\n")
    sys.stdout.write(f"server   {context.server}\n")
    sys.stdout.write(f"account  {context.account or '-'}\n")
    sys.stdout.write(f"key      {context.key[:8] + '…' if context.key else '-'}\n")


@command.command("delete")
@click.argument("name", shell_complete=_complete)
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
def delete(name: str, yes: bool) -> None:
    """Forget a context and its key. On a terminal it asks first."""
    contexts.choose(name)
    if not yes and sys.stdin.isatty() and sys.stderr.isatty():
        click.confirm(f"Forget context {name} and its key?", abort=True, err=True)
    config = contexts.load()
    del config.contexts[name]
    if config.current == name:
        config.current = ""
    contexts.save(config)
    sys.stdout.write(f"context {name} is forgotten\n")
