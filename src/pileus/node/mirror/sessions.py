"""What a decapsulator does with each frame, in Python: oracle of the XDP program, and engine of the slower path. No I/O."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from pileus.node.mirror import wire
from pileus.node.mirror.wire import Header, Refused

To = Literal["sniffers", "store"]
"""``sniffers``: given back behind a label. ``store``: kept, with its tunnel header and ETHERTYPE_LABEL."""

_HALF = 1 << 31


@dataclass(slots=True)
class Counts:
    """Of one session under one key. ``bytes``: of the mirrored frames. ``forwarded``: given back or kept.

    ``first``: number of the first that came. ``highest`` goes on above 32 bits; lost on the way = highest - first + 1 -
    received, where the first number of a session of Pileus is 0.
    """

    received: int = 0
    bytes: int = 0
    first: int = 0
    highest: int = 0
    truncated: int = 0
    forwarded: int = 0


@dataclass(slots=True)
class _Entry:
    key: int
    source: str
    to: To
    counts: Counts = field(default_factory=Counts)


class Sessions:
    """The same calls as ``xdp.XdpPath``, and ``take`` instead of a device."""

    def __init__(self) -> None:
        self._entries: dict[int, _Entry] = {}
        self._foreign: dict[tuple[str, int, int], int] = {}
        self._refused = dict.fromkeys(wire.REASONS, 0)

    def put(self, slot: int, key: int, source: str, to: To) -> None:
        """Take frames with this key from this source; a slot with another key starts its counts anew.

        Raises: ValueError: the slot is not the key's low 16 bits.
        """
        check_slot(slot, key)
        known = self._entries.get(slot)
        counts = known.counts if known is not None and known.key == key else Counts()
        self._entries[slot] = _Entry(key, source, to, counts)

    def remove(self, slot: int) -> None:
        """Refuse the session's frames from now on."""
        self._entries.pop(slot, None)

    def put_foreign(self, source: str, session: int, erspan: int, key: int) -> None:
        """Take frames of ERSPAN type 2 or 3 without sub-header as those of the session with this key, which ``put`` names."""
        self._foreign[source, session, erspan] = key

    def remove_foreign(self, source: str, session: int, erspan: int) -> None:
        """Refuse them from now on."""
        self._foreign.pop((source, session, erspan), None)

    def counts(self, slot: int) -> Counts | None:
        """Return what came; None: nobody has the slot."""
        entry = self._entries.get(slot)
        return None if entry is None else entry.counts

    def refused(self) -> dict[str, int]:
        """Return how many frames were refused, by reason."""
        return dict(self._refused)

    def take(self, frame: bytes) -> tuple[To, bytes] | None:
        """Count the frame; return where it goes and as what, or None: it is refused."""
        found = wire.parse(frame)
        if isinstance(found, Refused):
            self._refused[found.reason] += 1
            return None
        entry = self._entry(found.header)
        if entry is None:
            self._refused["unknown-session"] += 1
            return None
        _count(entry.counts, found.header, len(found.frame))
        if entry.to == "sniffers":
            return "sniffers", wire.label(entry.key) + found.frame
        end = found.header.overhead_bytes + len(found.frame)
        return "store", frame[:12] + wire.ETHERTYPE_LABEL.to_bytes(2, "big") + frame[14:end]

    def _entry(self, header: Header) -> _Entry | None:
        key = header.key
        if not header.leg:
            named = self._foreign.get((header.source, header.session, header.erspan))
            if named is None:
                return None
            key = named
        entry = self._entries.get(key & wire.SLOT_MASK)
        if entry is None or entry.key != key:
            return None
        return entry if entry.source == header.source else None


def check_slot(slot: int, key: int) -> None:
    """Raises: ValueError: such a session cannot be."""
    if not 0 < key <= wire.KEY_MAX or key & wire.SLOT_MASK != slot:
        raise ValueError(f"key {key:#x} does not belong to slot {slot}")


def ahead(sequence: int, highest: int) -> int:
    """Return by how much a number of 32 bits is beyond the highest so far; 0: it is not. Source: RFC 1982."""
    step = (sequence - highest) & 0xFFFFFFFF
    return step if step < _HALF else 0


def _count(counts: Counts, header: Header, length: int) -> None:
    if not counts.received:
        counts.first = counts.highest = header.sequence
    counts.received += 1
    counts.bytes += length
    counts.highest += ahead(header.sequence, counts.highest)
    counts.truncated += header.truncated
    counts.forwarded += 1
