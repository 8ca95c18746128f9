"""``pileus login``: keeps server, CA and key as a context after trying them."""

from __future__ import annotations

import os
import sys
from urllib.parse import urlsplit

import click

from pileus.cli import contexts
from pileus.cli.client import Client
from pileus.cli.failure import usage
from pileus.cli.session import caller
from pileus.cli.values import read_text


@click.command("login")
@click.option("--server", required=True, metavar="URL", help="Such as https://cloud.example:7443.")
@click.option("--ca", "ca_file", required=True, metavar="FILE", help="The cloud's CA certificate (PEM).")
@click.option("--key", default="", metavar="KEY", help="Your key; -: from standard input. Else $PILEUS_KEY or asked.")
@click.option("--account", default="", metavar="ACCOUNT", help="Account to use when --account is left out.")
@click.option("--name", default="", metavar="NAME", help="Name of the context; the server's name when left out.")
@click.option("--force", is_flag=True, help="Replace a context of that name which has another key.")
def command(server: str, ca_file: str, key: str, account: str, name: str, force: bool) -> None:
    """Sign in to a cloud and make it the current context.

    A key on the command line can be seen by others on this machine: prefer `--key -` or $PILEUS_KEY.
    """
    try:
        ca = read_text("--ca", ca_file)
    except ValueError as error:
        raise usage(str(error)) from None
    address = server if "://" in server else f"https://{server}"
    context = contexts.Context(server=address, ca=ca, key=_key(key), account=account)
    chosen = name or urlsplit(address).hostname or "cloud"
    if not force:
        _refuse_other_key(chosen, context)
    with Client(context) as client:
        me = client.get("/v1/whoami")
    contexts.put(chosen, context)
    place = (
        f" of account {me['account']}" if me["account"] else " of the cloud" if me.get("manager") else ", an operator"
    )
    sys.stdout.write(f"signed in as {caller(me)}{place}; context {chosen} is current\n")


def _refuse_other_key(name: str, context: contexts.Context) -> None:
    """Raises: Failure when the context is there with another key, which nobody could get back."""
    there = contexts.load().contexts.get(name)
    if there is not None and there.key != context.key:
        raise usage(f"context {name} has another key", "keep both with --name OTHER, or replace it with --force")


def _key(given: str) -> str:
    key = sys.stdin.readline().strip() if given == "-" else given or os.environ.get("PILEUS_KEY", "")
    if not key and sys.stdin.isatty():
        key = str(click.prompt("Key", hide_input=True, err=True)).strip()
    if not key:
        raise usage("a key is needed: --key -, or $PILEUS_KEY", "an operator makes one with `pileus create key`")
    if not key.isascii() or not key.isprintable() or " " in key:
        raise usage("this is not a key; keys start with pil_")
    return key
