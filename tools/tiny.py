"""Builds the image ``tiny`` into the cache unless one made by the same builder is there."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import pileus.image
from pileus.image.cache import built_image, cache_folder
from pileus.image.tiny_build import NAME, build_tiny
from pileus.image.types import BuildError


def inputs() -> str:
    """Return a digest of the builder and its files."""
    digest = hashlib.sha256()
    folder = Path(pileus.image.__file__).parent
    for file in sorted(folder.rglob("*")):
        if file.is_file() and "__pycache__" not in file.parts:
            digest.update(f"{file.relative_to(folder)}\0".encode() + file.read_bytes())
    return digest.hexdigest()


def main() -> int:
    """Build if needed and return the exit code."""
    folder = cache_folder(NAME)
    stamp = folder / "inputs.sha256"
    if built_image(NAME) is not None and stamp.is_file() and stamp.read_text() == inputs():
        return 0
    try:
        built = build_tiny(folder, lambda text: print(f"setup: image {NAME}: {text}", flush=True))
    except BuildError as error:
        print(f"error: {error.message}", file=sys.stderr)
        return 1
    stamp.write_text(inputs())
    print(f"setup: image {NAME} {built.version} lies in {built.folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
