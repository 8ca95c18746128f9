"""References of hardware to disks and files: ``ovf:/disk/ID``, and how it is also written."""

from __future__ import annotations

import re
from typing import Literal

_REFERENCE = re.compile(r"(?:[A-Za-z][A-Za-z0-9._-]*:)?/{0,2}(disk|file)/(.+)", re.IGNORECASE)


def resource_of(text: str) -> tuple[Literal["disk", "file"], str] | None:
    """Return what a HostResource names; None when it is no reference. ``/disk/1`` is VirtualBox's, ``disk/1`` older yet."""
    found = _REFERENCE.fullmatch(text.strip())
    if found is None:
        return None
    return ("disk" if found[1].lower() == "disk" else "file"), found[2]
