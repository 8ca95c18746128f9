"""A provider: who owns hosts and pools without being the operator."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from pileus.kernel.condition import Condition, ready
from pileus.kernel.kind import Column, Kind, Resource


class ProviderDesired(Struct, frozen=True, kw_only=True):
    """Whom to talk to."""

    contact: Annotated[str, Meta(max_length=200, description="Person or address to talk to.")] = ""


def _ready(resource: Resource) -> Condition:
    return ready()


KIND = Kind(
    name="infra.provider",
    summary="An owner of hosts and storage pools who is not the operator.",
    desired=ProviderDesired,
    ready=_ready,
    scope="cluster",
    readable_by="operator",
    writable_by="operator",
    columns=(Column("CONTACT", "desired.contact"),),
)
