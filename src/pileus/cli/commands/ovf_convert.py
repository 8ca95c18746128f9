"""``pileus ovf convert``: a package's disks as qcow2 or raw, and what its VMs are."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from pileus.cli.failure import REFUSED, Failure, usage
from pileus.cli.ovf_files import file_argument, opened, say, trust_option
from pileus.cli.units import human_bytes

if TYPE_CHECKING:
    from pileus.ovf.disks import Form


@click.command("convert")
@file_argument
@click.option("--to", "folder", type=click.Path(path_type=Path), required=True, metavar="FOLDER", help="A new folder.")
@click.option(
    "--format", "form", type=click.Choice(["qcow2", "raw"]), default="qcow2", show_default=True, help="Of the disks."
)
@click.option("--configuration", default="", metavar="ID", help="The deployment option.  [default: the package's]")
@trust_option
def command(file: Path, folder: Path, form: Form, configuration: str, trust: tuple[Path, ...]) -> None:
    """Convert every disk of a package, and write what its VMs are to machines.json.

    Each disk is compared with the manifest on its way, and the folder appears when all are right. Disks that are neither
    streamOptimized VMDK nor raw are converted by qemu-img, in a jail that only root can make.
    """
    from pileus.cli.ovf_jail import convert as converter
    from pileus.cli.progress import Bar
    from pileus.ovf.converting import MACHINES, Wish, convert
    from pileus.ovf.machines import Choice

    if folder.exists():
        raise usage(f"{folder} is there already", "name a folder that is not")
    with opened(file, trust) as package:
        sizes = [one.size_bytes for one in package.envelope.files]
        bar = Bar(file.name, sum(size or 0 for size in sizes) if None not in sizes else None)
        wish = Wish(form=form, choice=Choice(configuration=configuration))
        try:
            made = convert(package, folder, wish, converter, bar.add)
        except OSError as exc:
            raise Failure(f"{file} was not converted: {exc}", exit_code=REFUSED) from exc
        finally:
            bar.close()
        say(package.faults.found)
    for disk in made.disks:
        click.echo(f"{folder / disk.file}: {human_bytes(disk.capacity_bytes)}, {disk.found or 'blank'}")
    click.echo(f"{folder / MACHINES}: {len(made.machines)} VM{'s' if len(made.machines) != 1 else ''}")
