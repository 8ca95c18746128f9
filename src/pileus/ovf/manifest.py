"""Parses a package's manifest: the digest of each file, in both spellings, by SHA-1, SHA-256, SHA-512, also mixed."""

from __future__ import annotations

import re

from msgspec import Struct

from pileus.ovf.digests import ALGORITHMS
from pileus.ovf.faults import Faults, shown
from pileus.ovf.limits import DEFAULT, Limits
from pileus.ovf.names import UnsafeName, inside

_HEXADECIMAL = re.compile(r"[0-9a-fA-F]+")


class Listed(Struct, frozen=True):
    """A line of a manifest."""

    algorithm: str
    digest: str
    """Lower-case hexadecimal digits."""
    line: int


class Manifest(Struct, frozen=True, kw_only=True):
    """A manifest: name → its digests."""

    name: str
    raw: bytes
    files: dict[str, tuple[Listed, ...]]

    def listed(self, name: str) -> tuple[Listed, ...]:
        """Return the digests of a file; none when it is not listed."""
        return self.files.get(name, ())

    @property
    def algorithms(self) -> tuple[str, ...]:
        """The algorithms that it uses."""
        return tuple(sorted({one.algorithm for lines in self.files.values() for one in lines}))


def read_manifest(name: str, raw: bytes, faults: Faults, limits: Limits = DEFAULT) -> Manifest:
    """Return the manifest in ``raw``; what is wrong with it is in ``faults``.

    Source: DSP0243 6.1 (``SHA256(name)= digest``); others write ``SHA256 (name) = digest``, and any end of line.
    """
    files: dict[str, tuple[Listed, ...]] = {}
    text = raw.decode("utf-8-sig", errors="replace").replace("\r\n", "\n").replace("\r", "\n")
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip("\0 \t\x1a"):
            continue
        found = _line(line, number, name, faults)
        if found is None:
            continue
        file, listed = found
        try:
            file = inside(file, limits)
        except UnsafeName as unsafe:
            faults.error(unsafe.code, f"{shown(file)} is refused: {unsafe.reason}", file=name, line=number)
            continue
        earlier = files.get(file, ())
        if any(one.algorithm == listed.algorithm and one.digest != listed.digest for one in earlier):
            faults.error("two-digests", f"{shown(file)} has two different digests", file=name, line=number)
        files[file] = (*earlier[:4], listed)
    if not files:
        faults.error("empty-manifest", "the manifest lists no file", file=name)
    if any(one.algorithm == "SHA1" for lines in files.values() for one in lines):
        faults.warn("sha1", "SHA-1 no longer proves who made a file; have it packed with SHA256", file=name)
    return Manifest(name=name, raw=raw, files=files)


def _line(line: str, number: int, manifest: str, faults: Faults) -> tuple[str, Listed] | None:
    parsed = digest_line(line)
    if parsed is None:
        faults.error("bad-manifest", f"{shown(line)} is not ALGORITHM(file)= digest", file=manifest, line=number)
        return None
    algorithm, file, digest = parsed
    if algorithm not in ALGORITHMS:
        known = ", ".join(ALGORITHMS)
        faults.error("unknown-digest", f"{shown(algorithm)} is none of {known}", file=manifest, line=number)
        return None
    if len(digest) != ALGORITHMS[algorithm]:
        faults.error(
            "bad-manifest", f"a digest by {algorithm} has {ALGORITHMS[algorithm]} digits, not {len(digest)}",
            file=manifest, line=number,
        )  # fmt: skip
        return None
    return file, Listed(algorithm, digest, number)


def digest_line(line: str) -> tuple[str, str, str] | None:
    """Return algorithm, name and hexadecimal digits of a line of a manifest or certificate; None when it is none."""
    left, equals, digest = line.rpartition("=")
    left, digest = left.rstrip(), digest.strip()
    algorithm, opened, name = left.partition("(")
    if not equals or not opened or not name.endswith(")") or not _HEXADECIMAL.fullmatch(digest):
        return None
    return algorithm.strip().upper().replace("-", ""), name[:-1].strip(), digest.lower()
