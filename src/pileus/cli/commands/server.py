"""``pileus server``: the server alone, without an agent on this machine."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from pileus.server.run import Started


def default_data() -> Path:
    """Return where state lies: /var/lib/pileus for root, else below the user's own data folder (XDG)."""
    if os.geteuid() == 0:
        return Path("/var/lib/pileus")
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local/share") / "pileus"


@click.command("server")
@click.option("--data", type=click.Path(path_type=Path, file_okay=False), help="Folder of the server's state.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=7443, show_default=True, type=click.IntRange(0, 65535), help="Port; 0: any free one.")
@click.option("--database", default="", help="postgresql://user:password@host:port/name; left out: SQLite in --data.")
@click.option("--tls-name", "tls_names", multiple=True, help="Further name or address by which clients reach it.")
@click.option("--name", default="", help="Name of this server among several; left out: the machine's.")
def command(data: Path | None, host: str, port: int, database: str, tls_names: tuple[str, ...], name: str) -> None:
    """Run the server alone, in the foreground; logs go to stderr as JSON lines. `pileus up` also runs an agent."""
    import uvloop

    from pileus.kernel.errors import PileusError
    from pileus.server import logs
    from pileus.server.run import ServerSettings, serve

    folder = (data or default_data()).absolute()
    settings = ServerSettings(data=folder, host=host, port=port, database=database, tls_names=tls_names, name=name)
    os.umask(0o077)  # whatever is made holds tenants' secrets
    logs.set_up()
    try:
        uvloop.run(serve(settings, lambda started: _announce(folder, started)))
    except PileusError as error:
        click.echo(f"error: {error.message}", err=True)
        sys.exit(1)


def _announce(folder: Path, started: Started) -> None:
    from pileus.server.ca import write_private

    path = folder / "operator-key"
    if started.operator_key is not None:
        # Into a file and not to the terminal or journal, which keep what passes; before anybody hears of a server.
        write_private(path, started.operator_key.encode() + b"\n")
    click.echo(f"server ready at {started.url}")
    if started.operator_key is not None:
        click.echo(f"the first administrator's key is in {path} (shown nowhere else; sign in, then delete the file):")
        click.echo(f'  pileus login --server {started.url} --ca {folder / "tls/ca.crt"} --key "$(cat {path})"')
