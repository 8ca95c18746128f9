"""``pileus up``: a whole cloud on this machine, in the foreground or detached."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pileus.cli import contexts
from pileus.cli.commands.server import default_data

if TYPE_CHECKING:
    from pileus.local.up import UpSettings
    from pileus.server.run import Started

START_TIMEOUT_S = 180.0


@click.command("up")
@click.option("--data", type=click.Path(path_type=Path, file_okay=False), help="Folder of the cloud's state.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=7443, show_default=True, type=click.IntRange(0, 65535), help="Port; 0: any free one.")
@click.option("--database", default="", help="postgresql://user:password@host:port/name; left out: SQLite in --data.")
@click.option("--accelerator", default="auto", show_default=True, type=click.Choice(["auto", "kvm", "tcg"]),
              help="What VMs run under; auto: KVM only if a test guest really runs under it.")  # fmt: skip
@click.option("--detach", is_flag=True, help="Return once the cloud is ready; `pileus down` stops it.")
def command(data: Path | None, host: str, port: int, database: str, accelerator: str, *, detach: bool) -> None:
    """Start server and agent on this machine, and write the context `local`.

    Makes zone, pod, host and pool `local`, the offerings tiny, small and medium, and the image tiny.
    """
    from pileus.local.doctor import require
    from pileus.local.up import Running, UpSettings

    folder = (data or default_data()).absolute()
    require()
    running = Running.load(folder)
    if running is not None:
        click.echo(f"a cloud runs here already, at {running.url} (pid {running.pid})")
        if contexts.load().contexts.get("local") is None:
            click.echo("its context was lost; `pileus down --keep-vms`, then `pileus up` write it again")
        return
    if detach:
        _detach(folder, ["--data", str(folder), "--host", host, "--port", str(port), "--accelerator", accelerator,
                         *(["--database", database] if database else [])])  # fmt: skip
        return
    _run(UpSettings(data=folder, host=host, port=port, database=database, accelerator=accelerator))  # type: ignore[arg-type]


def _run(settings: UpSettings) -> None:
    import asyncio

    from pileus.cli.failure import leaves
    from pileus.kernel.errors import PileusError
    from pileus.local.up import up
    from pileus.server import logs

    os.umask(0o077)  # whatever is made holds tenants' secrets
    logs.set_up()
    try:
        asyncio.run(up(settings, _say, _ready))  # not uvloop: its subprocesses inherit sockets and know no umask
    except* PileusError as group:
        for error in leaves(group):
            click.echo(f"error: {error}", err=True)
        sys.exit(1)


def _say(line: str) -> None:
    click.echo(line)
    sys.stdout.flush()


def _ready(started: Started) -> None:
    _say(f"the cloud is ready at {started.url}; try: pileus create account acme")


def _detach(folder: Path, arguments: list[str]) -> None:
    """Run the cloud in the background and tell what it says until it is ready."""
    from pileus.cli.detached import run_detached

    log = folder / "pileus.log"
    code = run_detached(["up", *arguments], log, "the cloud is ready", START_TIMEOUT_S)
    if code is None:
        return
    click.echo(f"error: the cloud did not start (exit code {code}); the last lines of {log}:", err=True)
    for line in log.read_text(errors="replace").splitlines()[-5:]:
        click.echo(f"  {line}", err=True)
    sys.exit(1)
