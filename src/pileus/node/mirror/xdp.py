"""The decapsulator's data path in the kernel: an XDP program on the tunnel's NIC, and the maps that say whose frames go where.

What is refused, and why, is as in ``wire.parse``; what is done with the rest as in ``sessions.Sessions``. Nothing but frames
that are kept passes to the IP stack, and these have an ethertype that it does not know. Nothing comes in by the sniffers' NIC.
"""

from __future__ import annotations

import contextlib
import errno
import os
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from typing import Literal

from pileus.node.ebpf import kernel
from pileus.node.mirror import KEY_BITS, wire, xdp_program
from pileus.node.mirror.sessions import Counts, To, check_slot
from pileus.node.mirror.xdp_program import ENTRY, GROUP, GROUP_SESSIONS, TO_SNIFFERS, TO_STORE, Maps

Mode = Literal["native", "generic"]
"""``native``: in the NIC's driver. ``generic``: in the kernel's receive path, where the driver cannot."""

_FLAGS: dict[Mode, int] = {"native": kernel.XDP_NATIVE, "generic": kernel.XDP_GENERIC}
_TO: dict[To, int] = {"store": TO_STORE, "sniffers": TO_SNIFFERS}
SLOTS = 1024
"""More than the sessions that a decapsulator ever has (pileus.node.mirror.SESSIONS_MAX)."""

GROUPS = 128
"""Foreign sources, of each type; 8 KiB of memory for each."""

_NUMBER = struct.Struct("=I")
_REFUSED = struct.Struct("=Q")
_NOBODY = bytes(8)


@dataclass(slots=True)
class _Group:
    number: int
    keys: dict[int, int] = field(default_factory=dict)
    """By session ID."""


