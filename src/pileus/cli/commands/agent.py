"""``pileus agent``: a host's agent alone."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pileus.cli.commands.server import default_data

if TYPE_CHECKING:
    from pileus.agent.run import AgentSettings


@click.command("agent")
@click.option("--data", type=click.Path(path_type=Path, file_okay=False), help="Folder of the agent's state.")
@click.option("--server", default="", help="https://… of the cloud; needed once, with --token.")
@click.option("--token", default="", help="One-time join token, see `pileus join-token HOST`; needed once.")
@click.option("--accelerator", default="auto", show_default=True, type=click.Choice(["auto", "kvm", "tcg"]),
              help="What VMs run under; auto: KVM only if a test guest really runs under it.")  # fmt: skip
def command(data: Path | None, server: str, token: str, accelerator: str) -> None:
    """Run this host's agent in the foreground; logs go to stderr as JSON lines. VMs go on when it ends."""
    import asyncio

    from pileus.agent.run import AgentSettings
    from pileus.kernel.errors import PileusError
    from pileus.local.doctor import require
    from pileus.server import logs

    require()
    folder = (data or default_data()).absolute()
    settings = AgentSettings(data=folder, accelerator=accelerator)  # type: ignore[arg-type]
    os.umask(0o077)  # whatever is made holds tenants' secrets
    logs.set_up()
    try:
        asyncio.run(_main(settings, server, token))  # not uvloop: its subprocesses inherit sockets and know no umask
    except* PileusError as group:
        for error in group.exceptions:
            click.echo(f"error: {error}", err=True)
        sys.exit(1)
    except* KeyboardInterrupt:
        pass


async def _main(settings: AgentSettings, server: str, token: str) -> None:
    import asyncio
    import signal

    from pileus.agent.identity import join
    from pileus.agent.run import run

    if token:
        await join(server, token, settings.identity)
        click.echo(f"joined {server}")
    task = asyncio.create_task(run(settings, lambda: click.echo("agent ready")))
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    try:
        await task
    except asyncio.CancelledError:
        return
