"""``pileus lab``: a data centre in a box, for scale: simulated hosts with real agents on a real server."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pileus.cli.commands.server import default_data

if TYPE_CHECKING:
    from pileus.lab.run import LabSettings

HOSTS_MAX = 25_000

data_option = click.option(
    "--data", type=click.Path(path_type=Path, file_okay=False), help="Folder of the lab's state."
)


@click.group("lab", invoke_without_command=True)
@click.option("--simulated", "hosts", type=click.IntRange(1, HOSTS_MAX), metavar="N", help="How many simulated hosts.")
@data_option
@click.option("--port", default=7443, show_default=True, type=click.IntRange(0, 65535), help="Port; 0: any free one.")
@click.option("--processes", default=1, show_default=True, type=click.IntRange(1, 64), help="Processes of the hosts.")
@click.option("--database", default="", help="postgresql://user:password@host:port/name; left out: SQLite in --data.")
@click.option("--instant", is_flag=True, help="What hosts do takes no time; else about as long as on real ones.")
@click.option("--detach", is_flag=True, help="Return once all hosts are ready; `pileus lab stop` stops it.")
@click.pass_context
def command(ctx: click.Context, /, hosts: int | None, data: Path | None, **how: object) -> None:
    """Run a data centre in a box: a server, and simulated hosts with real agents. Writes the context `lab`.

    Makes a zone, a pod for every 40 hosts, the offerings and the image tiny.
    """
    if ctx.invoked_subcommand is not None:
        return
    if hosts is None:
        raise click.UsageError("say how many hosts: `pileus lab --simulated 100`", ctx)
    from pileus.lab.run import LabSettings
    from pileus.local.up import Running

    folder = _folder(data)
    running = Running.load(folder)
    if running is not None:
        click.echo(f"a lab runs here already, at {running.url} (pid {running.pid})")
        return
    detach = how.pop("detach")
    settings = LabSettings(data=folder, hosts=hosts, **how)  # type: ignore[arg-type]
    if detach:
        _detach(settings)
    else:
        _run(settings)


@command.command("status")
@data_option
def status(data: Path | None) -> None:
    """Say whether the lab runs, and how its hosts are."""
    from pileus.cli.session import Session
    from pileus.local.up import Running

    folder = _folder(data)
    running = Running.load(folder)
    if running is None:
        raise click.ClickException(f"no lab runs from {folder}")
    session = Session("lab")
    pages = list(session.client.pages("/v1/infra.host", []))
    hosts = [host["conditions"][0]["status"] for page in pages for host in page["items"]]
    session.close()
    click.echo(f"{running.url} (pid {running.pid}): {hosts.count('true')} of {len(hosts)} hosts ready")


@command.command("stop")
@data_option
@click.option("--delete", is_flag=True, help="Also delete its state.")
def stop(data: Path | None, *, delete: bool) -> None:
    """Stop the lab. Its state stays, unless --delete; the simulated VMs are gone as after a power cut."""
    import shutil

    from pileus.cli.commands.down import end
    from pileus.local.up import Running

    folder = _folder(data)
    running = Running.load(folder)
    if running is not None:
        end(running.pid)
        click.echo("lab stopped")
    elif not delete:
        click.echo(f"no lab runs from {folder}")
    if delete:
        shutil.rmtree(folder, ignore_errors=True)
        click.echo(f"deleted {folder}")


def _folder(data: Path | None) -> Path:
    return (data or default_data().with_name("pileus-lab")).absolute()


def _run(settings: LabSettings) -> None:
    from pileus.kernel.errors import PileusError
    from pileus.lab.run import run

    try:
        asyncio.run(run(settings, _say, lambda url: _say(f"the lab is ready at {url}; try: pileus lab status")))
    except* PileusError as group:
        for error in leaves(group):
            click.echo(f"error: {error}", err=True)
        sys.exit(1)


def leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    """Return the exceptions of a group and of the groups in it."""
    found: list[BaseException] = []
    for each in group.exceptions:
        found.extend(leaves(each) if isinstance(each, BaseExceptionGroup) else [each])
    return found


def _say(line: str) -> None:
    with contextlib.suppress(BrokenPipeError):  # who started it detached has what it waited for
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()


def _detach(settings: LabSettings) -> None:
    """Run the lab in the background and tell what it says until it is ready."""
    settings.data.mkdir(parents=True, exist_ok=True, mode=0o700)
    arguments = ["--simulated", str(settings.hosts), "--data", str(settings.data), "--port", str(settings.port)]
    arguments += ["--processes", str(settings.processes), *(["--instant"] if settings.instant else [])]
    arguments += ["--database", settings.database] if settings.database else []
    log = settings.data / "lab.log"
    with log.open("ab") as errors:
        child = subprocess.Popen(
            [sys.executable, "-m", "pileus.cli.main", "lab", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            start_new_session=True,
            text=True,
        )
    assert child.stdout is not None
    for line in child.stdout:
        click.echo(line.rstrip())
        if line.startswith("the lab is ready"):
            return
    lines = log.read_text(errors="replace").splitlines()
    raise click.ClickException(f"the lab did not start (exit code {child.wait()}): {' | '.join(lines[-3:])}")
