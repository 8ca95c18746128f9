"""Packets a second through a decapsulator, in turn with a plain XDP redirect between the same devices.

The kernel makes the frames itself, so the limit is a redirect's own: generator, NIC, program, NIC and a program that drops and
counts, all in one thread on one core. Seconds are of its CPU time, and the programs are swapped in one link, round after
round, because other work on the machine meets all of them. Array: sessions of Pileus, found by their slot. Hash: foreign ones.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from typing import Literal

from tests.contract.ebpf.rooms import Room

from benchmarks.report import Report, Result, median
from pileus.node.ebpf import kernel
from pileus.node.ebpf.assembler import R0, R1, R2, R3, R4, R7, R8, R9, R10, Program
from pileus.node.mirror import SLOT_BITS, wire
from pileus.node.mirror.packets import PacketPath
from pileus.node.mirror.sessions import Sessions
from pileus.node.mirror.xdp import XdpPath

Form = Literal["array", "hash"]

BARS: dict[Form, float] = {"array": 0.9, "hash": 0.8}
MANY_BAR = 0.8
"""Of 10,000 sessions to one."""

SESSIONS = (1, 100, 10_000)
SIZES_BYTES = (64, 512, 1500)
SLOTS = 16_384
MTU = 2000
SOURCE = IPv4Address("10.9.0.0")
KEYS = 0x155_5555_5555 << SLOT_BITS
"""With the slot: the sessions' keys."""

FRAMES_AT_ONCE = 8_192
WARM_UP_FRAMES = 32_768
"""Each session some times."""

PYTHON_S = 1.0
_PER_SOURCE_BITS = 10
_STRIDE = 6_181
"""From session to session, so that none is near the one before; prime, so that each has its turn."""

_LOOKUP, _REDIRECT, _REDIRECT_MAP = 1, 23, 51
_NUMBER = struct.Struct("=I")


@dataclass(slots=True)
class Rates:
    """Of one form, size and number of sessions: frames a second, round by round."""

    decapsulated: list[float] = field(default_factory=list)
    plain: list[float] = field(default_factory=list)

    def ratio(self) -> float:
        """Return the median of the rounds' ratios."""
        return median([one / other for one, other in zip(self.decapsulated, self.plain, strict=True)])


def run(report: Report, *, quick: bool) -> None:
    """Measure."""
    if os.geteuid() != 0:
        report.say("mirror: left out; eBPF needs root")
        return
    rounds, turn_s = (5, 0.05) if quick else (15, 0.06)
    report.say(f"mirror: {rounds} rounds, each turn {turn_s:g} s, generator and decapsulator on one core")
    room = Room()
    try:
        room.run(_measure, report, room, rounds, turn_s)
    except kernel.BpfRefused as exc:
        report.say(f"mirror: left out; {exc}")
    finally:
        room.close()


def _measure(report: Report, room: Room, rounds: int, turn_s: float) -> None:
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    with _devices() as devices:
        for form in BARS:
            for size_bytes in SIZES_BYTES:
                _compare(report, devices, form, size_bytes, (rounds, turn_s))
        report.add(
            Result(
                name="mirror: Python's loop, 100 sessions, 64 B",
                value=devices.python_rate(),
                unit="frames/s of CPU time",
            )
        )


def _compare(report: Report, devices: Devices, form: Form, size_bytes: int, turns: tuple[int, float]) -> None:
    found = {sessions: Rates() for sessions in SESSIONS}
    rounds, turn_s = turns
    for _ in range(rounds):
        for sessions, rates in found.items():
            devices.use(form, sessions)
            rates.plain.append(devices.rate(devices.plain, form, size_bytes, turn_s))
            rates.decapsulated.append(devices.rate(devices.path.program, form, size_bytes, turn_s))
    for sessions, rates in found.items():
        value, reference = median(rates.decapsulated), median(rates.plain)
        report.add(
            Result(name=f"mirror: {form}, {sessions} sessions, {size_bytes} B, against a plain redirect", value=rates.ratio(),
                   unit="times", bar=BARS[form], at_least=True, ratio=rates.ratio(),
                   reference=f"{value / 1e6:.2f} and {reference / 1e6:.2f} million frames/s")
        )  # fmt: skip
    one, many = (found[sessions].decapsulated for sessions in (min(SESSIONS), max(SESSIONS)))
    times = median([each / other for each, other in zip(many, one, strict=True)])
    report.add(
        Result(name=f"mirror: {form}, {max(SESSIONS)} sessions, {size_bytes} B, against one", value=times, unit="times",
               bar=MANY_BAR, at_least=True, ratio=times)
    )  # fmt: skip


