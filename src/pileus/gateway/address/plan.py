"""The entries of a public address in its router's document. Pure."""

from __future__ import annotations

from typing import Any

from pileus.gateway.address.types import AddressAssigned


def entry(assigned: AddressAssigned, *, shared: bool) -> dict[str, dict[str, Any]]:
    """Return the entry of ``addresses``: one more address of the public link. ``shared``: of a pair's active one."""
    return {assigned.address: {"link": "public", "prefix": assigned.prefix, "shared": shared}}
