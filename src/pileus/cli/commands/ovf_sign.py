"""``pileus ovf sign``: a package with the signature of whoever vouches for it."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pileus.cli.failure import REFUSED, Failure, usage
from pileus.cli.ovf_files import file_argument, refused, say

if TYPE_CHECKING:
    from pileus.ovf.signing import Signer

PASSPHRASE = "PILEUS_KEY_PASSPHRASE"  # noqa: S105 (the name of a variable)

_pem = click.Path(path_type=Path, dir_okay=False, exists=True)


@click.command("sign")
@file_argument
@click.option("--key", type=_pem, required=True, metavar="PEM", help="An RSA key.")
@click.option(
    "--cert", "certificate", type=_pem, required=True, metavar="PEM",
    help="Its X.509 certificate, and those between it and the root.",
)  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), metavar="OVA",
              help="A new archive.  [default: the package itself is signed]")  # fmt: skip
def command(file: Path, key: Path, certificate: Path, out: Path | None) -> None:
    """Sign a package: a folder, a descriptor (.ovf) or an archive (.ova).

    Every file is compared with the manifest first, and the manifest is written anew with SHA-256. The passphrase of an
    encrypted key is taken from PILEUS_KEY_PASSPHRASE.
    """
    from pileus.cli.progress import Bar
    from pileus.ovf.faults import OvfFault
    from pileus.ovf.sealing import seal

    if out is not None and out.exists():
        raise usage(f"{out} is there already", "name a file that is not")
    signer = load(key, certificate)
    bar = Bar(file.name, None)
    try:
        made = seal(file, signer, out, read=bar.add)
    except OvfFault as fault:
        bar.close()
        say(fault.faults)
        raise refused(file, fault.faults) from None
    except OSError as exc:
        raise Failure(f"{file} was not signed: {exc}", exit_code=REFUSED) from exc
    finally:
        bar.close()
    click.echo(f"{made} is signed by {signer.subject}")


def load(key: Path, certificate: Path) -> Signer:
    """Return who signs with this key. Raises: Failure."""
    from pileus.kernel.clock import system_clock
    from pileus.ovf.faults import OvfFault
    from pileus.ovf.signing import load_signer

    passphrase = os.environ.get(PASSPHRASE)
    now = datetime.fromtimestamp(system_clock(), UTC)
    try:
        return load_signer(key.read_bytes(), certificate.read_bytes(), now, passphrase.encode() if passphrase else None)
    except OvfFault as fault:
        say(fault.faults)
        raise refused(certificate, fault.faults) from None
    except OSError as exc:
        raise Failure(f"{exc.filename} cannot be read: {exc.strerror}", exit_code=REFUSED) from exc
