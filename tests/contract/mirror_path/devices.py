"""A decapsulator's two NICs as veth pairs in a namespace: a cable to the tunnel's network, and one to the host's relay."""

from __future__ import annotations

import os
import socket

from tests.contract.ebpf.rooms import Room

from pileus.node.ebpf import kernel
from pileus.node.ebpf.assembler import R0, R1, R2, Program
from pileus.node.mirror import wire
from pileus.node.mirror.xdp import Mode, XdpPath

EVERYTHING = 0x0003
NOTHING = 0
MTU = 2000
QUEUE_BYTES = 32 << 20
_SO_RCVBUFFORCE = 33
_REDIRECT = 23


class Devices:
    """``outside`` is where frames are sent into the tunnel's NIC, ``relay`` what the sniffers' NIC gives out."""

    def __init__(self, room: Room, mode: Mode) -> None:
        self.room = room
        outside, self.tunnel = room.veth("outside", "tunnel", MTU)
        self.sniffers, relay = room.veth("sniffers", "relay", MTU)
        self.path = room.run(XdpPath, self.sniffers)
        room.run(self.path.attach, self.tunnel, self.sniffers, mode)
        # A veth takes redirected frames natively only if its peer has a program too.
        self._open = [kernel.load(kernel.XDP, _pass(), "passes")]
        self._open.append(room.run(kernel.attach, self._open[0], relay, kernel.ATTACH_XDP))
        self._sending = kernel.load(kernel.XDP, _redirect(outside), "sends")
        # A program that is attached nowhere would make each of its runs slow.
        self._open += [self._sending, room.run(kernel.attach, self._sending, outside, kernel.ATTACH_XDP)]
        self._mode = mode
        self.outside = room.packet_socket("outside", NOTHING)
        self.relay = room.packet_socket("relay", EVERYTHING)
        self.kept = room.packet_socket("tunnel", wire.ETHERTYPE_LABEL)
        self.seen = room.packet_socket("tunnel", EVERYTHING)
        for receiver in (self.relay, self.kept, self.seen):
            receiver.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, QUEUE_BYTES)

    def send(self, frame: bytes, count: int) -> None:
        """Send copies of a frame into the tunnel's NIC; natively by the kernel itself, as fast as it can."""
        if self._mode == "native":
            self.room.run(kernel.run_live, self._sending, frame, count)
            return
        for _ in range(count):
            self.outside.send(frame)

    def close(self) -> None:
        """Let go of all but the namespace."""
        self.path.close()
        for each in (self.outside, self.relay, self.kept, self.seen):
            each.close()
        for fd in self._open:
            os.close(fd)


def read_all(receiver: socket.socket, quiet_s: float = 0.2) -> list[bytes]:
    """Return what has come, and what comes until nothing does for a moment."""
    receiver.settimeout(quiet_s)
    found = []
    try:
        while True:
            found.append(receiver.recv(4096))
    except TimeoutError:
        return found


def _pass() -> bytes:
    program = Program()
    program.mov_imm(R0, kernel.XDP_PASS)
    program.exit()
    return program.code()


def _redirect(ifindex: int) -> bytes:
    program = Program()
    program.mov_imm(R1, ifindex)
    program.mov_imm(R2, 0)
    program.call(_REDIRECT)
    program.exit()
    return program.code()
