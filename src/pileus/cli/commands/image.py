"""``pileus image build``: images made on this machine from Debian packages."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import click


@click.group("image")
def command() -> None:
    """Build images on this machine."""


@command.command("build")
@click.argument("name", type=click.Choice(["appliance", "debian-qga", "tiny"]))
@click.option("--output", type=click.Path(path_type=Path, file_okay=False), help="Folder; left out: the image cache.")
@click.option("--if-missing", is_flag=True, help="Do nothing when the image is there and current.")
def build_image(name: str, output: Path | None, *, if_missing: bool) -> None:
    """Build an image from Debian packages.

    tiny is the default image of tenants (kernel, busybox, web server, SSH, NoCloud); appliance is what routers run;
    debian-qga is a foreign appliance that has nothing but the QEMU guest agent, for tests.
    """
    from pileus.image.build import build
    from pileus.image.cache import cache_folder
    from pileus.image.recipes import RECIPES, current_image
    from pileus.kernel.errors import PileusError

    folder = (output or cache_folder(name)).absolute()
    if if_missing and current_image(name, folder) is not None:
        click.echo(f"image {name} is in {folder}")
        return
    began = time.monotonic()
    try:
        built = build(RECIPES[name], folder, lambda line: click.echo(f"  {line}"))
    except PileusError as error:
        click.echo(f"error: {error.message}", err=True)
        sys.exit(1)
    size_mib = built.disk.stat().st_size / 2**20
    click.echo(
        f"image {built.name} {built.version}: {built.disk} ({size_mib:.0f} MiB) in {time.monotonic() - began:.0f} s"
    )
