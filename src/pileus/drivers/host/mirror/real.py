"""The mirror of a host by programs in its kernel, in the switch's network namespace.

Every change writes its leg's note, then makes the kernel be as all notes together say: what a killed agent has left
half-done is thereby done or undone. Nothing has to run for copies to go on.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import os
import secrets
import shutil
import struct
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Literal, TypeVar

import msgspec

from pileus.drivers.host.errors import DriverError, OvsdbError
from pileus.drivers.host.mirror import classifiers, devices, layout
from pileus.drivers.host.mirror.base import (
    DeliveryCounts,
    LegCounts,
    LegFact,
    LegSpec,
    RelayCounts,
    SourceCounts,
    SourceSpec,
    refuse_source,
)
from pileus.drivers.host.mirror.pins import Pins
from pileus.drivers.host.mirror.wanted import BUS, COPIES, Devices, Leg, Wanted, can_be, others, plan, taps
from pileus.drivers.host.notes import FileNotes
from pileus.drivers.host.ovs import namespace
from pileus.drivers.host.ovs.base import Uplinks
from pileus.drivers.host.ovs.command import run
from pileus.drivers.host.ovs.database import UNDERLAY
from pileus.drivers.host.ovs.segments import NO_UPLINKS, tunnel_address
from pileus.drivers.host.paths import HostPaths
from pileus.node.ebpf import kernel
from pileus.node.ebpf.assembler import R0, Program

LOOPBACK = 1
QUEUE = "queue-"
"""Begins the names of notes that are not of legs, but of taps whose queue was changed."""

SLOT_BITS = 12
KEPT = ("outgoing", "labels", "arrivals")
"""The maps that hold nothing but what legs need."""

T = TypeVar("T")


class KernelMirror:
    """The mirror of the host whose files lie under ``paths``; its taps are those of the host's switch."""

    def __init__(
        self, paths: HostPaths, uplinks: Uplinks = NO_UPLINKS, *, tcx: Literal["if-there", "never"] = "if-there"
    ) -> None:
        """``tcx`` never: as on a kernel without it, for tests."""
        self._tcx = tcx
        self._namespace = paths.namespace
        self._uplinks = uplinks
        self._legs_folder = paths.run / "mirror-legs"
        self._pins = Pins(paths.run / "mirror", paths.run / "mirror-links")
        self._lock = asyncio.Lock()
        self._notes: FileNotes | None = None
        self._problem = "it was not opened"

    async def open(self) -> None:
        """Adopt what is in force, end what an agent that was killed has left, and find out whether this host can mirror."""
        async with self._lock:
            self._problem = await self._find_problem()
            if self._is_used():
                self._notes = FileNotes(self._legs_folder)
            if os.geteuid() == 0 and (self._is_used() or self._pins.exist()):
                await self._be_as_noted()

    async def close(self) -> None:
        """Let go; copies go on."""
        self._pins.close()

    def problem(self) -> str:
        """Return why this host cannot mirror; "" when it can."""
        return self._problem

    async def observe(self) -> dict[str, LegFact]:
        """Return every leg in force."""
        async with self._lock:
            if not self._is_used() or not self._pins.exist():
                return {}
            legs = self._legs()
            with _without_namespace():
                wanted = plan(legs, await self._devices())
                return await self._inside(lambda: self._facts(legs, wanted))
            return {}

    async def refused(self) -> dict[str, int]:
        """Return how many frames belonged to no leg and were dropped, by reason, since the first leg was put."""
        async with self._lock:
            if not self._pins.exist():
                return {}
            fd = self._pins.maps().refusals
            each = {
                why: kernel.lookup_per_cpu(fd, struct.pack("I", at), 8) for at, why in enumerate(layout.REFUSALS)
            }  # fmt: skip
            return {why: sum(int.from_bytes(one, sys.byteorder) for one in numbers) for why, numbers in each.items()}

    async def known(self) -> Collection[str]:
        """Return the ids of all legs that were put and not removed since."""
        async with self._lock:
            return [leg.spec.id for leg in self._legs()]

    async def put(self, spec: LegSpec) -> None:
        """Make the leg be as ``spec`` says. Raises: DriverError, see ``Mirror.put``."""
        if self._problem:
            self._problem = await self._find_problem()
        if self._problem:
            raise DriverError("MirrorUnsupported", f"this host cannot mirror: {self._problem}")
        async with self._lock:
            legs = [leg for leg in self._legs() if leg.spec.id != spec.id]
            known = await self._devices()
            _refuse(spec, legs, known)
            self._folder()  # by it the next agent sees that there may be something to remove
            await self._ensure_pair(known)
            leg = await self._inside(lambda: self._leg(spec))
            before = self._folder().get(_note_name(spec.id))
            self._folder().put(_note_name(spec.id), msgspec.json.encode(leg))
            try:
                await self._settle([*legs, leg])
            except DriverError:
                await self._undo(spec.id, before)
                raise

    async def remove(self, id: str) -> None:
        """Take the leg out of force; None: nothing."""
        async with self._lock:
            if not self._is_used():
                return
            self._folder().remove(_note_name(id))
            legs = self._legs()
            if not legs:
                await self._remove_all()
                return
            with _without_namespace():
                await self._settle(legs)

    async def tear_down(self) -> None:
        """Remove everything, whoever made it."""
        async with self._lock:
            if self._is_used() or self._pins.exist():
                await self._remove_all()

    def _is_used(self) -> bool:
        return self._legs_folder.exists()

    def _folder(self) -> FileNotes:
        if self._notes is None:
            self._notes = FileNotes(self._legs_folder)
        return self._notes

    def _legs(self) -> list[Leg]:
        if not self._is_used():
            return []
        notes = self._folder()
        found = (notes.get(name) for name in notes.ids() if not name.startswith(QUEUE))
        return [msgspec.json.decode(note, type=Leg) for note in found if note is not None]

    async def _devices(self) -> Devices:
        tunnel = self._uplinks.tunnel
        numbers, mtu = await namespace.inside(self._namespace, lambda: (devices.numbers(), devices.mtu(tunnel)))
        return Devices(
            numbers=numbers, tunnel=tunnel, underlay=UNDERLAY, own=tunnel_address(self._uplinks), tunnel_mtu=mtu
        )

    async def _ensure_pair(self, known: Devices) -> None:
        """Make the devices that copies go through."""
        if known.number(COPIES) and known.number(BUS):
            return
        mtu = devices.PAIR_MTU
        lines = [
            f"link add {COPIES} mtu {mtu} type veth peer name {BUS} mtu {mtu}",
            f"link set {COPIES} addrgenmode none",
            f"link set {BUS} addrgenmode none",
        ]
        try:
            await run(["ip", "-n", self._namespace, "-batch", "-"], text="\n".join(lines) + "\n")
            await namespace.inside(self._namespace, lambda: devices.let_nothing_be_joined(COPIES))
            up = f"link set {BUS} up\nlink set {COPIES} up\n"
            await run(["ip", "-n", self._namespace, "-batch", "-"], text=up)
        except (OSError, OvsdbError) as exc:
            raise DriverError("MirrorUnsupported", f"the host has no devices for copies: {exc}") from exc

    def _leg(self, spec: LegSpec) -> Leg:
        """Return the leg of a spec: with the slot and so the counts that its id and key have, else a new one with none."""
        note = self._folder().get(_note_name(spec.id))
        if note is not None:
            before = msgspec.json.decode(note, type=Leg)
            if before.spec.key == spec.key and type(before.spec) is type(spec):
                return Leg.of(spec, before.slot, before.ticket, before.turn)
        slot = self._free_slot()
        maps, key = self._pins.maps(), struct.pack("I", slot)
        kernel.update(maps.counts, key, bytes(layout.COUNTS_BYTES * kernel.possible_cpus()))
        for fd in (maps.sequences, maps.rates):
            kernel.update(fd, key, bytes(8))
        turn = 1 + max((leg.turn for leg in self._legs()), default=0)
        return Leg.of(spec, slot, secrets.randbits(30 - SLOT_BITS) << SLOT_BITS | slot, turn)

    def _free_slot(self) -> int:
        """Return a slot that nobody has, and hardly anybody had just now."""
        taken = {leg.slot for leg in self._legs()}
        start = secrets.randbelow(layout.SLOTS)
        for step in range(layout.SLOTS):
            slot = (start + step) % layout.SLOTS
            if slot not in taken:
                return slot
        raise DriverError("MirrorUnsupported", f"this host has {layout.SLOTS} legs of mirror sessions already")

    async def _be_as_noted(self) -> None:
        """Do or undo what is half-done; what the kernel refuses now is seen when a leg is observed or put."""
        legs = self._legs()
        with contextlib.suppress(DriverError, OSError):
            if not legs:
                await self._remove_all()
            elif not self._problem:
                await self._settle(legs)

    async def _undo(self, id: str, note: bytes | None) -> None:
        """Let a leg that could not be put hinder no other one."""
        if note is None:
            self._folder().remove(_note_name(id))
        else:
            self._folder().put(_note_name(id), note)
        with contextlib.suppress(DriverError):
            await self._settle(self._legs())

    async def _settle(self, legs: Sequence[Leg]) -> None:
        wanted = plan(legs, await self._devices())
        await self._inside(lambda: self._be(wanted))

    def _be(self, wanted: Wanted) -> None:
        """Make the kernel be as wanted. New entries come before the programs that need them, old ones go after."""
        self._be_queued(wanted)
        present = {name: set(kernel.keys(self._map(name), layout.SHAPES[name][1])) for name in KEPT}
        for (name, key), value in wanted.entries.items():
            if key not in present[name] or kernel.lookup(self._map(name), key, len(value)) != value:
                kernel.update(self._map(name), key, value)
        for link, attachment in wanted.links.items():
            if not self._pins.is_right(link, attachment):
                self._pins.put(link, attachment)
        for link in set(self._pins.links()).difference(wanted.links):
            self._pins.drop(link)
        for name, found in present.items():
            for key in found:
                if (name, key) not in wanted.entries:
                    kernel.delete(self._map(name), key)

    def _be_queued(self, wanted: Wanted) -> None:
        notes, known = self._folder(), devices.numbers()
        for tap, number in wanted.queues.items():
            if notes.get(QUEUE + tap) != str(number).encode():
                devices.say_what_is_dropped(tap, number)
                notes.put(QUEUE + tap, str(number).encode())
        for name in [name for name in notes.ids() if name.startswith(QUEUE)]:
            tap = name.removeprefix(QUEUE)
            if tap not in wanted.queues:
                if str(known.get(tap, 0)).encode() == notes.get(name):
                    devices.be_as_usual(tap, known[tap])
                notes.remove(name)

    def _facts(self, legs: Sequence[Leg], wanted: Wanted) -> dict[str, LegFact]:
        right = {name for name, attachment in wanted.links.items() if self._pins.is_right(name, attachment)}
        facts = {}
        for leg in legs:
            if leg.spec.id not in wanted.needs:
                continue
            entries, links = wanted.needs[leg.spec.id]
            if right.issuperset(links) and all(self._holds(entry, wanted.entries[entry]) for entry in entries):
                facts[leg.spec.id] = LegFact(spec=leg.spec, counts=self._counts(leg))
        return facts

    def _holds(self, entry: tuple[str, bytes], value: bytes) -> bool:
        name, key = entry
        return kernel.lookup(self._map(name), key, len(value)) == value

    def _map(self, name: str) -> int:
        return int(getattr(self._pins.maps(), name))

    def _counts(self, leg: Leg) -> LegCounts:
        each = kernel.lookup_per_cpu(self._pins.maps().counts, struct.pack("I", leg.slot), layout.COUNTS_BYTES)
        total = [sum(column) for column in zip(*(struct.unpack("8Q", one) for one in each), strict=True)]
        if leg.source is not None:
            fields = ("seen", "matched", "sampled", "limited", "failed", "sent", "sent_bytes", "truncated")
            return SourceCounts(**dict(zip(fields, total, strict=True)))
        arrived, dropped, delivered, delivered_bytes, relayed = total[:5]
        if leg.relay is not None:
            return RelayCounts(arrived=arrived, dropped=dropped, relayed=relayed)
        return DeliveryCounts(
            arrived=arrived, delivered=delivered, dropped=dropped, delivered_bytes=delivered_bytes
        )  # fmt: skip

    async def _remove_all(self) -> None:
        with _without_namespace():
            await self._inside(self._be_usual)
            await namespace.delete_link(self._namespace, COPIES)
        self._pins.remove()
        self._notes = None
        shutil.rmtree(self._legs_folder, ignore_errors=True)

    def _be_usual(self) -> None:
        for link in self._pins.links():
            self._pins.drop(link)
        self._be_queued(Wanted())

    async def _find_problem(self) -> str:
        if os.geteuid() != 0:
            return "it needs root"
        try:
            is_wished = self._tcx == "if-there"
            self._pins.has_tcx = await namespace.inside(self._namespace, lambda: _find_tcx(is_wished=is_wished))
        except DriverError as exc:
            return exc.message
        except OSError as exc:
            return f"its kernel refuses programs on network devices (traffic control, XDP, bpffs): {exc.strerror}"
        return ""

    async def _inside(self, work: Callable[[], T]) -> T:
        """Do kernel work in the namespace. Raises DriverError (MirrorUnsupported) for what the kernel refuses."""
        try:
            return await namespace.inside(self._namespace, work)
        except OSError as exc:
            raise DriverError("MirrorUnsupported", f"the kernel refuses the mirror: {exc.strerror}") from exc


