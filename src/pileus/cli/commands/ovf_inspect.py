"""``pileus ovf inspect``: what a package has, before anything of its disks is read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pileus.cli.ovf_files import file_argument, opened, refused, say, trust_option
from pileus.cli.progress import clean
from pileus.cli.table import plain
from pileus.cli.units import human_bytes

if TYPE_CHECKING:
    from pileus.ovf.model import Machine
    from pileus.ovf.summary import Summary

EULA_LINES = 5


@click.command("inspect")
@file_argument
@trust_option
@click.option(
    "-o", "--output", "form", type=click.Choice(["table", "json", "yaml"]), default="table", help="How to show it."
)
@click.option(
    "--configuration", default="", metavar="ID", help="The deployment option to show.  [default: the package's]"
)
@click.option("--language", default="", metavar="TAG", help="The language of its texts, such as de-DE.")
def command(file: Path, trust: tuple[Path, ...], form: str, configuration: str, language: str) -> None:
    """Show what a package has: a folder, a descriptor (.ovf) or an archive (.ova)."""
    import msgspec

    from pileus.cli.output import to_yaml
    from pileus.ovf.summary import summary

    with opened(file, trust, language) as package:
        found = summary(package, configuration)
    if form == "table":
        click.echo("\n".join(_lines(found)))
    elif form == "json":
        click.echo(msgspec.json.format(msgspec.json.encode(found), indent=2).decode())
    else:
        click.echo(to_yaml(msgspec.to_builtins(found)).rstrip("\n"))
    say(package.faults.found)
    if package.faults.refused:
        raise refused(file, package.faults.found)


def _lines(found: Summary) -> Iterator[str]:
    yield from _facts(found)
    yield from _table("Configurations", ("ID", "LABEL", "DEFAULT"), [
        (one.id, one.label, "yes" if one.id == found.configuration else "") for one in found.configurations
    ])  # fmt: skip
    yield from _table(
        "Networks", ("NAME", "DESCRIPTION"), [(one.name, _first_line(one.description)) for one in found.networks]
    )
    yield from _table("Disks", ("ID", "CAPACITY", "FORMAT", "FILE", "SIZE"), [
        (one.id, _size(one.capacity_bytes), one.format, one.file or "-", _size(one.file_bytes)) for one in found.disks
    ])  # fmt: skip
    for machine in found.machines:
        yield from _machine(machine)
    yield from _table("Properties", ("KEY", "TYPE", "DEFAULT", "REQUIRED", "LABEL"), [
        (one.key, one.type, one.default or "-", "yes" if one.required else "", _first_line(one.label))
        for one in found.properties if one.configurable
    ])  # fmt: skip
    for text in found.eulas:
        lines = text.strip().splitlines()
        yield f"\nLicence ({len(lines)} lines):"
        yield from (f"  {clean(line.strip())[:100]}" for line in lines[:EULA_LINES])


def _facts(found: Summary) -> Iterator[str]:
    signature = found.signature
    signed = f"{signature.state} {signature.subject}".strip() if signature is not None else "none"
    facts = (
        ("Product", found.product), ("Vendor", found.vendor), ("Version", found.version), ("OVF", found.ovf_version),
        ("Manifest", found.manifest or "none"), ("Signature", signed),
    )  # fmt: skip
    for name, value in facts:
        if value:
            yield f"{name + ':':<12}{clean(value)}"


def _machine(machine: Machine) -> Iterator[str]:
    yield (
        f"\nVM {clean(machine.name)}: {machine.vcpus} CPUs, {human_bytes(machine.memory_mib << 20)}, {machine.firmware}"
        + (f", {clean(machine.os)}" if machine.os else "")
    )
    start = machine.startup
    if machine.collections:
        yield f"  starts in stage {start.stage}, then {start.start_delay_s} s; {start.start_action}"
    rows = [
        (one.kind, one.disk_id or one.file_id or "-", f"{one.bus} {one.controller}".strip(), f"{one.bus_number}:{one.unit}",
         _size(one.capacity_bytes or None))
        for one in machine.disks
    ]  # fmt: skip
    yield from _indented(("DRIVE", "DISK", "CONTROLLER", "PLACE", "CAPACITY"), rows)
    yield from _indented(
        ("NIC", "NETWORK", "MAC"), [(one.model, one.network or "-", one.mac or "-") for one in machine.nics]
    )


def _indented(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    if rows:
        yield from (f"  {line}" for line in plain(headers, rows).splitlines())


def _table(title: str, headers: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    if rows:
        yield f"\n{title}:"
        yield from _indented(headers, rows)


def _size(count: int | None) -> str:
    return "-" if count is None else human_bytes(count)


def _first_line(text: str) -> str:
    return next(iter(text.strip().splitlines()), "")[:60]
