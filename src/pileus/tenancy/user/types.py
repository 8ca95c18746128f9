"""A user: a person or program that holds keys, in an account or (an operator) in none."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from pileus.kernel.condition import Condition, ready, unready
from pileus.kernel.fields import RoleRef
from pileus.kernel.kind import Column, Kind, Resource


class UserDesired(Struct, frozen=True, kw_only=True):
    """Who it is and what it may do."""

    role: Annotated[RoleRef, Meta(description="owner, member, reader, or a role of the account.")] = "member"
    email: Annotated[str, Meta(max_length=200, description="For people; never a login.")] = ""
    state: Annotated[
        Literal["active", "disabled"], Meta(description="A disabled user's keys stop working within 5 seconds.")
    ] = "active"


def _ready(resource: Resource) -> Condition:
    if resource.desired.state == "disabled":
        return unready("Disabled", "the user is disabled; set state to active to let its keys work again")
    return ready()


KIND = Kind(
    name="tenancy.user",
    summary="A person or program; its keys give it the rights of its role.",
    desired=UserDesired,
    ready=_ready,
    scope="either",
    readable_by="operator",
    columns=(Column("ROLE", "desired.role"), Column("STATE", "desired.state")),
)
