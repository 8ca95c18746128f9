"""The images that can be built here, and the cache that keeps them until what they are built from changes."""

from __future__ import annotations

import fcntl
from collections.abc import Callable
from pathlib import Path

from pileus.image.appliance_build import APPLIANCE
from pileus.image.build import Recipe, build, inputs
from pileus.image.cache import built_image, cache_folder
from pileus.image.debian_qga_build import DEBIAN_QGA
from pileus.image.tiny_build import TINY
from pileus.image.types import BuiltImage

RECIPES: dict[str, Recipe] = {recipe.name: recipe for recipe in (TINY, APPLIANCE, DEBIAN_QGA)}

STANDARD = (TINY.name, APPLIANCE.name)
"""The images that every cluster has; the others are built when somebody asks for them."""


def current_image(name: str, folder: Path | None = None, recipe: Recipe | None = None) -> BuiltImage | None:
    """Return the image in the cache (or in ``folder``), None when it is missing or was built from other sources.

    ``recipe``: of an image that is none of ``RECIPES``.
    """
    found = built_image(name, folder)
    return found if found is not None and found.inputs == inputs(recipe or RECIPES[name]) else None


def ensure_image(
    name: str, progress: Callable[[str], None], folder: Path | None = None, recipe: Recipe | None = None
) -> BuiltImage:
    """Return the image from the cache (or ``folder``), built now unless it is current. Raises: BuildError."""
    found = current_image(name, folder, recipe)
    if found is not None:
        return found
    target = folder or cache_folder(name)
    target.mkdir(parents=True, exist_ok=True)
    with (target / ".lock").open("w") as lock:
        # Another one may be building it right now; then this finds it built.
        fcntl.flock(lock, fcntl.LOCK_EX)
        found = current_image(name, folder, recipe)
        return found if found is not None else build(recipe or RECIPES[name], target, progress)
