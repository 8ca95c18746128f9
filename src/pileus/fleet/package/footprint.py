"""What an OVF package says of the nodes that are made of it: their size, their maker, who signed it. Pure."""

from __future__ import annotations

import hashlib

from msgspec import Struct

from pileus.fleet.package.types import PackageDesired
from pileus.kernel.errors import Invalid
from pileus.ovf.certificate import check_signature
from pileus.ovf.descriptor import read_descriptor
from pileus.ovf.faults import Faults, OvfFault
from pileus.ovf.machines import machines
from pileus.ovf.manifest import Manifest, read_manifest
from pileus.ovf.model import Firmware, Machine

DESCRIPTOR, MANIFEST, CERTIFICATE = "descriptor", "manifest", "certificate"


class Footing(Struct, frozen=True, kw_only=True):
    """Zero, or empty: nothing said."""

    vcpus: int = 0
    memory_mib: int = 0
    nics: int = 0
    firmware: Firmware = "bios"
    product: str = ""
    vendor: str = ""
    signed_by: str = ""
    """Subject of the certificate, and the beginning of its fingerprint: nobody here vouches for the name."""


def read_package(desired: PackageDesired) -> Footing:
    """Return what the descriptor says of a node, with its signature checked. Raises: Invalid with file and line."""
    faults = Faults(DESCRIPTOR)
    try:
        raw = desired.descriptor.encode()
        envelope = read_descriptor([raw], faults)
        made = machines(envelope, faults)
        faults.settle()
        if len(made) != 1:
            faults.stop("not-one-system", f"a node is one VM; the package has {len(made)} virtual systems")
        _check_disks(made[0], faults)
        signed_by = _signer(desired, raw, faults)
        faults.settle()
    except OvfFault as fault:
        raise Invalid(f"the OVF package is refused: {fault}", field="desired.descriptor", code="bad-package") from None
    product = next((each for system in envelope.systems() for each in system.products if each.name), None)
    return Footing(
        vcpus=made[0].vcpus,
        memory_mib=made[0].memory_mib,
        nics=len(made[0].nics),
        firmware=made[0].firmware,
        product=" ".join((product.name, product.full_version or product.version)).strip() if product else "",
        vendor=product.vendor if product else "",
        signed_by=signed_by,
    )


def _check_disks(machine: Machine, faults: Faults) -> None:
    """Raises: OvfFault for a node that needs more than one disk."""
    disks = [disk for disk in machine.disks if disk.kind == "disk"]
    if len(disks) > 1:
        faults.stop("several-disks", f"a node has one disk; this VM has {len(disks)}", line=disks[1].line)


def _signer(desired: PackageDesired, descriptor: bytes, faults: Faults) -> str:
    """Return who signed the manifest that lists the descriptor; empty when nobody did."""
    if not desired.manifest:
        if desired.certificate:
            faults.error("no-manifest", "there is a certificate, but no manifest that it could sign", file=CERTIFICATE)
        return ""
    name = _signed_name(desired.certificate) or "package.mf"
    manifest = read_manifest(name, desired.manifest.encode(), faults)
    _check_listed(manifest, descriptor, faults)
    if not desired.certificate:
        return ""
    signature = check_signature(CERTIFICATE, desired.certificate.encode(), manifest, None, faults)
    return f"{signature.subject} ({signature.sha256[:16]})" if signature.state != "invalid" else ""


def _signed_name(certificate: str) -> str:
    """Return the file name that a certificate says it signs: here, texts have none."""
    _, _, rest = certificate.partition("(")
    name, found, _ = rest.partition(")")
    return name.strip() if found and "\n" not in name else ""


def _check_listed(manifest: Manifest, descriptor: bytes, faults: Faults) -> None:
    listed = [each for name in manifest.files if name.endswith(".ovf") for each in manifest.listed(name)]
    if not listed:
        faults.error("not-listed", "the manifest lists no descriptor (.ovf)", file=MANIFEST)
    for each in listed:
        if hashlib.new(each.algorithm.lower(), descriptor).hexdigest() != each.digest:
            faults.error(
                "wrong-digest", "the descriptor is not the one that the manifest lists", file=MANIFEST, line=each.line
            )
