"""Packages for tests: archives, folders, manifests, certificates, made when they are needed."""

from __future__ import annotations

import hashlib
import io
import struct
import tarfile
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.x509.oid import NameOID
from tests.unit.ovf.descriptors import envelope

from pileus.ovf.faults import OvfFault
from pileus.ovf.package import Package, open_package, open_stream
from pileus.ovf.validation import validate

NAME = "x.ovf"


def vmdk(capacity_bytes: int = 16 << 20, rest: bytes = b"grain" * 300) -> bytes:
    """Return what begins as a streamOptimized VMDK does."""
    return (
        struct.pack("<4sIIQQQQIQQQ", b"KDMV", 3, 0x30001, capacity_bytes // 512, 128, 1, 20, 512, 0, 0, 128).ljust(
            512, b"\0"
        )
        + rest
    )


def file_of(content: bytes, attributes: str = "", href: str = "disk1.vmdk", file_id: str = "f1") -> str:
    """Return the File element of some bytes."""
    return f'<File ovf:id="{file_id}" ovf:href="{href}" ovf:size="{len(content)}" {attributes}/>\n'


DISK_BYTES = vmdk()
TEXT = envelope(files=file_of(DISK_BYTES))
FILES: dict[str, bytes] = {NAME: TEXT, "disk1.vmdk": DISK_BYTES}


def digest_line(name: str, content: bytes, algorithm: str = "sha256", form: str = "{}({})= {}\n") -> str:
    """Return a manifest's line."""
    return form.format(algorithm.upper(), name, hashlib.new(algorithm, content).hexdigest())


def manifest(files: Mapping[str, bytes], algorithm: str = "sha256", form: str = "{}({})= {}\n") -> bytes:
    """Return the manifest of some files."""
    return "".join(digest_line(name, content, algorithm, form) for name, content in files.items()).encode()


def with_manifest(
    files: Mapping[str, bytes], algorithm: str = "sha256", form: str = "{}({})= {}\n"
) -> dict[str, bytes]:
    """Return the files with their manifest behind the descriptor."""
    (first, *rest) = files.items()
    return {first[0]: first[1], "x.mf": manifest(files, algorithm, form), **dict(rest)}


def tar(files: Mapping[str, bytes] | Sequence[tuple[str, bytes]], form: int = tarfile.USTAR_FORMAT) -> bytes:
    """Return an archive; the files as pairs may have one name twice."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as archive:
        for name, content in files.items() if isinstance(files, Mapping) else files:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return out.getvalue()


def special(name: str, kind: bytes, link: str = "") -> bytes:
    """Return the header of a member that is no plain file."""
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, link
    return member.tobuf(tarfile.GNU_FORMAT)


class Forward:
    """A stream that can only be read on, in short pieces."""

    def __init__(self, content: bytes, piece: int = 700) -> None:
        self._stream = io.BytesIO(content)
        self._piece = piece

    def read(self, size: int, /) -> bytes:
        return self._stream.read(min(size, self._piece))


def codes(package: Package) -> list[str]:
    """Return the codes of what refuses a package."""
    return [fault.code for fault in package.faults.found if fault.severity == "error"]


def mild(package: Package) -> list[str]:
    """Return the codes of what is only odd."""
    return [fault.code for fault in package.faults.found if fault.severity != "error"]


def judged(archive: bytes, folder: Path) -> tuple[list[str], list[str]]:
    """Return the codes with which an archive is refused, out of a file and on a stream."""
    path = folder / "x.ova"
    path.write_bytes(archive)
    found = []
    for stored in (True, False):
        try:
            with open_package(path) if stored else open_stream(Forward(archive), "x.ova") as package:
                validate(package)
                found.append(codes(package))
        except OvfFault as fault:
            found.append([one.code for one in fault.faults if one.severity == "error"])
    return found[0], found[1]


def put(folder: Path, files: Mapping[str, bytes]) -> Path:
    """Write files into a folder and return it."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


NOW = datetime.fromisoformat("2026-06-01T00:00:00+00:00")
KEYS = [rsa.generate_private_key(public_exponent=65537, key_size=2048) for _ in range(3)]


class Signer:
    """A key and its certificate."""

    def __init__(
        self, name: str, key: int = 0, issuer: Signer | None = None, *, ca: bool = False, days: int = 30
    ) -> None:
        self.key = KEYS[key]
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        above = issuer.certificate.subject if issuer is not None else subject
        builder = x509.CertificateBuilder().subject_name(subject).issuer_name(above).public_key(self.key.public_key())
        builder = builder.serial_number(x509.random_serial_number()).not_valid_before(NOW - timedelta(days=30))
        builder = builder.not_valid_after(NOW + timedelta(days=days))
        builder = builder.add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        self.certificate: x509.Certificate = builder.sign(
            issuer.key if issuer is not None else self.key, hashes.SHA256()
        )

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def sign(self, content: bytes, name: str = "x.mf", algorithm: str = "SHA256", more: bytes = b"") -> bytes:
        """Return the certificate file of a manifest."""
        known: dict[str, hashes.HashAlgorithm] = {
            "SHA1": hashes.SHA1(), "SHA256": hashes.SHA256(), "SHA512": hashes.SHA512()
        }  # fmt: skip
        signature = self.key.sign(content, padding.PKCS1v15(), known[algorithm]).hex()
        return f"{algorithm}({name})= {signature}\n".encode() + self.pem + more
