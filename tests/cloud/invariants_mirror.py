"""What must hold at every moment of mirrors: whose packets are where, what is counted, and who holds which place."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any, TypeVar

import msgspec
import sqlalchemy as sa
from msgspec.structs import asdict

from pileus.mirror.session.types import SessionAssigned, SessionCounts, SessionObserved, slot_space
from pileus.node.mirror.wire import Arrived
from tests.cloud.invariants import Broken, Ledger
from tests.cloud.world import Cloud

T = TypeVar("T")

SESSIONS = sa.text("SELECT id, account_id, assigned, observed FROM resource WHERE kind = 'mirror.session'")
SLOTS = sa.text("SELECT space, value, owner FROM claim WHERE space LIKE 'mirror/slot/%'")

_ETHERNET = bytes.fromhex("0250000000020250000000010800")
_TAG = b"account:"
_PROTOCOLS = {"tcp": 6, "udp": 17}


def tagged(account: str, protocol: str, port: int) -> bytes:
    """Return a frame that says whose it is; at 128 bytes it still does."""
    payload = _TAG + account.encode() + b"."
    header = {"tcp": bytes(8) + b"\x50\x10" + bytes(6), "udp": (8 + len(payload)).to_bytes(2, "big") + bytes(2)}[
        protocol
    ]
    segment = (40_000).to_bytes(2, "big") + port.to_bytes(2, "big") + header + payload
    ip = b"\x45\x00" + (20 + len(segment)).to_bytes(2, "big") + bytes.fromhex("1234400040")
    addresses = bytes([10, 1, 1, 11, 10, 1, 1, 10])
    return _ETHERNET + ip + bytes([_PROTOCOLS[protocol]]) + bytes(2) + addresses + segment


def _account_of(frame: bytes) -> str:
    return frame.partition(_TAG)[2].partition(b".")[0].decode()


class MirrorLedger:
    """What earlier checks saw of mirrors."""

    def __init__(self) -> None:
        self.keys: dict[int, str] = {}
        """The account of every key ever seen."""
        self.counts: dict[str, SessionCounts] = {}
        self.seen: Counter[str] = Counter()
        self._read: dict[str, int] = {}

    def unread(self, where: str, frames: list[T]) -> list[T]:
        """Return what came to a place since it was asked last."""
        begin = self._read.get(where, 0)
        self._read[where] = len(frames)
        return frames[begin:]


async def note_keys(world: Cloud, known: MirrorLedger) -> None:
    """Note whose sessions have which keys now."""
    for _, account, assigned, _ in await world.store.fetch(SESSIONS):
        _note_key(known, account, msgspec.json.decode(assigned, type=SessionAssigned))


def _note_key(known: MirrorLedger, account: str, assigned: SessionAssigned) -> None:
    key = int(assigned.key or "0", 16)
    if key and known.keys.setdefault(key, account) != account:
        raise Broken(f"a mirror's key was given to two accounts: {account} and {known.keys[key]}")


async def check_mirrors(world: Cloud, ledger: Ledger, known: MirrorLedger) -> None:
    """Sessions count upwards, each has its own place, and nobody gets packets of others. Raises: Broken."""
    sessions = [
        (id, account, msgspec.json.decode(assigned, type=SessionAssigned), observed)
        for id, account, assigned, observed in await world.store.fetch(SESSIONS)
    ]
    for id, account, assigned, observed in sessions:
        _note_key(known, account, assigned)
        if observed:
            _check_counts(id, msgspec.json.decode(observed, type=SessionObserved).counts, known)
    _check_places([(id, assigned) for id, _, assigned, _ in sessions], await world.store.fetch(SLOTS))
    for host_id, host in world.hosts.items():
        for port, frames in host.mirror.delivered.items():
            _check_delivered(ledger.port_of[port][0], known.unread(f"{host_id}/delivered/{port}", frames), known)
        for port, arrived in host.mirror.arrived.items():
            _check_arrived(known.unread(f"{host_id}/arrived/{port}", arrived), known)


def _check_counts(id: str, counts: SessionCounts, known: MirrorLedger) -> None:
    before = asdict(known.counts.get(id, SessionCounts()))
    now = asdict(counts)
    if any(now[word] < before[word] for word in now):
        less = {word: (before[word], now[word]) for word in now if now[word] < before[word]}
        raise Broken(f"counts of session {id} went down: {less}, all: {counts}")
    known.counts[id] = counts


def _check_places(sessions: Iterable[tuple[str, SessionAssigned]], claims: Iterable[Any]) -> None:
    held = {(space, value): owner for space, value, owner in claims}
    keys: dict[str, str] = {}
    for id, assigned in sessions:
        if not assigned.decapsulator:
            continue
        if held.pop((slot_space(assigned.decapsulator), str(assigned.slot)), "") != id:
            raise Broken(f"session {id} has place {assigned.slot} at {assigned.decapsulator} without a claim")
        if keys.setdefault(assigned.key, id) != id:
            raise Broken(f"sessions {id} and {keys[assigned.key]} have one key")
    if held:
        raise Broken(f"places at decapsulators are held by sessions that are not there: {held}")


def _check_delivered(owner: str, frames: list[bytes], known: MirrorLedger) -> None:
    known.seen["frames at sniffers"] += len(frames)
    for frame in frames:
        if _account_of(frame) != owner:
            raise Broken(f"I1: a port of {owner} was given a frame of {_account_of(frame)}")


def _check_arrived(frames: list[Arrived], known: MirrorLedger) -> None:
    known.seen["frames at decapsulators"] += len(frames)
    for one in frames:
        owner = known.keys.get(one.header.key)
        if _account_of(one.frame) != owner:
            raise Broken(f"I1: a session of {owner} was given a frame of {_account_of(one.frame)}")
