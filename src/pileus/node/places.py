"""Where an appliance finds its backchannel: the virtio-serial port by its name, the first NIC by its MAC."""

from __future__ import annotations

import asyncio
import fcntl
import os
import socket
import stat
import struct
from collections.abc import Callable
from pathlib import Path

PORT_NAME = "pileus.0"
ETHERTYPE = 0x88B5
FRAME_BYTES_MIN = 60
_POLL_S = 0.2
_PORTS = Path("/sys/class/virtio-ports")
_NICS = Path("/sys/class/net")

_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 1
_SO_ATTACH_FILTER = 26
_PACKET_OUTGOING = 4
_BROADCAST = b"\xff" * 6

_ONLY_CONTROL = ((0x28, 0, 0, 12), (0x15, 0, 1, ETHERTYPE), (0x06, 0, 0, 0xFFFF), (0x06, 0, 0, 0))
"""Load the ethertype; when it is the control path's, take the frame, else nothing. Source: linux/filter.h."""


async def open_port(path: Path | None = None) -> int:
    """Return a descriptor of the port, without blocking, as soon as there is one; ``path`` instead for tests."""
    while True:
        found = path or _find_port()
        if found is not None and found.exists():
            if stat.S_ISSOCK(found.stat().st_mode):
                return _connect(found)
            return os.open(found, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        await asyncio.sleep(_POLL_S)


def _find_port() -> Path | None:
    for port in _PORTS.glob("*"):
        if (port / "name").read_text().strip() == PORT_NAME:
            return Path("/dev") / port.name
    return None


def _connect(path: Path) -> int:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.connect(str(path))
    connection.setblocking(False)
    return connection.detach()


class Frames:
    """Frames of the control path on one NIC. Its packet socket sees them also when the NIC belongs to a bridge."""

    def __init__(self, nic: str) -> None:
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)
        _attach_filter(self._socket)
        self._socket.bind((nic, 3))  # ETH_P_ALL: a bridge takes frames before sockets of one ethertype see them
        self._own: bytes = self._socket.getsockname()[4]
        self._peer = _BROADCAST
        self._arrived: Callable[[bytes], None] = lambda frame: None

    def start(self, arrived: Callable[[bytes], None]) -> None:
        """Call ``arrived`` with the payload of each frame."""
        self._arrived = arrived
        asyncio.get_running_loop().add_reader(self._socket, self._on_readable)

    def send(self, payload: bytes) -> None:
        """Send a frame; one that cannot be sent is lost, as any may be."""
        frame = self._peer + self._own + ETHERTYPE.to_bytes(2, "big") + payload
        try:
            self._socket.send(frame.ljust(FRAME_BYTES_MIN, b"\0"))
        except OSError:
            return

    def _on_readable(self) -> None:
        try:
            frame, address = self._socket.recvfrom(2048)
        except OSError:
            # The NIC is down; it will be up again.
            return
        if address[2] != _PACKET_OUTGOING and frame[:6] in (self._own, _BROADCAST) and len(frame) > 14:
            self._peer = frame[6:12]
            self._arrived(frame[14:])


async def open_frames(mac: str) -> Frames:
    """Return the frames of the NIC with ``mac`` (empty: the first one), brought up, as soon as there is one."""
    while True:
        nic = _find_nic(mac.lower())
        if nic is not None:
            _bring_up(nic)
            return Frames(nic)
        await asyncio.sleep(_POLL_S)


def _find_nic(mac: str) -> str | None:
    found = [nic for nic in _NICS.glob("*") if (nic / "device").exists() or mac]
    found.sort(key=lambda nic: int((nic / "ifindex").read_text()))
    for nic in found:
        if not mac or (nic / "address").read_text().strip() == mac:
            return nic.name
    return None


def _bring_up(nic: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        request = struct.pack("16sH14x", nic.encode(), 0)
        flags = struct.unpack_from("16xH", fcntl.ioctl(control, _SIOCGIFFLAGS, request))[0]
        fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sH14x", nic.encode(), flags | _IFF_UP))


def _attach_filter(packets: socket.socket) -> None:
    import ctypes

    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in _ONLY_CONTROL))
    program = struct.pack("HL", len(_ONLY_CONTROL), ctypes.addressof(code))
    packets.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)
