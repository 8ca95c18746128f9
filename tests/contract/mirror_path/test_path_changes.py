"""Sessions are re-keyed, redirected and removed a thousand times while frames flow: never is one in the wrong place.

Each frame carries its key, and how many changes of its slot were done when it was sent. It may arrive where the session with
its key went in that state or a later one, and nowhere else. A frame of a foreign session has no key: it may arrive under one
that its session had in that state or later. Each has a source of its own, so groups of foreign sessions come and go as well.
"""

from __future__ import annotations

import random
import select
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from tests.contract.ebpf.rooms import Room
from tests.contract.mirror_path.devices import Devices

from pileus.node.mirror import wire
from pileus.node.mirror.sessions import To

SEED = 31_072_026
SOURCE = "10.9.0.1"
OWN_SLOTS, SLOTS = 8, 12
CHANGES = 1_000
COPIES = 16
ETHERNET = b"\x02\0\0\0\0\xaa\x02\0\0\0\0\xbb\x08\x00"
TAG = struct.Struct(">QII")
PATIENCE_S = 30.0


@dataclass(slots=True)
class Slot:
    """``states``: key and destination, each from when its change began; ``done``: how many of the changes are through."""

    number: int
    source: str = SOURCE
    states: list[tuple[int, To | None]] = field(default_factory=lambda: [(0, None)])
    done: int = 0

    @property
    def is_foreign(self) -> bool:
        """Whether its frames have no key."""
        return self.source != SOURCE

    def frames(self) -> Iterator[bytes]:
        """Frames under the key in force, under the one before, and under one that nobody ever had."""
        done = self.done
        if self.is_foreign:
            header = wire.Header(source=self.source, erspan=2, session=self.number, sequence=done)
            yield wire.encapsulate(header, ETHERNET + TAG.pack(0, self.number, done) + bytes(40))
            return
        current, former = self.states[done][0], self.states[max(0, done - 1)][0]
        for key in (current, former, current ^ 1 << 50):
            tag = TAG.pack(key, self.number, done)
            yield wire.encapsulate(wire.own_header(key, SOURCE, done), ETHERNET + tag + bytes(40))

    def allows(self, key: int, done: int, where: To) -> bool:
        """Whether a frame with this tag may be there; key 0: nothing is known of it."""
        return (key, where) in self.states[done:] or (not key and where in [to for _, to in self.states[done:]])


class Traffic:
    """A thread that sends all slots' frames round after round, and one that reads what arrives, and where."""

    def __init__(self, devices: Devices, slots: list[Slot]) -> None:
        self.arrived: dict[tuple[To, int, int, int, int], int] = {}
        """By where, the label's key (kept: the header's), and the tag."""
        self.sent = 0
        self._devices = devices
        self._slots = slots
        self._round = 0
        self._went_round = threading.Condition()
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._send), threading.Thread(target=self._read)]

    def __enter__(self) -> Traffic:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def wait_rounds(self, count: int) -> None:
        """Return when that many whole rounds more were sent."""
        with self._went_round:
            until = self._round + count + 1
            assert self._went_round.wait_for(lambda: self._round >= until, PATIENCE_S)

    def _send(self) -> None:
        while not self._over.is_set():
            for slot in self._slots:
                for frame in slot.frames():
                    self._devices.send(frame, COPIES)
                    self.sent += COPIES
            with self._went_round:
                self._round += 1
                self._went_round.notify_all()

    def _read(self) -> None:
        relay, kept = self._devices.relay, self._devices.kept
        while True:
            ready = select.select([relay, kept], [], [], 0.3)[0]
            if not ready and self._over.is_set():
                return
            for each in ready:
                self._note("sniffers" if each is relay else "store", each.recv(4096))

    def _note(self, where: To, frame: bytes) -> None:
        if where == "sniffers":
            labelled = wire.read_label(frame)
            assert labelled is not None
            key, inner = labelled
        else:
            found = wire.parse(frame, ethertype=wire.ETHERTYPE_LABEL)
            assert isinstance(found, wire.Arrived)
            key, inner = found.header.key, found.frame
        seen = (where, key, *TAG.unpack_from(inner, len(ETHERNET)))
        self.arrived[seen] = self.arrived.get(seen, 0) + 1


@pytest.fixture(params=["native", "generic"])
def devices(request: pytest.FixtureRequest, room: Room) -> Iterator[Devices]:
    made = Devices(room, request.param)
    yield made
    made.close()


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thousand_changes_under_load_put_no_frame_into_the_wrong_place(devices: Devices) -> None:
    rng = random.Random(SEED)
    slots = [Slot(number) for number in range(OWN_SLOTS)]
    slots += [Slot(number, f"192.0.2.{number}") for number in range(OWN_SLOTS, SLOTS)]
    with Traffic(devices, slots) as traffic:
        for change in range(CHANGES):
            _change(devices, rng.choice(slots), rng)
            if change % 4 == 0:
                traffic.wait_rounds(1)
        traffic.wait_rounds(2)
    assert sum(slot.done for slot in slots) == CHANGES
    for (where, key, tagged, number, done), count in traffic.arrived.items():
        is_foreign = slots[number].is_foreign
        assert tagged == (0 if is_foreign else key), f"{count} frames of {tagged:x} are in the place of {key:x}"
        assert key or (is_foreign and where == "store")
        assert slots[number].allows(key, done, where), f"{count} frames of {key:x} after {done} changes are at {where}"
    assert len({key for _, key, *_ in traffic.arrived}) > CHANGES // 8
    assert {(where, number < OWN_SLOTS) for where, _, _, number, _ in traffic.arrived} == {
        ("sniffers", True), ("store", True), ("sniffers", False), ("store", False),
    }  # fmt: skip
    print(f"{traffic.sent} frames sent, {sum(traffic.arrived.values())} arrived of {len(traffic.arrived)} kinds")


def _change(devices: Devices, slot: Slot, rng: random.Random) -> None:
    key, to = slot.states[-1]
    what = rng.choice(["key", "key", "redirect", "remove"])
    if to is None or what == "key":
        state: tuple[int, To | None] = (rng.getrandbits(41) << 16 | slot.number, rng.choice(["sniffers", "store"]))
    elif what == "redirect":
        state = (key, "store" if to == "sniffers" else "sniffers")
    else:
        state = (key, None)
    slot.states.append(state)
    if state[1] is None:
        if slot.is_foreign:
            devices.path.remove_foreign(slot.source, slot.number, 2)
        devices.path.remove(slot.number)
    else:
        devices.path.put(slot.number, state[0], slot.source, state[1])
        if slot.is_foreign:
            devices.path.put_foreign(slot.source, slot.number, 2, state[0])
    slot.done += 1
