"""Checks a whole package: its descriptor, hardware, manifest, certificate, and every file's bytes."""

from __future__ import annotations

from collections.abc import Callable

from pileus.ovf.faults import Faults, OvfFault
from pileus.ovf.machines import Choice, machines
from pileus.ovf.package import Package


def validate(package: Package, read: Callable[[int], None] = lambda _: None) -> None:
    """Read all of a package; what is wrong is then in its ``faults``. ``read``: told each count of bytes that were read.

    Every file is unpacked as far as its disk's capacity allows, and nothing is kept.
    """
    check_machines(package)
    try:
        for content in package.contents():
            told = 0
            try:
                for _ in content.plain():
                    read(content.stored_bytes - told)
                    told = content.stored_bytes
            except OvfFault as fault:
                package.faults.take(fault.faults)
    except OvfFault as fault:
        package.faults.take(fault.faults)


def check_machines(package: Package) -> None:
    """Make the machines of every deployment option, for what is wrong with them."""
    for option in [one.id for one in package.envelope.configurations] or [""]:
        found = Faults(package.descriptor)
        machines(package.envelope, found, choice=Choice(configuration=option), limits=package.limits)
        package.faults.take(found.found)
