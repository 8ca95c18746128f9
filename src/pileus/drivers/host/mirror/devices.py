"""The network devices of the mirror. Everything here runs in a thread that is in the switch's namespace."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import socket
import struct

from pileus.drivers.host import netlink
from pileus.drivers.host.errors import DriverError

PAIR_MTU = 65_535
SIOCGIFMTU, SIOCSIFTXQLEN, SIOCETHTOOL = 0x8921, 0x8943, 0x8946

OFFLOADS = {"checksums": 0x17, "scatter": 0x19, "segmentation": 0x1F, "generic segmentation": 0x24}
"""ethtool's commands that switch each on or off (linux/ethtool.h)."""

QUEUE_FRAMES, QUEUE_FRAMES_USUAL = 4096, 1000
"""Of a tap that copies go to; and what a tap has by itself."""

RTM_NEWQDISC, RTM_DELQDISC = 36, 37
NLM_F_CREATE_REPLACE = 0x500
TC_H_ROOT, TCA_KIND = 0xFFFFFFFF, 1


def numbers() -> dict[str, int]:
    """Return every device by name, with its number."""
    return {name: number for number, name in socket.if_nameindex()}


def mtu(device: str) -> int:
    """Return a device's MTU; 0: it is not there."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        try:
            answer = fcntl.ioctl(control, SIOCGIFMTU, struct.pack("16sI20x", device.encode(), 0))
        except OSError:
            return 0
    return int(struct.unpack_from("I", answer, 16)[0])


def let_nothing_be_joined(device: str) -> None:
    """Switch off what a device would leave to the next one: a copy is then cut and its checksums are complete."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        for command in OFFLOADS.values():
            off = ctypes.create_string_buffer(struct.pack("II", command, 0))
            fcntl.ioctl(control, SIOCETHTOOL, struct.pack("16sQ16x", device.encode(), ctypes.addressof(off)))


def say_what_is_dropped(tap: str, number: int) -> None:
    """Let a tap have no queue before its ring: then whoever sends a frame is told whether the ring took it."""
    _set_queue(tap, QUEUE_FRAMES)
    kind = b"noqueue\0"
    attribute = struct.pack("=HH", 4 + len(kind), TCA_KIND) + kind
    _change_queue(tap, number, RTM_NEWQDISC, NLM_F_CREATE_REPLACE, attribute)


def be_as_usual(tap: str, number: int) -> None:
    """Give the tap back the queue it had."""
    _change_queue(tap, number, RTM_DELQDISC, 0, b"")
    _set_queue(tap, QUEUE_FRAMES_USUAL)


def _set_queue(tap: str, frames: int) -> None:
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
            fcntl.ioctl(control, SIOCSIFTXQLEN, struct.pack("16sI20x", tap.encode(), frames))
    except OSError as exc:
        raise DriverError("NoPort", f"tap {tap}: its queue cannot be set: {exc.strerror}") from exc


def _change_queue(tap: str, number: int, kind: int, flags: int, attributes: bytes) -> None:
    body = struct.pack("=BxHiIII", socket.AF_UNSPEC, 0, number, 0, TC_H_ROOT, 0) + attributes
    code = netlink.change(kind, flags, body)
    if code not in (0, errno.ENODEV, errno.ENOENT, errno.EINVAL if not flags else 0):
        raise DriverError("NoPort", f"tap {tap}: its queue cannot be set: {os.strerror(code)}")
