"""``pileus lab``: a data centre in a box: hosts with real drivers, or very many simulated ones, on a real server."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pileus.cli.commands.server import default_data
from pileus.kernel.errors import PileusError, Rejected

if TYPE_CHECKING:
    from pileus.lab.site import Site
    from pileus.lab.topology import Host

SIMULATED_MAX = 25_000
HOSTS_MAX, ZONES_MAX = 64, 8
LINKS = ("mgmt", "trunk", "tunnel", "public")

data_option = click.option(
    "--data", type=click.Path(path_type=Path, file_okay=False), envvar="PILEUS_LAB", show_envvar=True,
    help="Folder of the lab's state.",
)  # fmt: skip
host_argument = click.argument("host")
links_argument = click.argument("links", metavar="[mgmt|trunk|tunnel|public]...", nargs=-1, type=click.Choice(LINKS))


@click.group("lab", invoke_without_command=True)
@click.option("--hosts", type=click.IntRange(1, HOSTS_MAX), metavar="N",
              help="Run N hosts with real QEMU and Open vSwitch, each in a network namespace; needs root.")  # fmt: skip
@click.option("--pods", type=click.IntRange(1, HOSTS_MAX), metavar="P",
              help="Spread the hosts over P pods.  [default: one per zone]")  # fmt: skip
@click.option("--zones", type=click.IntRange(1, ZONES_MAX), metavar="Z",
              help="Spread the pods over Z zones.  [default: 1]")  # fmt: skip
@click.option("--accelerator", type=click.Choice(["auto", "kvm", "tcg"]),
              help="What VMs run under; auto: KVM only if a test guest really runs under it.  [default: auto]")  # fmt: skip
@click.option("--simulated", type=click.IntRange(1, SIMULATED_MAX), metavar="N",
              help="Run N simulated hosts instead: for scale; their VMs do not exist. Needs no root.")  # fmt: skip
@click.option("--processes", type=click.IntRange(1, 64), help="Processes of the simulated hosts.  [default: 1]")
@click.option("--instant", is_flag=True, default=None,
              help="What simulated hosts do takes no time; else about as long as on real ones.")  # fmt: skip
@data_option
@click.option("--port", default=7443, show_default=True, type=click.IntRange(0, 65535), help="Port; 0: any free one.")
@click.option("--database", default="", help="postgresql://user:password@host:port/name; left out: SQLite in --data.")
@click.option("--detach", is_flag=True, help="Return once all hosts are ready; `pileus lab stop` stops it.")
@click.pass_context
def command(ctx: click.Context, /, data: Path | None, *, detach: bool, **how: Any) -> None:
    """Run a data centre in a box, and write the context `lab`. Choose one of two:

    --hosts N: to try Pileus. A few hosts with real VMs, rack switches, tunnels and a public segment with the test host
    `internet`, all in network namespaces without a way out; cut its cables, cut its hosts' power.

    --simulated N: to try its size. Up to 25,000 hosts that only pretend, with real agents on a real server.
    """
    if ctx.invoked_subcommand is not None:
        return
    from pileus.local.up import Running

    chosen = _chosen(ctx, {name: value for name, value in how.items() if value is not None})
    folder = _folder(data)
    running = Running.load(folder)
    if running is not None:
        click.echo(f"a lab runs here already, at {running.url or '(starting)'} (pid {running.pid})")
        return
    _check(folder, chosen)
    if detach:
        _detach(folder, chosen)
    else:
        _run(folder, chosen)


REAL, SIMULATED = ("pods", "zones", "accelerator"), ("processes", "instant")


def _chosen(ctx: click.Context, how: dict[str, Any]) -> dict[str, Any]:
    """Return the options that were said. Raises: UsageError when they do not go together."""
    if ("hosts" in how) == ("simulated" in how):
        raise click.UsageError(
            "say how many hosts: `pileus lab --hosts 3` runs real VMs, `pileus lab --simulated 1000` is for scale", ctx
        )
    wrong = [name for name in (SIMULATED if "hosts" in how else REAL) if name in how]
    if wrong:
        kind = "--simulated" if "hosts" in how else "--hosts"
        raise click.UsageError(f"--{wrong[0]} goes with {kind} only", ctx)
    if "hosts" in how:
        zones = how.setdefault("zones", 1)
        pods = how.setdefault("pods", zones)
        if not zones <= pods <= how["hosts"]:
            raise click.UsageError(
                f"{how['hosts']} hosts cannot fill {pods} pods in {zones} zones: every zone needs a pod, and every pod "
                "a host", ctx
            )  # fmt: skip
    return how


@command.command("status")
@data_option
def status(data: Path | None) -> None:
    """Say whether the lab runs, and how its hosts are."""
    from pileus.lab.site import Site
    from pileus.local.up import Running

    folder = _folder(data)
    running, site = Running.load(folder), Site.load(folder)
    if running is None:
        from pileus.lab.fabric import namespaces

        left = " (killed; `pileus lab stop` removes what is left of it)" if namespaces(folder) else ""
        raise Rejected(f"no lab runs from {folder}{left}")
    if not running.url:
        click.echo(f"the lab is starting (pid {running.pid})")
        return
    states = _states()
    ready = list(states.values()).count("true")
    click.echo(f"{running.url} (pid {running.pid}): {ready} of {len(states)} hosts ready")
    if site is not None:
        click.echo(asyncio.run(_table(site, states)))


@command.command("stop")
@data_option
@click.option("--now", is_flag=True, help="Do not ask the guests: cut their power. --delete implies it.")
@click.option("--delete", is_flag=True, help="Also delete its state.")
def stop(data: Path | None, *, now: bool, delete: bool) -> None:
    """Stop the lab: hosts, VMs and network. Its state stays, unless --delete. Also removes what a killed lab left.

    Guests have 10 seconds to power off; simulated VMs are gone as after a power cut.
    """
    from pileus.cli.commands.down import end
    from pileus.lab.datacentre import GRACE_S
    from pileus.lab.site import Site
    from pileus.local.up import Running

    folder = _folder(data)
    running, site = Running.load(folder), Site.load(folder)
    now = now or delete
    if site is not None and now:
        asyncio.run(_cut_power(site))
    if running is not None:
        end(running.pid)
    left = site is not None and asyncio.run(site.stop(0.0 if now else GRACE_S, _say))
    if running is not None or left:
        click.echo("lab stopped")
    elif not delete:
        click.echo(f"no lab runs from {folder}")
    if delete:
        shutil.rmtree(folder, ignore_errors=True)
        click.echo(f"deleted {folder}")


@command.command("cut")
@host_argument
@links_argument
@data_option
def cut(host: str, links: tuple[str, ...], data: Path | None) -> None:
    """Pull cables of a host: those said, or all.

    mgmt: to the server; trunk: VLANs of its pod; tunnel: VXLAN to other pods; public: the public segment.
    """
    site = _site(data)
    links = links or LINKS
    asyncio.run(site.fabric.cut(_host(site, host), links))
    click.echo(f"{host}: {', '.join(links)} cut; `pileus lab heal {host}` puts it right")


@command.command("heal")
@host_argument
@links_argument
@data_option
def heal(host: str, links: tuple[str, ...], data: Path | None) -> None:
    """Put the cables of a host back: those said, or all."""
    site = _site(data)
    links = links or LINKS
    asyncio.run(site.fabric.heal(_host(site, host), links))
    click.echo(f"{host}: {', '.join(links)} connected")


@command.command("kill")
@host_argument
@data_option
def kill(host: str, data: Path | None) -> None:
    """Cut the power of a host: agent, VMs and switch are killed at once. `pileus lab start` switches it on again."""
    site = _site(data)
    count = asyncio.run(site.kill_host(_host(site, host)))
    click.echo(f"{host}: {count} processes killed" if count else f"{host} is off already")


@command.command("start")
@host_argument
@data_option
def start(host: str, data: Path | None) -> None:
    """Switch a host on again."""
    site = _site(data)
    asyncio.run(site.start_host(_host(site, host)))
    click.echo(f"{host} starts; see `pileus lab status`")


@command.command("exec", context_settings={"ignore_unknown_options": True})
@click.argument("machine", metavar="NAME")
@click.argument("words", metavar="-- COMMAND", nargs=-1, required=True, type=click.UNPROCESSED)
@data_option
def execute(machine: str, words: tuple[str, ...], data: Path | None) -> None:
    """Run a command in the network of a machine of the lab; its exit code is the command's.

    NAME is a host (host1), the test host internet, the router core, a rack switch (pod1), the public switch of a zone
    (zone1), or mgmt.
    """
    from pileus.cli.failure import NOT_FOUND, Failure, suggestion

    site = _site(data)
    names = site.topology.machines
    if machine not in names:
        close = suggestion(machine, names) or f"; there are {', '.join(names)}"
        raise Failure(f"the lab has no machine {machine!r}{close}", exit_code=NOT_FOUND)
    if shutil.which(words[0]) is None:
        raise Rejected(f"{words[0]} is not installed on this machine")
    sys.exit(subprocess.call(["ip", "netns", "exec", site.fabric.namespace(machine), *words]))


def _folder(data: Path | None) -> Path:
    return (data or default_data().with_name("pileus-lab")).absolute()


def _check(folder: Path, chosen: dict[str, Any]) -> None:
    """Raises: ClickException when the folder holds another lab, or naming all that this machine lacks."""
    from pileus.lab.site import Site
    from pileus.local.doctor import require

    if "simulated" in chosen:
        if Site.load(folder) is not None:
            raise Rejected(
                f"{folder} holds a lab of real hosts; `pileus lab stop --delete` deletes it, "
                "or choose another folder with --data"
            )
        return
    if os.geteuid() != 0:
        raise Rejected("real hosts need root; run with sudo, or try `pileus lab --simulated 100`")
    require()


def _site(data: Path | None) -> Site:
    """Return the lab of real hosts that runs. Raises: ClickException."""
    from pileus.lab.site import Site
    from pileus.local.up import Running

    folder = _folder(data)
    site = Site.load(folder)
    if Running.load(folder) is None:
        raise Rejected(f"no lab runs from {folder}; start one with `pileus lab --hosts 3 --detach`")
    if site is None:
        raise Rejected("this lab has simulated hosts only; cables and power have those of --hosts")
    if os.geteuid() != 0:
        raise Rejected("this needs root; run with sudo")
    return site


def _host(site: Site, name: str) -> Host:
    """Return a host of the lab. Raises: Failure."""
    from pileus.cli.failure import NOT_FOUND, Failure

    for host in site.topology.hosts:
        if host.name == name:
            return host
    names = ", ".join(host.name for host in site.topology.hosts)
    raise Failure(f"the lab has no host {name!r}; its hosts: {names}", exit_code=NOT_FOUND)


async def _cut_power(site: Site) -> None:
    await asyncio.gather(*(site.kill_host(host) for host in site.topology.hosts))


def _states() -> dict[str, str]:
    """Return how ready each host is."""
    from pileus.cli.session import Session
    from pileus.cli.table import state_of

    session = Session("lab")
    try:
        pages = list(session.client.pages("/v1/infra.host", []))
    finally:
        session.close()
    return {host["name"]: state_of(host)[0] for page in pages for host in page["items"]}


async def _table(site: Site, states: dict[str, str]) -> str:
    from pileus.cli.table import plain

    cuts = await site.fabric.cuts()
    rows = []
    for host in site.topology.hosts:
        agent = site.agent(host)
        rows.append([
            host.name, host.pod.name, host.pod.zone.name, site.fabric.namespace(host.name),
            str(agent.pid) if agent else "off", states.get(host.name, "-"), ",".join(cuts[host.name]) or "-",
        ])  # fmt: skip
    return plain(("HOST", "POD", "ZONE", "NAMESPACE", "AGENT", "READY", "CUT"), rows)


def _run(folder: Path, chosen: dict[str, Any]) -> None:
    from pileus.cli.failure import leaves
    from pileus.server import logs

    if "hosts" in chosen:
        os.umask(0o077)  # whatever is made holds tenants' secrets
        logs.set_up()
    try:
        asyncio.run(_lab(folder, chosen)(_say, lambda url: _say(f"the lab is ready at {url}; try: pileus lab status")))
    except* PileusError as group:
        for error in leaves(group):
            click.echo(f"error: {error}", err=True)
        sys.exit(1)


def _lab(folder: Path, chosen: dict[str, Any]) -> Callable[..., Coroutine[Any, Any, None]]:
    """Return what runs the lab that was chosen."""
    if "simulated" in chosen:
        from pileus.lab import run as simulated

        how = {name: value for name, value in chosen.items() if name != "simulated"}
        lab = simulated.LabSettings(data=folder, hosts=chosen["simulated"], **how)
        return lambda *told: simulated.run(lab, *told)
    from pileus.lab import datacentre
    from pileus.lab.topology import Layout

    layout = Layout(hosts=chosen["hosts"], pods=chosen["pods"], zones=chosen["zones"])
    how = {name: value for name, value in chosen.items() if name not in ("hosts", "pods", "zones")}
    settings = datacentre.SiteSettings(data=folder, layout=layout, **how)
    return lambda *told: datacentre.run(settings, *told)


def _say(line: str) -> None:
    with contextlib.suppress(BrokenPipeError):  # who started it detached has what it waited for
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()


def _detach(folder: Path, chosen: dict[str, Any]) -> None:
    """Run the lab in the background and tell what it says until it is ready."""
    from pileus.cli.detached import run_detached
    from pileus.lab.run import last_words

    arguments = ["--data", str(folder)]
    for name, value in chosen.items():
        if value == "":
            continue
        arguments += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    log = folder / "lab.log"
    code = run_detached(["lab", *arguments], log, "the lab is ready")
    if code is not None:
        raise Rejected(f"the lab did not start (exit code {code}): {last_words(log)}")
