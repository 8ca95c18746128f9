"""What a node's guest is told of its package's OVF properties: their defaults, and the values that the node says."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

from pileus.fleet.package.types import PackageDesired
from pileus.kernel.errors import Invalid
from pileus.kernel.kind import Resource
from pileus.ovf.descriptor import read_descriptor
from pileus.ovf.environment import Platform, environment_of, environment_xml
from pileus.ovf.faults import Faults, OvfFault
from pileus.ovf.properties import settings

KEPT = 64
"""Answers that are kept: every look at a node asks for its own."""


def environment(package: Resource, properties: Mapping[str, str]) -> str:
    """Return the OVF environment of a node of the package; empty when that has no properties. Raises: Invalid."""
    desired: PackageDesired = package.desired
    if not desired.descriptor:
        if properties:
            raise Invalid(f"{package} has no OVF descriptor, and so no properties", field="desired.properties")
        return ""
    try:
        return _environment(desired.descriptor, tuple(sorted(properties.items())))
    except (OvfFault, ValueError) as error:
        raise Invalid(f"the properties do not fit {package}: {error}", field="desired.properties") from None


@lru_cache(maxsize=KEPT)
def _environment(descriptor: str, properties: tuple[tuple[str, str], ...]) -> str:
    faults = Faults("descriptor")
    envelope = read_descriptor([descriptor.encode()], faults)
    found = settings(envelope, dict(properties), faults)
    faults.settle()
    system = next(envelope.systems())  # a package of a manager has one
    told = environment_of(envelope, found, system.id, Platform())
    return environment_xml(told).decode() if told.properties else ""
