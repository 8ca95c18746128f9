"""``pileus down``: stop the cloud of this machine, its VMs included."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import time
from pathlib import Path

import click

from pileus.cli.commands.server import default_data

STOP_TIMEOUT_S = 30.0


@click.command("down")
@click.option("--data", type=click.Path(path_type=Path, file_okay=False), help="Folder of the cloud's state.")
@click.option("--keep-vms", is_flag=True, help="Stop server and agent only; VMs and their network go on.")
@click.option("--now", is_flag=True, help="Do not ask the guests: cut their power. --delete implies it.")
@click.option("--grace", default=30.0, show_default=True, type=click.FloatRange(0, 3600),
              help="Seconds that guests have to power off by themselves.")  # fmt: skip
@click.option("--delete", is_flag=True, help="Also delete all state: accounts, volumes, images, keys.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask before deleting.")
def command(data: Path | None, *, keep_vms: bool, now: bool, grace: float, delete: bool, yes: bool) -> None:
    """Stop server and agent, shut the VMs down and take their network down. State stays, unless --delete."""
    from pileus.agent.run import AgentSettings
    from pileus.local.down import take_down
    from pileus.local.up import Running

    os.umask(0o077)
    folder = (data or default_data()).absolute()
    if delete and not yes:
        click.confirm(f"delete everything in {folder}, volumes of tenants included?", abort=True)
    running = Running.load(folder)
    if running is not None:
        end(running.pid)
        click.echo("server and agent stopped")
    elif not delete:
        click.echo(f"no cloud runs from {folder}")
    if not keep_vms and (folder / "host").exists():
        count = asyncio.run(take_down(AgentSettings(data=folder), 0.0 if now or delete else grace, click.echo))
        click.echo(f"{count} VMs powered off, network taken down")
    if delete:
        shutil.rmtree(AgentSettings(data=folder).paths.run, ignore_errors=True)
        shutil.rmtree(folder, ignore_errors=True)
        click.echo(f"deleted {folder}")


def end(pid: int) -> None:
    """End the process and wait until it is gone. Raises: ClickException when it does not end."""
    try:
        os.kill(pid, signal.SIGTERM)
        limit = time.monotonic() + STOP_TIMEOUT_S
        while time.monotonic() < limit:
            os.kill(pid, 0)
            time.sleep(0.05)
    except ProcessLookupError:
        return
    raise click.ClickException(f"process {pid} does not end; look at its log, or end it with kill -9 {pid}")
