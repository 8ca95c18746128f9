"""Annotated types for the fields of sections: what ``explain``, the CLI's flags and admission are derived from.

``ref`` in a field's extra data names the kind that its value must be the name or id of; ``file`` lets the CLI read the
value from a file; ``unit`` is said in messages; ``internal`` keeps a field that users never write out of help and flags.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

AccountRef = Annotated[str, Meta(extra={"ref": "tenancy.account"})]
UserRef = Annotated[str, Meta(extra={"ref": "tenancy.user"})]
RoleRef = Annotated[str, Meta(extra={"ref": "tenancy.role"})]
VdcRef = Annotated[str, Meta(extra={"ref": "tenancy.vdc"})]
ZoneRef = Annotated[str, Meta(extra={"ref": "infra.zone"})]
PodRef = Annotated[str, Meta(extra={"ref": "infra.pod"})]
HostRef = Annotated[str, Meta(extra={"ref": "infra.host"})]
ProviderRef = Annotated[str, Meta(extra={"ref": "infra.provider"})]
ImageRef = Annotated[str, Meta(extra={"ref": "storage.image"})]
SnapshotRef = Annotated[str, Meta(extra={"ref": "storage.snapshot"})]
VolumeRef = Annotated[str, Meta(extra={"ref": "storage.volume"})]
NetworkRef = Annotated[str, Meta(extra={"ref": "network.network"})]
PortRef = Annotated[str, Meta(extra={"ref": "network.port"})]
VmRef = Annotated[str, Meta(extra={"ref": "compute.vm"})]
AddressRef = Annotated[str, Meta(extra={"ref": "gateway.address"})]
VpnRef = Annotated[str, Meta(extra={"ref": "gateway.vpn"})]
OfferingRef = Annotated[str, Meta(extra={"ref": "compute.offering"})]
ManagerRef = Annotated[str, Meta(extra={"ref": "fleet.manager"})]
PackageRef = Annotated[str, Meta(extra={"ref": "fleet.package"})]
NodeRef = Annotated[str, Meta(extra={"ref": "fleet.node"})]
MonitorRef = Annotated[str, Meta(extra={"ref": "monitor.monitor"})]
SignatureRef = Annotated[str, Meta(extra={"ref": "monitor.signature"})]
EntitlementRef = Annotated[str, Meta(extra={"ref": "monitor.entitlement"})]
FilterRef = Annotated[str, Meta(extra={"ref": "mirror.filter"})]
SnifferRef = Annotated[str, Meta(extra={"ref": "mirror.sniffer"})]

YEAR_S = 31_622_400
EndAt = Annotated[
    str,
    Meta(
        max_length=40,
        description="RFC 3339 time at which it ends; empty: at no certain time.",
        extra={"format": "time"},
    ),
]
DurationS = Annotated[
    int, Meta(ge=0, le=YEAR_S, description="How long after it was made it ends, in seconds; 0: not for that.")
]
WarnS = Annotated[
    int, Meta(ge=0, le=YEAR_S, description="How long before the end it is said, as EndsSoon, in seconds.")
]


class Problem(Struct, frozen=True, kw_only=True):
    """What keeps a host from doing what was decided: a CamelCase reason and a sentence with the next step."""

    reason: str
    message: str
