"""What in a descriptor must fit together: references, networks, disks, configurations, orders."""

from __future__ import annotations

from collections.abc import Iterator

from pileus.ovf.faults import Faults, shown
from pileus.ovf.limits import Limits
from pileus.ovf.model import Disk, Envelope, File, Item, Product, VirtualSystemCollection
from pileus.ovf.names import UnsafeName, inside
from pileus.ovf.resources import resource_of

_CAPACITY_MAX = (1 << 63) - 1


def check(envelope: Envelope, faults: Faults, limits: Limits) -> None:
    """Add what does not fit together to ``faults``."""
    _check_counts(envelope, faults, limits)
    _check_files(envelope.files, faults)
    files = {file.id for file in envelope.files}
    for disk in envelope.disks:
        _check_disk(disk, files, faults, limits)
    _check_parents(envelope.disks, faults)
    _check_properties(envelope, faults)
    _check_ids(envelope, faults)
    disks = {disk.id for disk in envelope.disks}
    networks = {network.name for network in envelope.networks}
    options = {option.id for option in envelope.configurations}
    for item in _items(envelope):
        _check_item(item, (files, disks), networks, faults)
        _check_options(item.configurations, options, item.line, faults)
    for product in _products(envelope):
        for one in product.properties:
            named = tuple(value.configuration for value in one.values if value.configuration)
            _check_options(named, options, one.line, faults)
    if sum(option.default for option in envelope.configurations) > 1:
        second = [option for option in envelope.configurations if option.default][1]
        faults.error("two-defaults", "there is a second default configuration", line=second.line)


def _check_files(files: tuple[File, ...], faults: Faults) -> None:
    seen: dict[str, int] = {}
    for file in files:
        try:
            name = inside(file.href)
        except UnsafeName:
            continue  # said where it was parsed
        if name in seen:
            faults.error(
                "duplicate-href",
                f"file {shown(file.href)} is also in line {seen[name]}; one File per file",
                line=file.line,
            )
        seen.setdefault(name, file.line)


def _check_disk(disk: Disk, files: set[str], faults: Faults, limits: Limits) -> None:
    named = shown(disk.id)
    if disk.file_id and disk.file_id not in files:
        faults.error(
            "no-file", f"disk {named} refers to file {shown(disk.file_id)}, which is not in References", line=disk.line
        )
    if disk.parent_id:
        faults.error(
            "delta-disk",
            f"disk {named} is a difference to disk {shown(disk.parent_id)}; export the VM without snapshots",
            line=disk.line,
        )
    if disk.file_id and disk.format == "unknown":
        text = (
            f"format {shown(disk.format_uri)} of disk {named} is not known"
            if disk.format_uri
            else f"disk {named} has no ovf:format"
        )
        faults.warn("unknown-format", f"{text}; its first bytes decide", line=disk.line)
    if disk.capacity_bytes is None:
        return
    if disk.capacity_bytes > min(limits.capacity_bytes, _CAPACITY_MAX):
        faults.error(
            "capacity-too-big",
            f"disk {named} has {disk.capacity_bytes} bytes, more than the {limits.capacity_bytes} allowed",
            line=disk.line,
        )
    if disk.capacity_bytes == 0 and not disk.file_id:
        faults.error("bad-capacity", f"blank disk {named} has no capacity", line=disk.line)


def _check_parents(disks: tuple[Disk, ...], faults: Faults) -> None:
    known = {disk.id for disk in disks}
    for disk in disks:
        if disk.parent_id and disk.parent_id not in known:
            faults.error(
                "no-disk", f"parent {shown(disk.parent_id)} of disk {shown(disk.id)} does not exist", line=disk.line
            )


def _check_properties(envelope: Envelope, faults: Faults) -> None:
    """Note properties that are there twice, and capacities that name one that is not there."""
    keys: set[str] = set()
    for part in envelope.contents():
        own: dict[str, int] = {}
        for product in part.products:
            for one in product.properties:
                if one.full_key in own:
                    earlier = own[one.full_key]
                    faults.error(
                        "duplicate-id", f"property {shown(one.full_key)} is also in line {earlier}", line=one.line
                    )
                own.setdefault(one.full_key, one.line)
                keys |= {one.key, one.full_key}
    for disk in envelope.disks:
        if disk.capacity.startswith("${") and disk.capacity[2:-1] not in keys:
            faults.error(
                "no-property", f"the capacity of disk {shown(disk.id)} is property {shown(disk.capacity)}, which is not there",
                line=disk.line,
            )  # fmt: skip


def _check_counts(envelope: Envelope, faults: Faults, limits: Limits) -> None:
    """Refuse more than anybody has, before time is spent on it. Raises: OvfFault."""
    sections = [len(section.items) for system in envelope.systems() for section in system.hardware]
    properties = sum(len(product.properties) for product in _products(envelope))
    options = max(1, len(envelope.configurations))
    for what, count, most in (
        ("VMs", sum(1 for _ in envelope.systems()), limits.systems),
        ("disks", len(envelope.disks), limits.disks),
        ("files", len(envelope.files), limits.members),
        ("properties", properties, limits.properties),
        ("items in one hardware section", max(sections, default=0), limits.hardware_items),
        ("hardware items times configurations", sum(sections) * options, limits.optional_items),
    ):
        if count > most:
            faults.stop("too-many-parts", f"{count} {what} are more than the {most} allowed")


def _check_ids(envelope: Envelope, faults: Faults) -> None:
    seen: dict[str, int] = {}
    for part in envelope.contents():
        if part.id and part.id in seen:
            faults.error(
                "duplicate-id", f"VM or collection {shown(part.id)} is also in line {seen[part.id]}", line=part.line
            )
        seen.setdefault(part.id, part.line)
        if isinstance(part, VirtualSystemCollection):
            members = {member.id for member in part.members}
            for item in part.startup:
                if item.id not in members:
                    faults.error(
                        "no-member",
                        f"startup names {shown(item.id)}, which is no member of {shown(part.id)}",
                        line=item.line,
                    )
        elif not part.hardware:
            faults.error("no-hardware", f"VM {shown(part.id)} has no VirtualHardwareSection", line=part.line)


def _check_item(item: Item, known: tuple[set[str], set[str]], networks: set[str], faults: Faults) -> None:
    files, disks = known
    for text in item.host_resources:
        found = resource_of(text)
        if found is None:
            faults.error(
                "bad-reference", f"HostResource {shown(text)} is neither ovf:/disk/ID nor ovf:/file/ID", line=item.line
            )
        elif found[1] not in (disks if found[0] == "disk" else files):
            faults.error("bad-reference", f"there is no {found[0]} {shown(found[1])}", line=item.line)
    if item.resource_type == 10:
        for network in item.connections:
            if network not in networks:
                faults.error("no-network", f"network {shown(network)} is not in a NetworkSection", line=item.line)


def _check_options(named: tuple[str, ...], known: set[str], line: int, faults: Faults) -> None:
    for option in named:
        if option not in known:
            faults.error(
                "no-configuration", f"configuration {shown(option)} is not in a DeploymentOptionSection", line=line
            )


def _items(envelope: Envelope) -> Iterator[Item]:
    for system in envelope.systems():
        for section in system.hardware:
            yield from section.items


def _products(envelope: Envelope) -> Iterator[Product]:
    for part in envelope.contents():
        yield from part.products
