"""A key: the secret with which a user or manager calls the API. Only its hash is kept; it is shown once, at creation."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from pileus.kernel.condition import Condition, ready
from pileus.kernel.fields import ManagerRef, UserRef
from pileus.kernel.kind import Column, Kind, Resource


class KeyDesired(Struct, frozen=True, kw_only=True):
    """Whose key it is, and until when."""

    user: Annotated[UserRef, Meta(description="The user whose rights the key gives.")] = ""
    manager: Annotated[ManagerRef, Meta(description="The fleet manager that calls with it; instead of a user.")] = ""
    expires_at: Annotated[
        str, Meta(description="RFC 3339 time after which the key is refused; empty: never.", extra={"format": "time"})
    ] = ""


def _ready(resource: Resource) -> Condition:
    return ready()


KIND = Kind(
    name="tenancy.key",
    summary="A bearer key of a user or a fleet manager. The secret is printed once, by the call that creates it.",
    desired=KeyDesired,
    ready=_ready,
    scope="either",
    readable_by="operator",
    immutable=frozenset({"user", "manager"}),
    columns=(
        Column("USER", "desired.user"),
        Column("MANAGER", "desired.manager"),
        Column("EXPIRES", "desired.expires_at"),
    ),
)
