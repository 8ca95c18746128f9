"""``pileus image build``: images made on this machine from Debian packages."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from pileus.image.build import Recipe


@click.group("image")
def command() -> None:
    """Build images on this machine."""


@command.command("build")
@click.argument("name", type=click.Choice(["appliance", "debian-qga", "tiny"]))
@click.option("--output", type=click.Path(path_type=Path, file_okay=False), help="Folder; left out: the image cache.")
@click.option("--if-missing", is_flag=True, help="Do nothing when the image is there and current.")
@click.option("--name", "own_name", help="Name of an appliance of your own.")
@click.option(
    "--program", "programs", multiple=True, metavar="ROLE=FILE",
    help="Put the program FILE into the appliance as the role ROLE; may be repeated.",
)  # fmt: skip
@click.option("--package", "packages", multiple=True, help="Debian package that the programs need; may be repeated.")
@click.option("--module", "modules", multiple=True, help="Kernel module that they need; may be repeated.")
def build_image(name: str, output: Path | None, *, if_missing: bool, **own: Any) -> None:
    """Build an image from Debian packages.

    tiny is the default image of tenants (kernel, busybox, web server, SSH, NoCloud); appliance is what routers run;
    debian-qga is a foreign appliance that has nothing but the QEMU guest agent, for tests. With --program, appliance
    becomes one of your own.
    """
    from pileus.image.build import build
    from pileus.image.cache import cache_folder
    from pileus.image.recipes import current_image
    from pileus.kernel.errors import PileusError

    began = time.monotonic()
    try:
        recipe = _recipe(name, **own)
        folder = (output or cache_folder(recipe.name)).absolute()
        if if_missing and current_image(recipe.name, folder, recipe) is not None:
            click.echo(f"image {recipe.name} is in {folder}")
            return
        built = build(recipe, folder, lambda line: click.echo(f"  {line}"))
    except PileusError as error:
        click.echo(f"error: {error.message}", err=True)
        sys.exit(1)
    size_mib = built.disk.stat().st_size / 2**20
    click.echo(
        f"image {built.name} {built.version}: {built.disk} ({size_mib:.0f} MiB) in {time.monotonic() - began:.0f} s"
    )


def _recipe(
    name: str,
    own_name: str | None,
    programs: tuple[str, ...],
    packages: tuple[str, ...],
    modules: tuple[str, ...],
) -> Recipe:
    """Return the recipe of ``name``, with what is put into it. Raises: BuildError."""
    from pileus.image.appliance_build import appliance_with
    from pileus.image.recipes import RECIPES

    if not (own_name or programs or packages or modules):
        return RECIPES[name]
    if name != "appliance" or not own_name or own_name in RECIPES:
        raise click.UsageError("programs, packages and modules go into an appliance with a --name of its own")
    return appliance_with(own_name, dict(map(_program, programs)), packages, modules)


def _program(said: str) -> tuple[str, bytes]:
    """Return role and content of ``ROLE=FILE``."""
    role, _, file = said.partition("=")
    try:
        return role, Path(file).read_bytes()
    except OSError as failed:
        raise click.UsageError(f"--program {said}: {failed.strerror}; give ROLE=FILE") from failed
