"""``pileus ovf export``: stopped VMs as a package that other tools read."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pileus.cli.client import Json, segment
from pileus.cli.failure import REFUSED, Failure, usage
from pileus.cli.progress import Bar, slow
from pileus.cli.session import Session, account_option, noun, root
from pileus.registry import KINDS

if TYPE_CHECKING:
    from pileus.ovf.archiving import Entry
    from pileus.ovf.exporting import PackedDisk
    from pileus.ovf.model import Machine
    from pileus.ovf.signing import Signer

VM, VOLUME = KINDS["compute.vm"], KINDS["storage.volume"]
GIB = 1 << 30
HEADER_BYTES = 512

_pem = click.Path(path_type=Path, dir_okay=False, exists=True)


@click.command("export", no_args_is_help=True)
@click.argument("names", nargs=-1, required=True, metavar="VM...")
@account_option
@click.option("-o", "--output", "out", type=click.Path(path_type=Path), required=True, metavar="FILE.ova|FOLDER",
              help="A new archive, or a new folder.")  # fmt: skip
@click.option("--name", default="", metavar="NAME", help="Of the package.  [default: the VM's, or the file's]")
@click.option("--key", type=_pem, metavar="PEM", help="Sign it with this RSA key.")
@click.option("--cert", "certificate", type=_pem, metavar="PEM", help="The key's X.509 certificate.")
@click.pass_obj
def command(
    session: Session, /, names: tuple[str, ...], account: str, out: Path, name: str, **keys: Path | None
) -> None:
    """Export stopped VMs with their disks, one or several as one package.

    Each disk is packed on its host and lies beside the package until that is whole: there must be room for all disks twice.
    """
    from pileus.cli.commands.ovf_sign import load

    key, certificate = keys["key"], keys["certificate"]
    if (key is None) != (certificate is None):
        raise usage("--key and --cert go together")
    if out.exists():
        raise usage(f"{out} is there already", "name a file that is not")
    signer = load(key, certificate) if key is not None and certificate is not None else None
    vms = [session.get(VM, one.removeprefix("vm/"), account) for one in dict.fromkeys(names)]
    for vm in vms:
        _check_stopped(vm)
    work = out.with_name(f".{out.name}.partial")
    shutil.rmtree(work, ignore_errors=True)
    try:
        work.mkdir(parents=True)
        entries = _packed(session, vms, work, name or (vms[0]["name"] if len(vms) == 1 else out.stem), signer)
        _write(entries, out, work)
    except OSError as error:
        raise Failure(f"{out} was not written: {error}", exit_code=REFUSED) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    click.echo(f"{out}: {len(vms)} VM{'s' if len(vms) != 1 else ''}, {sum(one.size_bytes for one in entries)} bytes")


def _check_stopped(vm: Json) -> None:
    """Raises: Failure for a VM that may write to its disks."""
    if vm["desired"]["power"] != "stopped" or (vm["observed"] or {}).get("power") not in ("stopped", "absent"):
        account = f" --account {vm['account']}" if vm["account"] else ""
        raise Failure(
            f"{noun(VM, vm)} is not stopped: its disks would change while they are read",
            exit_code=REFUSED, hint=f"`pileus stop vm {vm['name']}{account} --wait`, then export it",
        )  # fmt: skip


def _packed(session: Session, vms: list[Json], work: Path, name: str, signer: Signer | None) -> list[Entry]:
    """Return the files of the package; its disks lie in ``work``."""
    from pileus.ovf.describing import Appliance
    from pileus.ovf.exporting import package
    from pileus.ovf.model import Network

    packed: dict[str, PackedDisk] = {}
    machines = []
    for vm in vms:
        disks = [(f"{vm['name']}-{number}", id) for number, id in enumerate(vm["assigned"]["volumes"])]
        for disk_id, volume in disks:
            packed[disk_id] = _fetched(session, volume, vm, work / f"{disk_id}.vmdk")
        machines.append(_machine(vm, {disk_id: packed[disk_id].capacity_bytes for disk_id, _ in disks}))
    networks = dict.fromkeys(nic.network for machine in machines for nic in machine.nics)
    appliance = Appliance(id=name, machines=tuple(machines), networks=tuple(Network(name=one) for one in networks))
    return package(appliance, packed, signer)


def _machine(vm: Json, disks: dict[str, int]) -> Machine:
    from pileus.ovf.model import Machine, MachineDisk, MachineNic

    return Machine(
        id=vm["name"],
        name=vm["name"],
        vcpus=vm["assigned"]["vcpus"],
        memory_mib=vm["assigned"]["memory_mib"],
        firmware=vm["assigned"].get("firmware", "bios"),
        disks=tuple(
            MachineDisk(disk_id=id, capacity_bytes=capacity, bus="virtio", unit=unit)
            for unit, (id, capacity) in enumerate(disks.items())
        ),
        nics=tuple(MachineNic(model="virtio", network=nic["network"]) for nic in vm["desired"]["nics"]),
        transports=("iso",),
    )


def _fetched(session: Session, volume: str, vm: Json, path: Path) -> PackedDisk:
    """Return a volume that its host packed, in the new file ``path``. Raises: Failure."""
    from pileus.ovf.exporting import PackedDisk
    from pileus.ovf.faults import OvfFault
    from pileus.ovf.vmdk import read_header

    digest = hashlib.sha256()
    label = f"a disk of {noun(VM, vm)}"
    chunks = session.client.download(f"{root(VOLUME)}/{segment(volume)}/content", [("account", vm["account"])])
    with slow(f"{label} is copied on its host"):
        first = next(chunks, b"")
    with path.open("xb") as file, _bar(label) as bar:
        for chunk in _with_first(first, chunks):
            digest.update(chunk)
            file.write(chunk)
            bar.add(len(chunk))
        size = file.tell()
    try:
        with path.open("rb") as file:
            header = read_header(file.read(HEADER_BYTES))
    except OvfFault as fault:
        raise Failure(f"{label} came damaged: {fault}; try again", exit_code=REFUSED) from None
    return PackedDisk(
        path=path, capacity_bytes=header.capacity_bytes, populated_bytes=min(size, header.capacity_bytes),
        size_bytes=size, sha256=digest.hexdigest(),
    )  # fmt: skip


@contextlib.contextmanager
def _bar(label: str) -> Iterator[Bar]:
    bar = Bar(label, None)
    try:
        yield bar
    finally:
        bar.close()


def _with_first(first: bytes, chunks: Iterator[bytes]) -> Iterator[bytes]:
    yield first
    yield from chunks


def _write(entries: list[Entry], out: Path, work: Path) -> None:
    """Write the archive or the folder; it appears whole."""
    from pileus.ovf.archiving import write_archive, write_folder

    made = work / "package"
    if out.suffix.lower() != ".ova":
        made.mkdir()
        write_folder(made, entries)
    else:
        with made.open("xb") as file:
            write_archive(file.write, entries)
            file.flush()
            os.fsync(file.fileno())
    made.rename(out)
