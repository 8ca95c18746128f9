"""``pileus ovf import``: a package's VMs in the cloud, or a package of a fleet manager."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pileus.cli.client import Json, segment
from pileus.cli.failure import REFUSED, Failure, usage
from pileus.cli.ovf_files import file_argument, opened, say, trust_option
from pileus.cli.progress import Bar, clean
from pileus.cli.session import Session, account_option, noun, root
from pileus.cli.waiting import READY, Timeout, wait_for
from pileus.registry import KINDS

if TYPE_CHECKING:
    from pileus.cli.ovf_making import Making
    from pileus.cli.ovf_plan import Plan, PlannedImage, PlannedVm, Terms
    from pileus.ovf.package import StoredPackage

VM, VOLUME, NETWORK, IMAGE, PACKAGE = (
    KINDS[name] for name in ("compute.vm", "storage.volume", "network.network", "storage.image", "fleet.package")
)
IMPORT_TIMEOUT_S = 3600.0
PACKAGE_ONLY = ("manager", "version", "channel", "role", "guest_agent")


@click.command("import")
@file_argument
@account_option
@click.option("--name", "prefix", default="", metavar="NAME",
              help="Name of the VM, or what the names of several begin with.  [default: the package's]")  # fmt: skip
@click.option("--network", "networks", multiple=True, metavar="[OVF=]NETWORK",
              help="Network of the account for one of the package; without OVF= for all others.")  # fmt: skip
@click.option(
    "--property", "properties", multiple=True, metavar="KEY=VALUE", help="Value of a property of the package."
)
@click.option("--configuration", default="", metavar="ID", help="The deployment option.  [default: the package's]")
@click.option("--accept-eulas", is_flag=True, help="Accept the package's licences, which are shown.")
@trust_option
@click.option("--start", is_flag=True, help="Start the VMs, in the order and with the delays that the package says.")
@click.option("--vdc", default="", metavar="VDC", help="The account's vdc.  [default: the only one]")
@click.option("--package", default="", metavar="NAME", help="Make a package of a fleet manager instead of VMs.")
@click.option("--manager", default="", metavar="MANAGER", help="Whose package it is.")
@click.option("--version", default="", metavar="VERSION", help="Its version, such as 1.4.2.")
@click.option("--channel", type=click.Choice(["serial", "nic", "qga"]), default=None, help="Form of its backchannel.")
@click.option("--role", default="", metavar="ROLE", help="What pileus-node shall do in it.")
@click.option("--guest-agent", type=click.Path(path_type=Path, dir_okay=False, exists=True), default=None,
              metavar="JSON", help="What may be done in it, for the channel qga.")  # fmt: skip
@click.option("--timeout", type=Timeout(), default=IMPORT_TIMEOUT_S, show_default="1h", metavar="TIME",
              help="How long each thing may take to become ready.")  # fmt: skip
@click.pass_obj
def command(session: Session, /, file: Path, account: str, trust: tuple[Path, ...], **options: Any) -> None:
    """Import the VMs of a package: a folder, a descriptor (.ovf) or an archive (.ova).

    Each disk is read once, compared with the manifest and sent as it is read; the VMs are made when all of it was right, and
    what was made is removed again when anything fails. The same command again goes on after a run that was cut off.
    """
    if not options["package"] and any(options[name] for name in PACKAGE_ONLY):
        raise usage("--manager, --version, --channel, --role and --guest-agent are for --package NAME")
    with opened(file, trust) as package:
        terms = _terms(options)
        if options["package"]:
            _import_package(session, package, terms, account, options)
        else:
            _import_vms(session, package, terms, account, options)
        say(package.faults.found)


def _terms(options: Json) -> Terms:
    from pileus.cli.ovf_plan import Terms
    from pileus.ovf.machines import Choice

    networks = [text.rpartition("=") for text in options["networks"]]
    pairs = [text.partition("=") for text in options["properties"]]
    for key, equals, _ in pairs:
        if not key or not equals:
            raise usage(f"--property takes KEY=VALUE, not {key!r}", "`pileus ovf inspect` shows the keys")
    return Terms(
        prefix=options["prefix"],
        choice=Choice(configuration=options["configuration"], properties={key: value for key, _, value in pairs}),
        networks={name: network for name, _, network in networks},
    )


def _planned(package: StoredPackage, terms: Terms) -> Plan:
    """Return the plan. Raises: OvfFault when there can be none."""
    from pileus.cli.ovf_plan import plan
    from pileus.ovf.faults import Faults

    found = Faults(package.descriptor)
    made = plan(package.envelope, terms, found)
    package.faults.take(found.found)
    package.faults.settle()
    return made


def _import_vms(session: Session, package: StoredPackage, terms: Terms, account: str, options: Json) -> None:
    from pileus.cli.ovf_making import Making, label_of

    made = _planned(package, terms)
    account = account or session.context.account
    if not account:
        raise usage("VMs belong to accounts; say which with --account")
    networks = {nic["network"] for vm in made.vms for nic in vm.desired["nics"]}
    for network in sorted(networks):
        session.get(NETWORK, network, account)
    _agree(package, options["accept_eulas"])
    with Making(session, account, label_of(package), options["timeout"]) as making:
        there = [making.there(VM, vm.name) for vm in made.vms]
        vms = [vm for vm in there if vm is not None]
        if len(vms) < len(made.vms):
            vms = _make(making, package, made, {"vdc": options["vdc"]} if options["vdc"] else {})
        making.keep()
    for vm in vms:
        click.echo(f"{noun(VM, vm)} is imported")
    if options["start"]:
        _start(session, made.vms, vms, options["timeout"])


def _make(making: Making, package: StoredPackage, made: Plan, more: Json) -> list[Json]:
    images = _send(making, package, made.images, {})
    making.ready(IMAGE, images)
    for volume in made.volumes:
        desired = {"size_gib": volume.size_gib} | ({"image": volume.image} if volume.image else {})
        making.make(VOLUME, volume.name, desired | more)
    return [making.make(VM, vm.name, vm.desired | more) for vm in made.vms]


def _send(making: Making, package: StoredPackage, planned: dict[str, PlannedImage], more: Json) -> list[Json]:
    """Read the whole package once, and return the images that its disks became. Raises: OvfFault, Failure."""
    from pileus.cli.ovf_making import drain

    sizes = [one.size_bytes for one in package.envelope.files]
    bar = Bar(f"uploading {package.name}", sum(size or 0 for size in sizes) if None not in sizes else None)
    images = []
    try:
        for content in package.contents():
            if content.disk is not None and content.disk.id in planned:
                image = planned[content.disk.id]
                said = {"firmware": image.firmware} if image.firmware != "bios" else {}
                images.append(making.image(image.name, content, more | said, bar.add))
            else:
                drain(content, bar.add)
    finally:
        bar.close()
    package.faults.settle()
    return images


def _agree(package: StoredPackage, accepted: bool) -> None:
    """Show the licences and have them accepted. Raises: Failure, Abort."""
    texts = [eula.text.strip() for part in package.envelope.contents() for eula in part.eulas]
    if not texts:
        return
    for text in texts:
        lines = "\n".join(clean(line.rstrip()) for line in text.splitlines())
        click.echo(f"{lines}\n", err=True)
    if accepted:
        return
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise usage("the package has a licence, shown above", "accept it with --accept-eulas")
    click.confirm("Do you accept?", abort=True, err=True)


def _start(session: Session, planned: Iterable[PlannedVm], vms: Sequence[Json], timeout_s: float) -> None:
    """Start the VMs stage by stage; the longest delay of a stage counts before the next."""
    pairs = sorted(zip(planned, vms, strict=True), key=lambda pair: pair[0].startup.stage)
    delay_s = 0
    for _, stage in groupby(pairs, key=lambda pair: pair[0].startup.stage):
        members = [(vm, made) for vm, made in stage if vm.startup.start_action == "powerOn"]
        if not members:
            continue
        time.sleep(delay_s)
        started = [_power_on(session, made) for _, made in members]
        for made in wait_for(session, VM, started, READY, timeout_s):
            click.echo(f"{noun(VM, made)} is started")
        delay_s = max(vm.startup.start_delay_s for vm, _ in members)


def _power_on(session: Session, vm: Json) -> Json:
    body = {"desired": {"power": "running"}}
    return session.client.send("PATCH", f"{root(VM)}/{segment(vm['id'])}", [("account", vm["account"])], body)


def _import_package(session: Session, package: StoredPackage, terms: Terms, account: str, options: Json) -> None:
    """Make the image and the fleet manager's package."""
    from pileus.cli.ovf_making import Making, label_of
    from pileus.cli.ovf_plan import ANY
    from pileus.ovf.machines import Choice

    if not options["manager"] or not options["version"]:
        raise usage("--package needs --manager MANAGER and --version VERSION")
    if terms.networks or terms.choice != Choice() or options["start"] or options["vdc"]:
        raise usage("networks, properties, vdcs and starts are a node's, not its package's")
    # Which network a NIC is on is said by whoever asks for a node.
    name = options["package"]
    made = _planned(package, type(terms)(prefix=name, networks={ANY: "any"}))
    if len(made.vms) != 1 or len(made.images) != 1 or made.volumes:
        raise Failure("a node is one VM with one disk; this package has more", exit_code=REFUSED)
    _agree(package, options["accept_eulas"])
    account = session.account_of(PACKAGE, account)
    with Making(session, account, label_of(package), options["timeout"]) as making:
        there = making.there(PACKAGE, name)
        if there is None:
            images = _send(making, package, made.images, {"manager": options["manager"]})
            making.ready(IMAGE, images)
            there = making.make(PACKAGE, name, _package_desired(package, options, images[0]["name"]))
        making.keep()
    click.echo(f"{noun(PACKAGE, there)} is imported")


def _package_desired(package: StoredPackage, options: Json, image: str) -> Json:
    import msgspec

    manifest = package.manifest.raw if package.manifest is not None else b""
    texts = {"descriptor": package.descriptor_text(), "manifest": manifest, "certificate": package.certificate}
    desired: Json = {name: options[name] for name in ("manager", "version", "channel", "role") if options[name]}
    desired["image"] = image
    for name, text in texts.items():
        try:
            if text:
                desired[name] = text.decode()
        except UnicodeDecodeError:
            raise Failure(f"the package's {name} is not UTF-8", exit_code=REFUSED) from None
    if options["guest_agent"] is not None:
        try:
            desired["guest_agent"] = msgspec.json.decode(options["guest_agent"].read_bytes())
        except msgspec.DecodeError as error:
            raise usage(f"{options['guest_agent']} is not JSON: {error}") from None
    return desired
