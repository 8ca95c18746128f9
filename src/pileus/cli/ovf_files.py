"""What the verbs of ``pileus ovf`` have in common: opening a package, and saying what is wrong with it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pileus.cli.failure import REFUSED, Failure
from pileus.cli.progress import clean

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

    from pileus.ovf.faults import Fault
    from pileus.ovf.package import StoredPackage
    from pileus.ovf.signature import Trust


file_argument = click.argument("file", type=click.Path(path_type=Path))
trust_option = click.option(
    "--trust", type=click.Path(path_type=Path, dir_okay=False, exists=True), multiple=True, metavar="PEM",
    help="Certificates whose signatures are believed; may be said again.",
)  # fmt: skip


@contextlib.contextmanager
def opened(file: Path, trust: Iterable[Path] = (), language: str = "") -> Iterator[StoredPackage]:
    """Open a package. A fault in the block ends the command, after its lines are said."""
    from pileus.ovf.faults import OvfFault
    from pileus.ovf.package import open_package

    try:
        with open_package(file, language=language, trust=_trust(trust)) as package:
            yield package
    except OvfFault as fault:
        say(fault.faults)
        raise refused(file, fault.faults) from None


def refused(file: Path, faults: Iterable[Fault]) -> Failure:
    """Return the failure of a package with these faults."""
    count = sum(fault.severity == "error" for fault in faults)
    return Failure(f"{file} is refused: {count} error{'s' if count != 1 else ''}", exit_code=REFUSED)


def say(faults: Iterable[Fault]) -> None:
    """Write each fault as one line on standard error, the errors last, where they are seen."""
    order = {"note": 0, "warning": 1, "error": 2}
    for fault in sorted(faults, key=lambda fault: (order[fault.severity], fault.file, fault.line)):
        place = f"{fault.file}:{fault.line}: " if fault.line else f"{fault.file}: " if fault.file else ""
        mild = "" if fault.severity == "error" else f"{fault.severity}: "
        click.echo(clean(f"{place}{mild}{fault.message} ({fault.code})"), err=True)


def _trust(files: Iterable[Path]) -> Trust:
    from pileus.kernel.clock import system_clock
    from pileus.ovf.signature import Trust

    return Trust(at=datetime.fromtimestamp(system_clock(), UTC), roots=tuple(_roots(files)))


def _roots(files: Iterable[Path]) -> Iterator[Certificate]:
    for file in files:
        from pileus.ovf.certificate import read_roots

        yield from read_roots(file.read_bytes(), file.name)
