"""An account: a tenant of the cloud, the owner of everything that is not the cluster's own."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from pileus.kernel.condition import Condition, ready
from pileus.kernel.kind import Column, Kind, Resource


class AccountDesired(Struct, frozen=True, kw_only=True):
    """What an account shall be."""

    description: Annotated[str, Meta(max_length=200, description="Who this is, for people.")] = ""
    email: Annotated[str, Meta(max_length=200, description="Where bills and warnings go.")] = ""


def _ready(resource: Resource) -> Condition:
    return ready()


KIND = Kind(
    name="tenancy.account",
    summary="A tenant: owns VMs, networks, images, users and quotas. `create account` also makes its vdc and network.",
    desired=AccountDesired,
    ready=_ready,
    scope="cluster",
    readable_by="operator",
    writable_by="operator",
    columns=(Column("DESCRIPTION", "desired.description"),),
)
