"""A role: a closed list of what its users may do. Policies are data and are never evaluated as code."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from pileus.kernel.access import Rule
from pileus.kernel.condition import Condition, ready
from pileus.kernel.kind import Column, Kind, Resource


class RoleDesired(Struct, frozen=True, kw_only=True):
    """What the role allows."""

    rules: Annotated[tuple[Rule, ...], Meta(max_length=100, description="What is allowed; all else is denied.")] = ()
    description: Annotated[str, Meta(max_length=200, description="For people.")] = ""


VERBS = ("get", "create", "update", "delete", "console")
"""``get`` covers list and watch; ``console`` covers logs, the serial console and connections to ports."""
TENANT_KINDS = ("storage.*", "network.*", "compute.*", "gateway.*", "mirror.*")
FLEET_KINDS = ("fleet.package", "fleet.node", "fleet.request", "fleet.rollout")
"""What a manager runs; whom to let do so is the account's owner's to say (``fleet.manager``, ``fleet.consent``)."""

BUILTIN: dict[str, RoleDesired] = {
    "operator": RoleDesired(
        rules=(Rule(kinds=("*",), verbs=VERBS),), description="Everything, in every account and in the cluster."
    ),
    "owner": RoleDesired(
        rules=(Rule(kinds=("*",), verbs=VERBS),), description="Everything in its own account, its users included."
    ),
    "member": RoleDesired(
        rules=(Rule(kinds=(*TENANT_KINDS, *FLEET_KINDS), verbs=VERBS), Rule(kinds=("*",), verbs=("get",))),
        description="Everything in its own account but users, roles and keys.",
    ),
    "reader": RoleDesired(
        rules=(Rule(kinds=("*",), verbs=("get",)),), description="Reads everything in its own account."
    ),
}
"""Roles that every cluster has from the first start."""

MANAGER = RoleDesired(
    rules=(
        Rule(kinds=("fleet.*",), verbs=("get",)),
        Rule(kinds=FLEET_KINDS, verbs=("create", "update", "delete")),
        Rule(kinds=("fleet.manager",), verbs=("update",)),
        Rule(kinds=("storage.image",), verbs=("get", "create", "update", "delete")),
    ),
    description="What a fleet manager's keys allow, over what is its own.",
)
"""No row of the database: nobody can change what managers may do."""


def _ready(resource: Resource) -> Condition:
    return ready()


KIND = Kind(
    name="tenancy.role",
    summary="A named list of what users may do; default deny.",
    desired=RoleDesired,
    ready=_ready,
    scope="either",
    columns=(Column("DESCRIPTION", "desired.description"),),
)