class Devices:
    """Two veth pairs, the programs at their four ends, and what they count."""

    def __init__(self) -> None:
        self._open: list[int] = []
        outside, tunnel = _veth("outside", "tunnel")
        self._sniffers, relay = _veth("sniffers", "relay")
        self._outside = outside
        self._arrived = self._keep(kernel.create_map(kernel.PERCPU_ARRAY, 4, 8, 1, name="arrived"))
        self._turn = self._keep(kernel.create_map(kernel.ARRAY, 4, 16, 1, name="turn"))
        target = self._keep(kernel.create_map(kernel.DEVMAP, 4, 4, 1, name="sniffers"))
        kernel.update(target, _NUMBER.pack(0), _NUMBER.pack(self._sniffers))
        self.plain = self._load(_plain(target))
        self.path = XdpPath(self._sniffers, SLOTS)
        _furnish(self.path)
        self._generators = {
            (form, sessions): self._load(_generator(form, sessions, self._turn, outside))
            for form in BARS
            for sessions in SESSIONS
        }
        # A generator that is attached nowhere would make each call slow.
        self._sending = self._attach(self._generators["array", 1], outside)
        self._receiving = self._attach(self.plain, tunnel)
        self._attach(self._load(_counting(self._arrived)), relay)

    def use(self, form: Form, sessions: int) -> None:
        """Have the generator make frames of so many sessions."""
        self._generator = self._generators[form, sessions]
        kernel.update(self._turn, _NUMBER.pack(0), bytes(16))
        kernel.replace(self._sending, self._generator)

    def rate(self, program: int, form: Form, size_bytes: int, for_s: float) -> float:
        """Return how many frames a second came through the program to the other end."""
        kernel.replace(self._receiving, program)
        frame = _frame(form, size_bytes)
        with _core_to_itself():
            kernel.run_live(self._generator, frame, WARM_UP_FRAMES)
            before, began = self._count(), time.thread_time()
            while time.thread_time() - began < for_s:
                kernel.run_live(self._generator, frame, FRAMES_AT_ONCE)
            took_s = time.thread_time() - began
        return (self._count() - before) / took_s

    def python_rate(self) -> float:
        """Return the same of the loop in Python."""
        kernel.replace(self._receiving, self._load(_returning(kernel.XDP_PASS)))
        self.use("array", 100)
        path = PacketPath("tunnel", "sniffers", lambda *_: None)
        _furnish(path.sessions)
        frame = _frame("array", 64)
        before, began = self._count(), time.thread_time()
        while time.thread_time() - began < PYTHON_S:
            kernel.run_live(self._generator, frame, 64)
            path.on_readable()
        took_s = time.thread_time() - began
        path.wire.close()
        path.close()
        return (self._count() - before) / took_s

    def close(self) -> None:
        """Let go of all."""
        self.path.close()
        for fd in reversed(self._open):
            os.close(fd)

    def _count(self) -> int:
        return sum(int.from_bytes(each, "little") for each in kernel.lookup_per_cpu(self._arrived, _NUMBER.pack(0), 8))

    def _load(self, code: bytes) -> int:
        return self._keep(kernel.load(kernel.XDP, code, "bench"))

    def _attach(self, program: int, ifindex: int) -> int:
        return self._keep(kernel.attach(program, ifindex, kernel.ATTACH_XDP, kernel.XDP_NATIVE))

    def _keep(self, fd: int) -> int:
        self._open.append(fd)
        return fd


@contextmanager
def _devices() -> Iterator[Devices]:
    devices = Devices()
    try:
        yield devices
    finally:
        devices.close()