@contextlib.contextmanager
def _without_namespace() -> Iterator[None]:
    """End the block quietly when the namespace is gone: devices and links went with it."""
    try:
        yield
    except DriverError as exc:
        if exc.reason != "NoNamespace":
            raise


def _refuse(spec: LegSpec, legs: Sequence[Leg], known: Devices) -> None:
    """Raise DriverError for a spec that cannot be in force."""
    for tap in taps(spec):
        if not known.number(tap):
            raise DriverError("NoPort", f"leg {spec.id} of a mirror session: tap {tap} is not there")
    if others(spec) and not can_be(spec, known):
        raise DriverError(
            "NoTunnel", f"leg {spec.id} of a mirror session needs another host, and the tunnel is missing"
        )
    if isinstance(spec, SourceSpec):
        refuse_source(spec, [leg.spec for leg in legs])


def _note_name(id: str) -> str:
    return hashlib.sha256(id.encode()).hexdigest()[:32]


def _find_tcx(*, is_wished: bool) -> bool:
    """Attach a program that does nothing to the loopback device, each way that the mirror needs; return whether TCX is one.

    Raises OSError.
    """
    if "bpf" not in Path("/proc/filesystems").read_text().split():
        raise OSError(errno.ENODEV, "it has no bpffs")
    with _nothing(kernel.XDP, kernel.ATTACH_XDP, kernel.XDP_PASS) as program:
        os.close(kernel.attach(program, LOOPBACK, kernel.ATTACH_XDP, kernel.XDP_GENERIC))
    if is_wished:
        with (
            contextlib.suppress(kernel.BpfRefused),
            _nothing(kernel.SCHED_CLS, kernel.ATTACH_TCX_INGRESS, layout.TCX_NEXT) as program,
        ):
            os.close(kernel.attach(program, LOOPBACK, kernel.ATTACH_TCX_INGRESS))
            return True
    with _nothing(kernel.SCHED_CLS, 0, layout.TCX_NEXT) as program:
        classifiers.put(LOOPBACK, kernel.ATTACH_TCX_INGRESS, "try", program, "try")
        classifiers.drop(LOOPBACK, kernel.ATTACH_TCX_INGRESS, "try")
    return False


@contextlib.contextmanager
def _nothing(kind: int, attach: int, verdict: int) -> Iterator[int]:
    """Give a program that only returns ``verdict``."""
    program = Program()
    program.mov_imm(R0, verdict)
    program.exit()
    loaded = kernel.load(kind, program.code(), "try", attach)
    try:
        yield loaded
    finally:
        os.close(loaded)
