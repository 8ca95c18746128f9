"""What an image build gives, and how it fails."""

from __future__ import annotations

from pathlib import Path

from msgspec import Struct

from pileus.kernel.errors import PileusError


class BuiltImage(Struct, frozen=True, kw_only=True):
    """An image on disk. ``disk`` boots by itself; ``kernel``, ``initrd`` and ``append`` boot it without its loader."""

    name: str
    version: str
    folder: Path
    disk: Path
    kernel: Path
    initrd: Path
    append: str
    sha256: dict[str, str]
    """Of each file, by its name in ``folder``."""

    inputs: str = ""
    """Digest of what it was built by and from, Debian packages aside."""


class BuildError(PileusError):
    """An image could not be built; ``reason`` is MissingPackages, NoPackageSource, BadPackage or ToolFailed."""

    code = "image-build-failed"

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
