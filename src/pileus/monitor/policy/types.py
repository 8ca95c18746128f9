"""A policy: clauses over the appliance state table, and what is done when they hold. Closed data, never code."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from pileus.kernel.condition import Condition, ready
from pileus.kernel.fields import MonitorRef
from pileus.kernel.kind import Column, Kind, Resource

Operator = Literal[
    "is", "is-not", "one-of", "above", "below", "older", "newer", "contains", "missing", "present"
]  # fmt: skip


class PolicyClause(Struct, frozen=True, kw_only=True):
    """One comparison with a field of the table. ``older`` and ``newer`` compare versions, ``above`` and ``below`` numbers;
    ``contains`` looks into text, lists and objects; ``missing`` and ``present`` take no value. ``execution.state`` is
    running, paused, stopped, hung, silent or unknown; the state of an application running, failed, stopped, suspended or
    starting; ``other.findings.*.state`` is found, clean or unknown.
    """

    field: Annotated[
        str,
        Meta(
            max_length=200,
            description="Field of `pileus describe state`, such as execution.state, io.idle_s, other.role or "
            "applications.*.state; * stands for any name, and the acts are done to what it found.",
        ),
    ]
    operator: Annotated[Operator, Meta(description="How it is compared.")] = "is"
    value: Annotated[str | int | float | bool | tuple[str, ...], Meta(description="With what; for one-of a list.")] = ""
    for_s: Annotated[int, Meta(ge=0, le=86_400, description="Seconds that it must have held.")] = 0


Verb = Literal[
    "restart-application", "suspend-application", "resume-application", "terminate-application",
    "restart", "suspend", "isolate", "snapshot", "stop", "terminate",
    "configure", "ask", "webhook",
]  # fmt: skip
"""``terminate`` deletes the appliance. ``configure`` merges ``document`` into its node's: versions, users, rights,
registrations. ``ask`` waits for a person."""

WHOLE = frozenset({"restart", "suspend", "isolate", "stop", "terminate"})
"""What is done to an appliance as a whole, which the cap of the fleet counts."""


class PolicyAct(Struct, frozen=True, kw_only=True):
    """One thing that is done, after those before it."""

    do: Annotated[Verb, Meta(description="What is done.")]
    application: Annotated[
        str, Meta(max_length=63, description="Which application; empty: the one that the clauses found with *.")
    ] = ""
    document: Annotated[
        dict[str, dict[str, Any]],
        Meta(description="For configure: section, key, new entry; null takes an entry out."),
    ] = {}
    url: Annotated[str, Meta(max_length=500, description="For webhook: an https URL.")] = ""


class PolicyDesired(Struct, frozen=True, kw_only=True):
    """When what is done, on which of the monitor's appliances."""

    monitor: Annotated[MonitorRef, Meta(description="The monitor whose table it reads.")]
    when: Annotated[tuple[PolicyClause, ...], Meta(min_length=1, max_length=16, description="The clauses.")]
    match: Annotated[Literal["all", "any"], Meta(description="Whether all clauses must hold, or one.")] = "all"
    do: Annotated[tuple[PolicyAct, ...], Meta(min_length=1, max_length=8, description="What is done, in order.")]
    labels: Annotated[dict[str, str], Meta(description="Only for appliances with all these labels.")] = {}
    mode: Annotated[
        Literal["observe", "enforce"],
        Meta(description="observe: what would be done is written, and not done."),
    ] = "observe"
    cooldown_s: Annotated[
        int, Meta(ge=0, le=86_400, description="Seconds between two of its actions on the same thing, at first.")
    ] = 10


def _ready(resource: Resource) -> Condition:
    desired: PolicyDesired = resource.desired
    return ready("Enforced") if desired.mode == "enforce" else ready("Observed", "it writes what it would do")


KIND = Kind(
    name="monitor.policy",
    summary="What a monitor does when something holds in its state table.",
    desired=PolicyDesired,
    ready=_ready,
    aliases=("policies",),
    immutable=frozenset({"monitor"}),
    columns=(
        Column("MONITOR", "desired.monitor"),
        Column("MODE", "desired.mode"),
        Column("WHEN", "desired.when[*].field"),
        Column("DO", "desired.do[*].do"),
    ),
)