@contextmanager
def _core_to_itself() -> Iterator[None]:
    """Have other work wait for a turn: it would take the sessions out of the cache."""
    with contextlib.suppress(PermissionError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    try:
        yield
    finally:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


def _veth(name: str, peer: str) -> tuple[int, int]:
    """Make a pair in the namespace of this thread; return the ifindexes."""
    subprocess.run(
        ["ip", "link", "add", name, "mtu", str(MTU), "type", "veth", "peer", peer, "mtu", str(MTU)], check=True
    )
    for each in (name, peer):
        subprocess.run(["ip", "link", "set", each, "up"], check=True)
    return socket.if_nametoindex(name), socket.if_nametoindex(peer)


def _furnish(path: XdpPath | Sessions) -> None:
    """Make all sessions, each of which comes as one of Pileus and as a foreign one."""
    for number in range(max(SESSIONS)):
        source = str(SOURCE + (number >> _PER_SOURCE_BITS))
        path.put(number, KEYS | number, source, "sniffers")
        path.put_foreign(source, number & (1 << _PER_SOURCE_BITS) - 1, 2, KEYS | number)


def _frame(form: Form, size_bytes: int) -> bytes:
    header = wire.own_header(KEYS, str(SOURCE), 0)
    if form == "hash":
        header = wire.Header(source=str(SOURCE), erspan=2)
    return wire.encapsulate(header, bytes(size_bytes))


def _generator(form: Form, sessions: int, turn: int, outside: int) -> bytes:
    """Return a program that makes each frame the next one of another session; R7 its number, R8 its sequence.

    Frames are used again as the decapsulator left them, so what its label wrote over is written again.
    """
    program = Program()
    program.load(R9, R1, 0, 4)
    program.load(R3, R1, 4, 4)
    program.mov(R4, R9)
    program.alu_imm("add", R4, wire.OVERHEAD_BYTES)
    program.jump("gt", R4, R3, "drop")
    _lookup_first(program, turn, "drop")
    program.load(R7, R0, 0, 8)
    program.load(R8, R0, 8, 8)
    program.mov(R1, R7)
    program.alu_imm("add", R1, _STRIDE % sessions)
    program.jump_imm("lt", R1, sessions, "in range")
    program.alu_imm("sub", R1, sessions)
    program.label("in range")
    program.store(R0, 0, R1, 8)
    program.jump_imm("ne", R1, 0, "same round")
    program.mov(R2, R8)
    program.alu_imm("add", R2, 1)
    program.store(R0, 8, R2, 8)
    program.label("same round")
    program.swap(R8, 32)
    program.store(R9, 38, R8, 4)
    program.mov(R1, R7)
    program.alu_imm("rsh", R1, _PER_SOURCE_BITS)
    program.alu_imm("add", R1, int(SOURCE))
    program.swap(R1, 32)
    program.store(R9, 26, R1, 4)
    (_write_own if form == "array" else _write_foreign)(program)
    program.mov_imm(R1, outside)
    program.mov_imm(R2, 0)
    program.call(_REDIRECT)
    program.exit()
    program.label("drop")
    program.mov_imm(R0, kernel.XDP_DROP)
    program.exit()
    return program.code()


def _write_own(program: Program) -> None:
    whole = _frame("array", 64)
    for offset in (46, 54):
        program.load_imm64(R1, int.from_bytes(whole[offset : offset + 8], "little"))
        program.store(R9, offset, R1, 8)
    program.swap(R7, 16)
    program.store(R9, 60, R7, 2)


def _write_foreign(program: Program) -> None:
    whole = _frame("hash", 64)
    program.store_imm(R9, 34, int.from_bytes(whole[34:38], "little"), 4)
    program.alu_imm("and", R7, (1 << _PER_SOURCE_BITS) - 1)
    program.alu_imm("or", R7, int.from_bytes(whole[42:46], "big"))
    program.swap(R7, 32)
    program.store(R9, 42, R7, 4)
    program.store_imm(R9, 46, 0, 4)


def _plain(target: int) -> bytes:
    program = Program()
    program.map(R1, target)
    program.mov_imm(R2, 0)
    program.mov_imm(R3, kernel.XDP_DROP)
    program.call(_REDIRECT_MAP)
    program.exit()
    return program.code()


def _counting(counts: int) -> bytes:
    """Return a program that counts what comes, and drops it."""
    program = Program()
    _lookup_first(program, counts, "drop")
    program.load(R1, R0, 0, 8)
    program.alu_imm("add", R1, 1)
    program.store(R0, 0, R1, 8)
    program.label("drop")
    program.mov_imm(R0, kernel.XDP_DROP)
    program.exit()
    return program.code()


def _returning(verdict: int) -> bytes:
    program = Program()
    program.mov_imm(R0, verdict)
    program.exit()
    return program.code()


def _lookup_first(program: Program, table: int, otherwise: str) -> None:
    """R0: the first value of a map."""
    program.store_imm(R10, -4, 0, 4)
    program.mov(R2, R10)
    program.alu_imm("add", R2, -4)
    program.map(R1, table)
    program.call(_LOOKUP)
    program.jump_imm("eq", R0, 0, otherwise)
