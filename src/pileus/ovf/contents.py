"""The files of a package as they stream by: digests, sizes and capacities are checked on the way."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from msgspec import Struct

from pileus.ovf.digests import ALGORITHMS, Digests
from pileus.ovf.faults import Faults, OvfFault, shown
from pileus.ovf.heads import HEAD_BYTES, Head, head_of
from pileus.ovf.limits import Limits
from pileus.ovf.manifest import Manifest
from pileus.ovf.model import Disk, File
from pileus.ovf.unpacking import Allowance, unpacked

_ROUNDING_BYTES = 1 << 20


class Part(Struct, frozen=True, kw_only=True):
    """A stored file: the whole of one of the descriptor's, or a chunk of it."""

    name: str
    size_bytes: int
    chunks: Iterator[bytes]


class Terms(Struct, frozen=True, kw_only=True):
    """What the files of a package are held to."""

    descriptor: str
    faults: Faults
    limits: Limits
    manifest: Callable[[], Manifest | None]
    signed: Callable[[], bool]
    late: dict[str, dict[str, str]] | None = None
    """Digests by name, for a manifest or certificate that is still to come; None when none can come any more."""


class Content:
    """One file of the package. Read it once, with ``stored`` or ``plain``, before the next one is asked for."""

    def __init__(
        self, file: File, disk: Disk | None, capacity_bytes: int | None, parts: Iterator[Part], terms: Terms
    ) -> None:
        self.file = file
        self.disk = disk
        """The disk whose content it is."""
        self.capacity_bytes = capacity_bytes
        """Of that disk."""
        self.stored_bytes = 0
        """What was read so far, as it is stored."""
        self.head: Head | None = None
        """What its first bytes say; set when ``plain`` has yielded something."""
        self._parts = parts
        self._terms = terms

    def stored(self) -> Iterator[bytes]:
        """Yield the file's bytes as they are stored, chunks put together.

        Raises: OvfFault, when what came is not what the manifest and the descriptor promise; at the end at the latest, so
        nothing may be trusted before.
        """
        faults = Faults(self.file.href)
        last = 0
        for number, part in enumerate(self._parts):
            if number and last != self.file.chunk_bytes:
                faults.error("bad-chunks", f"chunk {number - 1} has {last} bytes, not {self.file.chunk_bytes}")
            last = 0
            for chunk in self._checked(part, faults):
                last += len(chunk)
                self.stored_bytes += len(chunk)
                self._bound(faults)
                yield chunk
        size = self.file.size_bytes
        if size is not None and size != self.stored_bytes:
            faults.error(
                "size-differs",
                f"{shown(self.file.href)} has {self.stored_bytes} bytes, not {size}",
                file=self._terms.descriptor, line=self.file.line,
            )  # fmt: skip
        self._settle(faults)

    def plain(self) -> Iterator[bytes]:
        """Yield the file's bytes unpacked: no more than the disk's capacity allows. Raises: OvfFault, as ``stored``."""
        chunks = unpacked(self.stored(), self.file.compression, self._allowance(), self.file.href)
        first = b""
        for chunk in chunks:
            if self.head is None:
                first += chunk
                if len(first) < HEAD_BYTES:
                    continue
                self._look(first)
                chunk = first  # noqa: PLW2901
            yield chunk
        if self.head is None:
            self._look(first)
            if first:
                yield first

    def _allowance(self) -> Allowance:
        limits = self._terms.limits
        if self.capacity_bytes is not None:
            # A streamed VMDK of what cannot be packed has markers and tables besides.
            return Allowance(bytes=self.capacity_bytes + self.capacity_bytes // 64 + limits.slack_bytes)
        if self.file.compression == "identity":
            return Allowance(bytes=limits.file_bytes)
        return Allowance(bytes=limits.unpacked_bytes, ratio=limits.ratio)

    def _bound(self, faults: Faults) -> None:
        size = self.file.size_bytes
        if size is not None and self.stored_bytes > size:
            faults.error(
                "size-differs", f"{shown(self.file.href)} has more than {size} bytes",
                file=self._terms.descriptor, line=self.file.line,
            )  # fmt: skip
            self._settle(faults)

    def _checked(self, part: Part, faults: Faults) -> Iterator[bytes]:
        """Yield a stored file's bytes, and compare its digests after the last."""
        manifest = self._terms.manifest()
        listed = manifest.listed(part.name) if manifest is not None else ()
        late = self._terms.late
        known = manifest is not None or late is None
        digests = Digests({one.algorithm for one in listed} if known else ALGORITHMS)
        try:
            for chunk in part.chunks:
                digests.update(chunk)
                yield chunk
        finally:
            digests.close()
        found = digests.finish()
        if late is not None:
            late[part.name] = found
        if manifest is not None:
            compare(manifest, part.name, found, self._terms.signed(), faults)

    def _look(self, first: bytes) -> None:
        """Compare what the first bytes say with the descriptor."""
        self.head = head_of(first)
        if self.disk is None:
            return
        faults = Faults(self.file.href)
        head, said = self.head, self.disk.format
        if head.text_only:
            faults.error(
                "names-host-files", "this VMDK is a text that names files of a host; export it as streamOptimized"
            )
        if head.format == "unknown" and said in ("vmdk", "qcow2", "vdi", "vhdx"):
            faults.error("format-differs", f"it is no {said}, as the descriptor says")
        elif head.format not in ("unknown", said) and said != "unknown":
            faults.warn("format-differs", f"it is {head.format}, not {said} as the descriptor says")
        capacity, limit = self.capacity_bytes, self._terms.limits.capacity_bytes
        if head.capacity_bytes is not None and head.capacity_bytes > limit:
            faults.error("capacity-too-big", f"the disk has {head.capacity_bytes} bytes, more than the {limit} allowed")
        elif head.capacity_bytes is not None and capacity is not None:
            if head.capacity_bytes > capacity + _ROUNDING_BYTES:
                faults.error(
                    "capacity-differs", f"the disk has {head.capacity_bytes} bytes, the descriptor says {capacity}"
                )
            elif head.capacity_bytes != capacity:
                faults.warn(
                    "capacity-differs", f"the disk has {head.capacity_bytes} bytes, the descriptor says {capacity}"
                )
        self._settle(faults)

    def _settle(self, faults: Faults) -> None:
        """Hand the faults to the package. Raises: OvfFault, when one is an error."""
        self._terms.faults.take(faults.found)
        errors = [fault for fault in faults.found if fault.severity == "error"]
        if errors:
            raise OvfFault(*errors)


def compare(manifest: Manifest, name: str, found: dict[str, str], signed: bool, faults: Faults) -> None:
    """Add a fault when a file's digests are not those of the manifest, or it has none there."""
    listed = manifest.listed(name)
    if not listed:
        message = f"{shown(name)} is not in the manifest {shown(manifest.name)}"
        if signed:
            faults.error("not-listed", f"{message}, so the signature says nothing of it", file=name)
        else:
            faults.warn("not-listed", message, file=name)
    for one in listed:
        if found.get(one.algorithm) != one.digest:
            faults.error(
                "digest-differs",
                f"{shown(name)} is not what was packed: its {one.algorithm} is {found.get(one.algorithm)}, not {one.digest}",
                file=manifest.name, line=one.line,
            )  # fmt: skip
