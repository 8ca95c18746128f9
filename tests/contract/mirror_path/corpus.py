"""Frames for a decapsulator, good and bad, all from one seed; and the same sessions for everything that is compared."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Literal, Protocol

from pileus.node.mirror import wire
from pileus.node.mirror.sessions import To
from pileus.node.mirror.wire import Header

SOURCE, ELSEWHERE = "10.9.0.1", "10.9.0.99"
TAP, SWITCH, UNKNOWN = 0x2AAAA_5555_0000 | 5, 0x1234_5678_0000 | 900, 0x3FFF_0000_0000_0000 | 7
KEPT = 0x0F0F_0F0F_0000 | 6
FOREIGN = ((2, 77), (3, 78))
DIRECTIONS: tuple[Literal["ingress", "egress"], ...] = ("ingress", "egress")
OUTER_BYTES = 76
"""Every byte of the longest header and of the mirrored frame's own one."""


class Path(Protocol):
    """What the kernel's path and Python's have in common."""

    def put(self, slot: int, key: int, source: str, to: To) -> None: ...

    def put_foreign(self, source: str, session: int, erspan: int, key: int) -> None: ...


def furnish(path: Path) -> None:
    """Make the sessions: one to a sniffer, one that is kept, and one of a switch, that is known by both types."""
    path.put(TAP & wire.SLOT_MASK, TAP, SOURCE, "sniffers")
    path.put(KEPT & wire.SLOT_MASK, KEPT, SOURCE, "store")
    path.put(SWITCH & wire.SLOT_MASK, SWITCH, SOURCE, "sniffers")
    for erspan, session in FOREIGN:
        path.put_foreign(SOURCE, session, erspan, SWITCH)
    path.put_foreign(SOURCE, 79, 2, UNKNOWN)
    path.put_foreign(ELSEWHERE, 77, 2, SWITCH)


def headers(rng: random.Random) -> list[Header]:
    """Return one of each kind, with random fields."""
    own = Header(
        source=SOURCE, destination="10.9.0.2", sequence=rng.randrange(1 << 32), cos=rng.randrange(8), leg=1, key=TAP,
        session=TAP & 1023, truncated=rng.random() < 0.3, timestamp=rng.randrange(1 << 32),
        direction=rng.choice(DIRECTIONS), vlan=rng.randrange(4096),
    )  # fmt: skip
    plain = replace(own, leg=0, key=0)
    return [
        own,
        replace(own, key=KEPT),
        replace(own, key=UNKNOWN),
        replace(own, source=ELSEWHERE),
        replace(own, leg=2),
        replace(plain, session=78),
        replace(plain, session=77),
        replace(plain, erspan=2, session=77),
        replace(plain, erspan=2, session=78),
        replace(plain, erspan=2, session=79),
        replace(plain, erspan=2, session=77, source=ELSEWHERE),
        replace(plain, erspan=1),
    ]


def systematic(rng: random.Random) -> Iterator[bytes]:
    """Return every kind whole, cut at each length, padded, and with each bit of its headers changed."""
    for header in headers(rng):
        frame = wire.encapsulate(header, rng.randbytes(60))
        yield frame
        yield frame + rng.randbytes(rng.randrange(1, 30))
        yield from (frame[:length] for length in range(len(frame)))
        for inner in (0, 13, 14, 15, 1500):
            yield wire.encapsulate(header, rng.randbytes(inner))
        for at in range(OUTER_BYTES):
            for value in {0, 255, *(frame[at] ^ 1 << bit for bit in range(8))}:
                yield frame[:at] + bytes([value]) + frame[at + 1 :]


def wild(rng: random.Random, count: int) -> Iterator[bytes]:
    """Return frames of which about one in three is taken: as they should be, damaged, padded, cut, or only noise."""
    for _ in range(count):
        if rng.random() < 0.1:
            yield rng.randbytes(rng.randrange(14, 120))
            continue
        frame = bytearray(wire.encapsulate(rng.choice(headers(rng)), rng.randbytes(rng.randrange(10, 90))))
        for _ in range(rng.choice((0, 0, 1, 1, 2, 4))):
            frame[rng.randrange(min(len(frame), OUTER_BYTES))] = rng.randrange(256)
        way = rng.random()
        if way < 0.1:
            del frame[rng.randrange(14, len(frame)) :]
        elif way < 0.2:
            frame += rng.randbytes(rng.randrange(1, 20))
        yield bytes(frame)