class XdpPath:
    """Programs and maps; closing it takes all of them away. ``mode`` is the one in force."""

    def __init__(self, sniffers: int, slots: int = SLOTS) -> None:
        """Load for the NIC toward the sniffers, attached nowhere yet.

        Raises: BpfRefused.
        """
        self.mode: Mode = "native"
        self._slots = slots
        self._cpus = kernel.possible_cpus()
        self._wanted: dict[int, tuple[int, int]] = {}
        """Word and source by slot, as programs read them."""

        self._groups: dict[bytes, _Group] = {}
        self._free_groups = list(range(GROUPS))
        self._links: list[int] = []
        self._open = contextlib.ExitStack()
        try:
            self._maps = Maps(
                slots=slots,
                entries=self._map(kernel.ARRAY, 4, ENTRY.size, slots * self._cpus, "sessions", kernel.MAPPABLE),
                groups=self._map(kernel.HASH, GROUP.size, 4, GROUPS, "groups"),
                foreign=self._map(kernel.ARRAY, 4, 8, GROUPS * GROUP_SESSIONS, "foreign"),
                refused=self._map(kernel.PERCPU_ARRAY, 4, 8, len(wire.REASONS), "refused"),
                sniffers=self._map(kernel.DEVMAP, 4, 4, 1, "sniffers"),
            )
            self._entries = kernel.Mapped(self._maps.entries, slots * self._cpus * ENTRY.size)
            self._open.callback(self._entries.close)
            kernel.update(self._maps.sniffers, _NUMBER.pack(0), _NUMBER.pack(sniffers))
            self.program = self._kept(kernel.load(kernel.XDP, xdp_program.decapsulator(self._maps), "decapsulator"))
            self._diode = self._kept(kernel.load(kernel.XDP, xdp_program.diode(), "diode"))
        except kernel.BpfRefused:
            self.close()
            raise

    @classmethod
    def open(cls, tunnel: int, sniffers: int, slots: int = SLOTS) -> XdpPath:
        """Return a data path in force from one NIC to the other (ifindexes), natively where both drivers can.

        Raises: BpfRefused.
        """
        path = cls(sniffers, slots)
        try:
            try:
                path.attach(tunnel, sniffers, "native")
            except kernel.BpfRefused:
                path.attach(tunnel, sniffers, "generic")
        except kernel.BpfRefused:
            path.close()
            raise
        return path

    def attach(self, tunnel: int, sniffers: int, mode: Mode) -> None:
        """Put both programs in force; the sniffers' first, so that no frame is given to a NIC that is still open.

        Raises: BpfRefused; then neither is.
        """
        self.detach()
        try:
            self._links.append(kernel.attach(self._diode, sniffers, kernel.ATTACH_XDP, _FLAGS[mode]))
            self._links.append(kernel.attach(self.program, tunnel, kernel.ATTACH_XDP, _FLAGS[mode]))
        except kernel.BpfRefused:
            self.detach()
            raise
        self.mode = mode

    def detach(self) -> None:
        """Take the programs from their NICs."""
        while self._links:
            os.close(self._links.pop())

    def put(self, slot: int, key: int, source: str, to: To) -> None:
        """Take frames with this key from this source; a slot with another key starts its counts anew.

        Raises: ValueError: the slot is not the key's low 16 bits, or too high; BpfRefused.
        """
        check_slot(slot, key)
        if slot >= self._slots:
            raise ValueError(f"slot {slot} is not below {self._slots}")
        word = _raw((_TO[to] << KEY_BITS | key).to_bytes(8, "big"))
        wanted = word, _raw(IPv4Address(source).packed)
        if self._wanted.get(slot) == wanted:
            return
        for place in self._places(slot):
            # A program that reads meanwhile sees the old entry, or nobody's, or the new one.
            self._entries.words[place] = 0
            self._entries.words[place + 1] = wanted[1]
            self._entries.words[place] = word
        self._wanted[slot] = wanted

    def remove(self, slot: int) -> None:
        """Refuse the session's frames from now on."""
        if self._wanted.pop(slot, None) is not None:
            for place in self._places(slot):
                self._entries.words[place] = 0
                self._entries.words[place + 2] = 0  # whoever comes next, its counts start anew

    def put_foreign(self, source: str, session: int, erspan: int, key: int) -> None:
        """Take frames of ERSPAN type 2 or 3 without sub-header as those of the session with this key, which ``put`` names.

        Raises: ValueError: there is no such type or session ID; BpfRefused, also for more than GROUPS sources.
        """
        name = _group_name(source, session, erspan)
        group = self._groups.get(name)
        if group is None:
            if not self._free_groups:
                raise kernel.BpfRefused(errno.ENOSPC, f"{source} is one foreign source more than {GROUPS}")
            group = self._groups[name] = _Group(self._free_groups.pop())
        elif group.keys.get(session) == key:
            return
        self._write_foreign(group, session, _NOBODY)
        self._write_foreign(group, session, key.to_bytes(8, "big"))
        group.keys[session] = key
        kernel.update(self._maps.groups, name, _NUMBER.pack(group.number))

    def remove_foreign(self, source: str, session: int, erspan: int) -> None:
        """Refuse them from now on."""
        name = _group_name(source, session, erspan)
        group = self._groups.get(name)
        if group is None or group.keys.pop(session, None) is None:
            return
        self._write_foreign(group, session, _NOBODY)
        if not group.keys:
            kernel.delete(self._maps.groups, name)
            self._free_groups.append(self._groups.pop(name).number)

    def counts(self, slot: int) -> Counts | None:
        """Return what came; None: nobody has the slot."""
        wanted = self._wanted.get(slot)
        if wanted is None:
            return None
        total = Counts()
        mine = wanted[0] | xdp_program.TO_MASK
        for place in self._places(slot):
            # The owner first: a program that starts counts anew writes it last.
            if self._entries.words[place + 2] != mine:
                continue
            _, _, _, received, length, highest, first, failed, truncated = ENTRY.unpack(
                self._entries.copy(place, ENTRY.size)
            )
            total.first = min(total.first, first) if total.received else first
            total.highest = max(total.highest, highest)
            total.received += received
            total.bytes += length
            total.truncated += truncated
            total.forwarded += received - failed
        return total

    def refused(self) -> dict[str, int]:
        """Return how many frames were refused, by reason."""
        found = {}
        for number, reason in enumerate(wire.REASONS):
            per_cpu = kernel.lookup_per_cpu(self._maps.refused, _NUMBER.pack(number), _REFUSED.size)
            found[reason] = sum(_REFUSED.unpack(value)[0] for value in per_cpu)
        return found

    def close(self) -> None:
        """Let go of everything; frames are taken by nobody from now on."""
        self.detach()
        self._open.close()

    def _places(self, slot: int) -> Iterator[int]:
        """Return where the slot's entry of each CPU begins, in words of 8 bytes."""
        return ((cpu * self._slots + slot) * (ENTRY.size // 8) for cpu in range(self._cpus))

    def _write_foreign(self, group: _Group, session: int, word: bytes) -> None:
        kernel.update(self._maps.foreign, _NUMBER.pack(group.number * GROUP_SESSIONS + session), word)

    def _map(self, kind: int, key_bytes: int, value_bytes: int, entries: int, name: str, flags: int = 0) -> int:
        return self._kept(kernel.create_map(kind, key_bytes, value_bytes, entries, flags, name))

    def _kept(self, fd: int) -> int:
        self._open.callback(os.close, fd)
        return fd


def _raw(content: bytes) -> int:
    """Return bytes as the number that a load of them gives."""
    return int.from_bytes(content, sys.byteorder)


def _group_name(source: str, session: int, erspan: int) -> bytes:
    """Raises: ValueError: no switch sends such frames."""
    if not 0 <= session < GROUP_SESSIONS or erspan not in (2, 3):
        raise ValueError(f"there is no session {session} of ERSPAN type {erspan}")
    return GROUP.pack(IPv4Address(source).packed, erspan)
