"""What a package is, in a few lines for its reader: before anything of its disks is read."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct

from pileus.ovf.faults import Fault, Faults
from pileus.ovf.machines import Choice, chosen_configuration, machines
from pileus.ovf.model import Configuration, Disk, File, Machine, Network, Product, Property
from pileus.ovf.package import Package
from pileus.ovf.properties import by_key, capacity_bytes, default_of, is_needed, properties
from pileus.ovf.signature import Signature

_HIDDEN = "(hidden)"


class ShownDisk(Struct, frozen=True, kw_only=True):
    """A disk of the package."""

    id: str
    capacity_bytes: int | None
    format: str
    file: str
    file_bytes: int | None
    compression: str
    shared: bool


class ShownProperty(Struct, frozen=True, kw_only=True):
    """A property, with what it is before somebody sets it."""

    of: str
    """The VM or collection that has it."""
    key: str
    type: str
    label: str
    default: str
    required: bool
    """Whether it needs a value that it does not have."""
    configurable: bool
    allowed: tuple[str, ...]


class Summary(Struct, frozen=True, kw_only=True):
    """A package at a glance."""

    name: str
    ovf_version: str
    product: str
    vendor: str
    version: str
    eulas: tuple[str, ...]
    configuration: str
    """The deployment option that the machines are of."""
    configurations: tuple[Configuration, ...]
    networks: tuple[Network, ...]
    machines: tuple[Machine, ...]
    disks: tuple[ShownDisk, ...]
    files: tuple[File, ...]
    properties: tuple[ShownProperty, ...]
    manifest: str
    """Algorithms of the manifest; empty: there is none."""
    signature: Signature | None
    faults: tuple[Fault, ...]


def summary(package: Package, configuration: str = "") -> Summary:
    """Return a package's summary, for one deployment option. Raises: OvfFault, when there is no such option."""
    envelope = package.envelope
    found = Faults(package.descriptor)
    option = chosen_configuration(envelope, configuration, found)
    made = machines(envelope, found, choice=Choice(configuration=option), limits=package.limits)
    package.faults.take(found.found)
    known = by_key(envelope)
    products = [product for part in envelope.contents() for product in part.products]
    main = next((product for product in products if product.name), Product())
    return Summary(
        name=package.name,
        ovf_version=envelope.version,
        product=main.name,
        vendor=main.vendor,
        version=main.full_version or main.version,
        eulas=tuple(eula.text for part in envelope.contents() for eula in part.eulas),
        configuration=option,
        configurations=envelope.configurations,
        networks=envelope.networks,
        machines=made,
        disks=tuple(_disk(package, disk, option, known) for disk in envelope.disks),
        files=envelope.files,
        properties=_properties(package, option),
        manifest=" ".join(package.manifest.algorithms) if package.manifest is not None else "",
        signature=package.signature,
        faults=package.faults.found,
    )


def _disk(package: Package, disk: Disk, option: str, known: Mapping[str, Property]) -> ShownDisk:
    file = package.envelope.file(disk.file_id)
    return ShownDisk(
        id=disk.id,
        capacity_bytes=capacity_bytes(package.envelope, disk, configuration=option, known=known),
        format=disk.format if disk.file_id else "blank",
        file=file.href if file else "",
        file_bytes=file.size_bytes if file else None,
        compression=file.compression if file else "identity",
        shared=disk.shared,
    )


def _properties(package: Package, option: str) -> tuple[ShownProperty, ...]:
    return tuple(
        ShownProperty(
            of=part.id,
            key=one.full_key,
            type=one.type,
            label=one.label,
            default=_HIDDEN if one.password and default_of(one, option) else default_of(one, option) or "",
            required=is_needed(one, option),
            configurable=one.user_configurable,
            allowed=one.allowed,
        )
        for part, one in properties(package.envelope)
    )
