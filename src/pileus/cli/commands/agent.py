"""``pileus agent``: a host's agent alone."""

from __future__ import annotations

import ipaddress
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pileus.cli.commands.server import default_data

if TYPE_CHECKING:
    from pileus.agent.run import AgentSettings
    from pileus.drivers.host.ovs.base import Uplinks


DEVICE = re.compile(r"[A-Za-z0-9_.-]{1,15}")
"""Names of network devices that need no thought (IFNAMSIZ)."""


class Device(click.ParamType[str]):
    """Parses the name of a network device; empty, the default, is none."""

    name = "device"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the name. Raises: UsageError."""
        if value and not DEVICE.fullmatch(str(value)):
            self.fail(f"{value!r} is no name of a network device: at most 15 letters, digits and _ . -", param, ctx)
        return str(value)


@click.command("agent")
@click.option("--data", type=click.Path(path_type=Path, file_okay=False), help="Folder of the agent's state.")
@click.option("--server", default="", help="https://… of the cloud; needed once, with --token.")
@click.option("--token", default="", help="One-time join token, see `pileus join-token HOST`; needed once.")
@click.option("--accelerator", default="auto", show_default=True, type=click.Choice(["auto", "kvm", "tcg"]),
              help="What VMs run under; auto: KVM only if a test guest really runs under it.")  # fmt: skip
@click.option("--network", default="", metavar="NAMESPACE",
              help="Network namespace with the devices below, made before; left out: one of the agent's own.")  # fmt: skip
@click.option("--trunk", type=Device(), default="",
              help="Carries the VLANs of the guests, tagged, to the other hosts of the pod.")  # fmt: skip
@click.option("--tunnel", type=Device(), default="",
              help="Carries VXLAN to the hosts of other pods; needs --tunnel-address, and an MTU of 1550 or more.")  # fmt: skip
@click.option("--tunnel-address", default="", metavar="ADDRESS/LENGTH",
              help="This host's IPv4 address on --tunnel, such as 10.200.1.11/24.")  # fmt: skip
@click.option("--tunnel-gateway", default="", metavar="ADDRESS", help="The way to the tunnels of other pods.")
@click.option("--public", type=Device(), default="",
              help="Carries the zone's public segment, untagged, to routing appliances.")  # fmt: skip
@click.option("--clamd", type=click.Path(path_type=Path), default="/run/clamav/clamd.ctl", show_default=True,
              help="Socket of this host's ClamAV daemon, if it has one.")  # fmt: skip
def command(
    data: Path | None, server: str, token: str, accelerator: str, network: str, clamd: Path, **links: str
) -> None:
    """Run this host's agent in the foreground; logs go to stderr as JSON lines. VMs go on when it ends.

    --trunk, --tunnel and --public say how this host meets others; they lie in the namespace --network. Without them
    the networks of its VMs end at this host.
    """
    import asyncio

    from pileus.agent.run import AgentSettings
    from pileus.kernel.errors import PileusError
    from pileus.local.doctor import require
    from pileus.server import logs

    uplinks = read_uplinks(**links)
    if any(links.values()) and not network:
        raise click.UsageError("--trunk, --tunnel and --public are in a network namespace; say which with --network")
    require()
    folder = (data or default_data()).absolute()
    settings = AgentSettings(
        data=folder,
        accelerator=accelerator,  # type: ignore[arg-type]
        network=network,
        uplinks=uplinks,
        clamd=clamd.absolute(),
    )
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


def read_uplinks(trunk: str, tunnel: str, tunnel_address: str, tunnel_gateway: str, public: str) -> Uplinks:
    """Return the uplinks. Raises: UsageError."""
    from pileus.drivers.host.ovs.base import Uplinks

    if bool(tunnel) != bool(tunnel_address):
        raise click.UsageError("--tunnel and --tunnel-address go together: the device, and this host's address on it")
    if tunnel_gateway and not tunnel:
        raise click.UsageError("--tunnel-gateway is the way out of a tunnel's network; say which with --tunnel")
    if tunnel_address:
        _check_tunnel(tunnel_address, tunnel_gateway)
    used = [device for device in (trunk, tunnel, public) if device]
    if len(used) != len(set(used)):
        raise click.UsageError("--trunk, --tunnel and --public are devices of their own; two of them are the same")
    return Uplinks(
        trunk=trunk, tunnel=tunnel, tunnel_address=tunnel_address, tunnel_gateway=tunnel_gateway, public=public
    )


def _check_tunnel(address: str, gateway: str) -> None:
    try:
        place = ipaddress.IPv4Interface(address)
        if "/" not in address or place.ip in (place.network.network_address, place.network.broadcast_address):
            raise ValueError
    except ValueError:
        raise click.UsageError(
            f"--tunnel-address takes a host's IPv4 address with its prefix length, such as 10.200.1.11/24, not {address!r}"
        ) from None
    if not gateway:
        return
    try:
        way = ipaddress.IPv4Address(gateway)
    except ValueError:
        raise click.UsageError(f"--tunnel-gateway takes an IPv4 address, not {gateway!r}") from None
    if way not in place.network or way == place.ip:
        raise click.UsageError(f"--tunnel-gateway {gateway} is not another address of {place.network}")


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
