"""Where images that were built here are kept, so that they are built once."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from pileus.image.types import BuiltImage


def cache_folder(name: str) -> Path:
    """Return the folder of a built image: below /var/cache for root, else below the user's cache (XDG)."""
    if os.geteuid() == 0:
        return Path("/var/cache/pileus/images") / name
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pileus" / "images" / name


def built_image(name: str, folder: Path | None = None) -> BuiltImage | None:
    """Return the image in the cache (or in ``folder``), None when it is not there whole."""
    found = folder or cache_folder(name)
    try:
        record = msgspec.json.decode((found / "image.json").read_bytes(), type=dict[str, object])
    except (OSError, msgspec.DecodeError):
        return None
    files = {part: found / str(record.get(part, part)) for part in ("disk", "kernel", "initrd")}
    if not all(file.is_file() for file in files.values()):
        return None
    hashes = record.get("sha256")
    return BuiltImage(
        name=str(record.get("name", name)),
        version=str(record.get("version", "")),
        folder=found,
        append=str(record.get("append", "")),
        inputs=str(record.get("inputs", "")),
        sha256={str(key): str(value) for key, value in hashes.items()} if isinstance(hashes, dict) else {},
        **files,
    )
