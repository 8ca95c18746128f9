"""Notices: what a manager is told of what it stands for. Each is written in the transaction that makes it true.

They wait in the table ``notice`` until they were taken; those about one subject are given in the order of their commits.
"""

from __future__ import annotations

from typing import Any, Literal

from msgspec import Struct

TOLD_SPACE = "notices"
"""The claims of managers that are told: for all others nothing is written."""


class Notice(Struct, frozen=True, kw_only=True):
    """One message to the manager of a resource."""

    type: str
    """What happened, such as ``request.settled``."""
    subject: str
    """Id of what it is about: what is said of the same subject stays in order."""
    keep: Literal["each", "newest"] = "each"
    """``newest``: it takes the place of one about the subject that was not given yet."""
    about: dict[str, str] = {}
    """Ids and names for the receiver, beside type, time and account."""
    data: dict[str, Any] = {}
