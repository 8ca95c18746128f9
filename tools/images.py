"""Builds the images into the cache unless those there are current."""

from __future__ import annotations

import sys

from pileus.image.recipes import STANDARD, current_image, ensure_image
from pileus.image.types import BuildError


def main() -> int:
    """Build what is needed and return the exit code."""
    for name in STANDARD:
        if current_image(name) is not None:
            continue
        try:
            built = ensure_image(name, lambda text, name=name: print(f"setup: image {name}: {text}", flush=True))  # type: ignore[misc]
        except BuildError as error:
            print(f"error: {error.message}", file=sys.stderr)
            return 1
        print(f"setup: image {name} {built.version} lies in {built.folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
