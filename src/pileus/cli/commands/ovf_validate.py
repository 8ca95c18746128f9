"""``pileus ovf validate``: everything that can be wrong with a package, all of it said at once."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from pileus.cli.ovf_files import file_argument, opened, refused, say, trust_option
from pileus.cli.progress import clean

if TYPE_CHECKING:
    from pileus.ovf.package import Package


@click.command("validate")
@file_argument
@trust_option
def command(file: Path, trust: tuple[Path, ...]) -> None:
    """Check a package: a folder, a descriptor (.ovf) or an archive (.ova).

    Every file is read and compared with the manifest; each fault is a line: file:line: message (code). The exit code is 1
    when the package is refused.
    """
    from pileus.cli.progress import Bar
    from pileus.ovf.validation import validate

    with opened(file, trust) as package:
        sizes = [one.size_bytes for one in package.envelope.files]
        bar = Bar(file.name, sum(size or 0 for size in sizes) if None not in sizes else None)
        try:
            validate(package, bar.add)
        finally:
            bar.close()
        found = package.faults.found
        say(found)
        if package.faults.refused:
            raise refused(file, found)
        click.echo(f"{file} is sound; {_proof(package)}")


def _proof(package: Package) -> str:
    """Return what the package proves of itself."""
    signature = package.signature
    if package.manifest is None:
        return "it has no manifest, so nothing tells whether it was changed"
    if signature is None:
        return "it is what its manifest says, and nobody signed it"
    return clean(f"signature: {signature.state}, {signature.subject}")
