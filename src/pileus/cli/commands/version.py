"""``pileus version``: of this command and, when it answers, of the server."""

from __future__ import annotations

import sys

import click

from pileus import __version__
from pileus.cli.client import Client
from pileus.cli.failure import Failure
from pileus.cli.session import Session

TIMEOUT_S = 3.0


@click.command("version")
@click.pass_obj
def command(session: Session, /) -> None:
    """Print the versions of this command and of the server."""
    sys.stdout.write(f"pileus {__version__}\n")
    try:
        with Client(session.context, timeout_s=TIMEOUT_S) as client:
            answer = client.get("/v1")
        sys.stdout.write(f"server {answer['version']} at {client.server}\n")
    except Failure as failure:
        sys.stdout.write(f"server: {failure.message}\n")
