"""What a policy is for the engine, and which acts can be: pure decisions."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from pileus.kernel.access import Principal
from pileus.kernel.errors import Invalid
from pileus.kernel.kind import Resource
from pileus.monitor.policy.types import PolicyAct, PolicyDesired

_LAST = frozenset({"terminate"})

NEEDS: dict[str, tuple[tuple[str, str], ...]] = {
    "restart-application": (("create", "fleet.request"),),
    "suspend-application": (("create", "fleet.request"),),
    "resume-application": (("create", "fleet.request"),),
    "terminate-application": (("create", "fleet.request"),),
    "restart": (("update", "compute.vm"),),
    "suspend": (("update", "compute.vm"), ("update", "fleet.node")),
    "isolate": (("update", "compute.vm"),),
    "snapshot": (("create", "storage.snapshot"),),
    "stop": (("update", "compute.vm"), ("update", "fleet.node")),
    "terminate": (("delete", "compute.vm"), ("delete", "fleet.node")),
    "configure": (("update", "fleet.node"),),
    "ask": (),
    "webhook": (),
}
"""By verb: (verb, kind) that whoever has it done must be allowed: nobody has done by a monitor what they may not do."""


def engine_policy(policy: Resource) -> dict[str, Any]:
    """Return the policy as the engine reads it."""
    desired: PolicyDesired = policy.desired
    plain: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(desired))  # lists, as it travels
    del plain["monitor"]
    return {"name": policy.name, **plain}


def check_acts(acts: Iterable[PolicyAct]) -> None:
    """Raises: Invalid for an act that lacks what it needs, or has what it does not take."""
    ended = ""
    for number, act in enumerate(acts):
        where = f"desired.do.{number}"
        if ended:
            raise Invalid(f"nothing can be done after {ended}", field=where)
        if act.do == "configure" and not act.document:
            raise Invalid("configure needs a document: section, key, entry", field=f"{where}.document")
        if act.document and act.do != "configure":
            raise Invalid(f"{act.do} takes no document", field=f"{where}.document")
        if act.do == "webhook" and not act.url.startswith("https://"):
            raise Invalid("webhook needs an https URL", field=f"{where}.url")
        if act.url and act.do != "webhook":
            raise Invalid(f"{act.do} takes no url", field=f"{where}.url")
        if act.application and not act.do.endswith("-application"):
            raise Invalid(f"{act.do} takes no application", field=f"{where}.application")
        ended = act.do if act.do in _LAST else ""


def require_rights(principal: Principal, acts: Iterable[PolicyAct]) -> None:
    """Raises: Denied unless the caller may do all of it by hand."""
    for act in acts:
        for verb, kind in NEEDS[act.do]:
            principal.require(verb, kind)
