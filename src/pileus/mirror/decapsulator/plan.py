"""What a decapsulator shall run, and what it is. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pileus.kernel.kind import Resource
from pileus.mirror.session.types import SessionAssigned, SessionDesired

Document = dict[str, dict[str, Any]]
LINKS = ("tunnel", "sniffers")
"""Its NICs, in their order."""


def document(macs: Sequence[str], sessions: Iterable[Resource]) -> Document:
    """Return the node's document; see pileus.node.mirror for its shape."""
    entries = {session.id: _entry(session) for session in sessions}
    links = {name: {"mac": mac} for name, mac in zip(LINKS, macs, strict=True)}
    return {"links": links, **({"sessions": entries} if entries else {})}


def _entry(session: Resource) -> dict[str, Any]:
    assigned: SessionAssigned = session.assigned
    desired: SessionDesired = session.desired
    entry = {
        "key": assigned.key,
        "source": assigned.source_address,
        "to": "sniffers" if assigned.sniffer else "store",
        "name": session.name,
        "ends_at": assigned.ends_at,
    }
    return entry if assigned.sniffer else {**entry, "store_mib": desired.store_mib}


def refused(status: Mapping[str, Any]) -> dict[str, int]:
    """Return the packets that the node refused, by reason; what makes no sense is left out."""
    said = status.get("refused")
    if not isinstance(said, dict):
        return {}
    return {str(word)[:40]: count for word, count in list(said.items())[:20] if isinstance(count, int) and count >= 0}
