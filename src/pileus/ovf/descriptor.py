"""Parses a descriptor: OVF 1.0, 1.1, 2.x and the envelope of VMware from before the standard.

What it says alone is decided here and in its parts (``sections``, ``items``); what fits together, in ``checks``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import get_args

from pileus.ovf import units
from pileus.ovf.checks import check
from pileus.ovf.faults import Faults, shown
from pileus.ovf.limits import DEFAULT, Limits
from pileus.ovf.model import (
    Compression,
    Configuration,
    Disk,
    DiskFormat,
    Envelope,
    File,
    Network,
    UnknownSection,
    Version,
)
from pileus.ovf.names import UnsafeName, inside
from pileus.ovf.scope import OVF, OVF_2, OVF_BEFORE, VMW, Scope, kind_of
from pileus.ovf.sections import content
from pileus.ovf.tree import XML, Element, parse

_COMPRESSIONS: tuple[Compression, ...] = get_args(Compression)
_PROPERTY = re.compile(r"\$\{[^{}\s]{1,200}\}")

_FORMATS: tuple[tuple[str, DiskFormat], ...] = (
    ("vmdk", "vmdk"),
    ("vmware.com/", "vmdk"),
    ("qcow", "qcow2"),
    ("vhdx", "vhdx"),
    ("vhd", "vhd"),
    ("bb676673", "vhd"),
    ("vdi", "vdi"),
    ("raw", "raw"),
    ("iso", "iso"),
)
"""Parts of format URIs, the first that is found is meant; there is no registry, only what tools write."""


def read_descriptor(
    chunks: Iterable[bytes], faults: Faults, *, limits: Limits = DEFAULT, language: str = ""
) -> Envelope:
    """Return what a descriptor says; what is wrong with it is in ``faults``, the errors among them too.

    Raises: OvfFault, when nothing can be made of it.
    """
    root = parse(chunks, faults, limits)
    if root.name != "Envelope" or not root.namespace or root.namespace not in OVF:
        faults.stop(
            "no-envelope",
            f"the root is {shown(root.name)} of {shown(root.namespace)}, not an OVF Envelope",
            line=root.line,
        )
    scope = Scope(faults, limits, root, language)
    envelope = _envelope(scope, root)
    check(envelope, faults, limits)
    return envelope


def _envelope(scope: Scope, root: Element) -> Envelope:
    parts = _Parts(scope)
    for element in root.children:
        parts.take(element)
    if len(parts.contents) != 1:
        scope.faults.stop(
            "no-content",
            f"the envelope has {len(parts.contents)} VirtualSystem or VirtualSystemCollection, not exactly one",
            line=parts.contents[1].line if parts.contents else root.line,
        )
    scope.unique([(file.id, file.line) for file in parts.files], "file id")
    scope.unique([(disk.id, disk.line) for disk in parts.disks], "disk id")
    scope.unique([(network.name, network.line) for network in parts.networks], "network")
    scope.unique([(option.id, option.line) for option in parts.configurations], "configuration")
    return Envelope(
        version=_version(root),
        language=root.of(XML, "lang") or "",
        languages=scope.languages,
        files=tuple(parts.files),
        disks=tuple(parts.disks),
        networks=tuple(parts.networks),
        configurations=tuple(parts.configurations),
        unknown=tuple(parts.unknown),
        content=content(scope, parts.contents[0]),
    )


def _version(root: Element) -> Version:
    if root.namespace in OVF_BEFORE:
        return "0.9"
    return "2" if root.namespace == OVF_2 else "1"


class _Parts:
    """The children of an envelope, sorted."""

    def __init__(self, scope: Scope) -> None:
        self._scope = scope
        self.files: list[File] = []
        self.disks: list[Disk] = []
        self.networks: list[Network] = []
        self.configurations: list[Configuration] = []
        self.unknown: list[UnknownSection] = []
        self.contents: list[Element] = []

    def take(self, element: Element) -> None:
        """Sort in one child."""
        kind = kind_of(element)
        if element.namespace not in OVF:
            self.unknown += self._scope.unknown(element)
        elif kind in ("VirtualSystem", "VirtualSystemCollection"):
            self.contents.append(element)
        elif kind == "References":
            self.files += (_file(self._scope, file) for file in element.all("File"))
        elif kind in ("DiskSection", "SharedDiskSection"):
            self.disks += _disks(self._scope, element, shared=kind == "SharedDiskSection")
        elif kind == "NetworkSection":
            self.networks += (_network(self._scope, network) for network in element.all("Network"))
        elif kind == "DeploymentOptionSection":
            self.configurations += (_configuration(self._scope, one) for one in element.all("Configuration"))
        elif kind == "Strings":
            self._strings(element)
        elif kind != "Info":
            self.unknown += self._scope.unknown(element)

    def _strings(self, element: Element) -> None:
        if element.get("fileRef"):
            self._scope.faults.note(
                "external-strings",
                "texts in a file of their own are not read; the default texts are shown",
                line=element.line,
            )


def _file(scope: Scope, element: Element) -> File:
    href = scope.needed(element, "href")
    if href:
        try:
            inside(href, scope.limits)
        except UnsafeName as unsafe:
            scope.faults.error(unsafe.code, f"file {shown(href)} is refused: {unsafe.reason}", line=element.line)
    size = scope.whole(element, "size", most=scope.limits.file_bytes)
    if size is None and not scope.attribute_text(element, "size"):
        scope.faults.note("no-size", f"file {shown(href)} has no ovf:size", line=element.line)
    chunk = scope.whole(element, "chunkSize", most=scope.limits.file_bytes)
    if chunk == 0 or (chunk and size and size > chunk * scope.limits.members):
        scope.faults.error("bad-chunks", f"file {shown(href)} cannot have chunks of {chunk} bytes", line=element.line)
        chunk = None
    return File(
        id=scope.needed(element, "id"),
        href=href,
        size_bytes=size,
        compression=scope.word(element, "compression", _COMPRESSIONS, "identity"),
        chunk_bytes=chunk,
        line=element.line,
    )


def _disks(scope: Scope, section: Element, *, shared: bool) -> Iterator[Disk]:
    for element in section.all("Disk", "SharedDisk"):
        yield _disk(scope, element, shared=shared or element.name == "SharedDisk")


def _disk(scope: Scope, element: Element, *, shared: bool) -> Disk:
    capacity = scope.needed(element, "capacity")
    unit_text = scope.attribute_text(element, "capacityAllocationUnits")
    unit = units.bytes_per_unit(unit_text)
    if unit is None:
        scope.faults.error(
            "bad-units", f"{shown(unit_text)} is no unit of storage, such as byte * 2^30", line=element.line
        )
    count = units.number(capacity)
    if count is None and capacity and not _PROPERTY.fullmatch(capacity):
        scope.faults.error(
            "bad-capacity", f"capacity {shown(capacity)} is neither a whole number nor ${{property}}", line=element.line
        )
    uri = scope.attribute_text(element, "format")
    sharing = element.of(VMW, "shared") or element.of(VMW, "sharing") or ""
    return Disk(
        id=scope.needed(element, "diskId"),
        file_id=scope.attribute_text(element, "fileRef"),
        capacity=capacity,
        capacity_units=unit_text or "byte",
        capacity_bytes=None if count is None or unit is None else count * unit,
        format=_format(uri),
        format_uri=uri,
        stream_optimized="streamoptimized" in uri.lower(),
        populated_bytes=scope.whole(element, "populatedSize"),
        parent_id=scope.attribute_text(element, "parentRef"),
        shared=shared or sharing.lower() in ("true", "1", "sharingmultiwriter"),
        line=element.line,
    )


def _format(uri: str) -> DiskFormat:
    lowered = uri.lower()
    return next((name for part, name in _FORMATS if part in lowered), "unknown")


def _network(scope: Scope, element: Element) -> Network:
    name = scope.needed(element, "name")
    return Network(name=name, description=scope.text_of(element, "Description"), line=element.line)


def _configuration(scope: Scope, element: Element) -> Configuration:
    return Configuration(
        id=scope.needed(element, "id"),
        label=scope.text_of(element, "Label"),
        description=scope.text_of(element, "Description"),
        default=scope.truth(element, "default", False),
        line=element.line,
    )
