"""Packet sockets of the decapsulator: the queue of each session that is kept, the slow path's tunnel, what a NIC sends."""

from __future__ import annotations

import ctypes
import socket
import struct

KEPT = 0x88B6
"""Ethertype that the data path gives to what is kept, so that no IP stack takes it; also of labels."""

QUEUE_BYTES_MAX = 2 << 20
"""Of the tunnel, or one session; about 1,000 packets of any length, and only used while nobody takes them."""

FRAME_BYTES_MAX = 9216

_SOL_PACKET = 263
_PACKET_STATISTICS = 6
_PACKET_IGNORE_OUTGOING = 23
_SO_ATTACH_FILTER = 26
_SO_RCVBUFFORCE = 33
_ETH_P_ALL = 3

_LOAD_WORD, _LOAD_HALF, _LOAD_BYTE = 0x20, 0x28, 0x30
_AND, _EQUAL, _RETURN = 0x54, 0x15, 0x06
_SOURCE, _PROTOCOL, _SESSION, _LAST, _KEY = 26, 36, 44, 53, 54
"""Where in a frame: the sender's tunnel address, GRE's protocol, the session ID, the bit O, the sub-header."""

_ERSPAN_II, _ERSPAN_III = 0x88BE, 0x22EB
_WHOLE = 0x40000

Test = tuple[int, int, int, int]
"""Size of the load, offset, mask, and what must be there."""


def key_tests(source: bytes, key: int) -> list[Test]:
    """Return what a frame of the session with ``key`` has, by its tunnel header."""
    return [
        (_LOAD_WORD, _SOURCE, 0xFFFFFFFF, int.from_bytes(source, "big")),
        (_LOAD_HALF, _PROTOCOL, 0xFFFF, _ERSPAN_III),
        (_LOAD_BYTE, _LAST, 1, 1),
        (_LOAD_WORD, _KEY, 0x03FFFFFF, key >> 32 & 0x03FFFFFF),
        (_LOAD_WORD, _KEY + 4, 0xFFFFFFFF, key & 0xFFFFFFFF),
    ]


def foreign_tests(source: bytes, erspan: int, kind: int) -> list[Test]:
    """Return what a frame of a foreign session has: no key, but a session ID at a source."""
    tests: list[Test] = [
        (_LOAD_WORD, _SOURCE, 0xFFFFFFFF, int.from_bytes(source, "big")),
        (_LOAD_HALF, _PROTOCOL, 0xFFFF, _ERSPAN_II if kind == 2 else _ERSPAN_III),
        (_LOAD_HALF, _SESSION, 0x3FF, erspan),
    ]
    return tests if kind == 2 else [*tests, (_LOAD_BYTE, _LAST, 1, 0)]


def program(tests: list[Test]) -> bytes:
    """Return the classic BPF program that takes the frames for which all tests hold. Source: linux/filter.h."""
    steps: list[tuple[int, int, int, int]] = []
    for number, (load, offset, mask, value) in enumerate(tests):
        left = len(tests) - number - 1
        steps += [(load, 0, 0, offset), (_AND, 0, 0, mask), (_EQUAL, 0, left * 3 + 1, value)]
    steps += [(_RETURN, 0, 0, _WHOLE), (_RETURN, 0, 0, 0)]
    return b"".join(struct.pack("HBBI", *step) for step in steps)


def queue(interface: str, tests: list[Test], ethertype: int = KEPT) -> socket.socket:
    """Return a socket that has its own queue of the frames that pass the tests. Raises: OSError."""
    made = _packet_socket()
    try:
        _attach(made, program(tests))
        made.bind((interface, ethertype))
    except OSError:
        made.close()
        raise
    return made


def tunnel(interface: str) -> socket.socket:
    """Return a socket that has everything which comes in there. Raises: OSError."""
    made = _packet_socket()
    try:
        made.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
        made.bind((interface, _ETH_P_ALL))
    except OSError:
        made.close()
        raise
    return made


def sender(interface: str) -> socket.socket:
    """Return a socket that only sends. Raises: OSError."""
    made = _packet_socket()
    try:
        made.bind((interface, 0))
    except OSError:
        made.close()
        raise
    return made


def resize(queue: socket.socket, room_bytes: int) -> None:
    """Let so much wait in the queue."""
    queue.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, room_bytes // 2)  # the kernel doubles it: socket(7)


def drops(queue: socket.socket) -> int:
    """Return how many frames the queue had no room for since this was asked last. Source: packet(7)."""
    return int(struct.unpack("II", queue.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8))[1])


def _packet_socket() -> socket.socket:
    # Protocol 0: it takes nothing until it is bound.
    made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, 0)
    resize(made, QUEUE_BYTES_MAX)
    return made


def _attach(made: socket.socket, code: bytes) -> None:
    kept = ctypes.create_string_buffer(code, len(code))
    made.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HL", len(code) // 8, ctypes.addressof(kept)))
