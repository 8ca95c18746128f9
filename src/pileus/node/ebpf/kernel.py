"""The calls of bpf(2) that Pileus needs: maps, programs, links, pins, test runs. Knows no program.

File descriptors are the caller's to close; a link's last one detaches the program, unless it is pinned. Bytes are in the
host's order but where a program says otherwise. Source: bpf(2); Linux, include/uapi/linux/bpf.h.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import re
import struct
from collections.abc import Iterator
from pathlib import Path

HASH, ARRAY, PERCPU_HASH, PERCPU_ARRAY, DEVMAP, DEVMAP_HASH, RINGBUF = 1, 2, 5, 6, 14, 25, 27
"""Kinds of maps."""

MAPPABLE = 1 << 10
"""Flag of an array whose values ``Mapped`` may read and write in place."""

SCHED_CLS, XDP = 3, 6
"""Kinds of programs."""

ATTACH_XDP, ATTACH_TCX_INGRESS, ATTACH_TCX_EGRESS = 37, 46, 47
ATTACH_DEVMAP = 38
"""``expected_attach`` of a program that runs in a devmap."""

XDP_GENERIC, XDP_NATIVE = 2, 4
"""Flags of an XDP link: in the kernel's common receive path, or in the NIC's driver (0: the best of the two)."""

XDP_DROP, XDP_PASS, XDP_TX, XDP_REDIRECT = 1, 2, 3, 4

_NUMBERS = {"x86_64": 321, "aarch64": 280}
"""Of the system call bpf."""

(_MAP_CREATE, _LOOKUP, _UPDATE, _DELETE, _NEXT_KEY, _PROG_LOAD, _PIN, _GET) = range(8)
_TEST_RUN, _LINK_CREATE, _LINK_UPDATE = 10, 28, 29

_LICENSE = b"Apache-2.0\0"
"""The helpers that the kernel keeps for GPL programs (tracing, perf events) are not used."""

_LOG_BYTES = 1 << 20
_LOG_LINES = 12
_NAME_BYTES_MAX = 15
_TRIES = 5
"""The verifier gives up with EAGAIN when a signal is pending. Source: libbpf, PROG_LOAD_ATTEMPTS."""

_FRAME_BYTES_MAX = 1 << 14
_LIVE_FRAMES = 2

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


class Mapped:
    """The values of a MAPPABLE array as memory. ``words``: 8 bytes each, read and written whole, while programs do the same."""

    def __init__(self, fd: int, length: int) -> None:
        """``length``: of all values together, each a multiple of 8 bytes. Raises: BpfRefused."""
        whole_pages = -(-length // mmap.PAGESIZE) * mmap.PAGESIZE
        try:
            self._memory = mmap.mmap(fd, whole_pages)
        except OSError as exc:
            raise BpfRefused(exc.errno, f"array not mapped: {exc.strerror}") from None
        self._bytes = memoryview(self._memory)
        self.words = self._bytes.cast("Q")

    def copy(self, word: int, length: int) -> bytes:
        """Return bytes from a word on."""
        return bytes(self._bytes[word * 8 : word * 8 + length])

    def close(self) -> None:
        """Let go of the memory."""
        self.words.release()
        self._bytes.release()
        self._memory.close()


class BpfRefused(OSError):
    """The kernel refused; the text says what was asked for and, of a program, the verifier's last lines."""


def possible_cpus() -> int:
    """Return how many values a per-CPU map has of each key."""
    text = Path("/sys/devices/system/cpu/possible").read_text().strip()
    return int(re.split("[,-]", text)[-1]) + 1


def create_map(kind: int, key_bytes: int, value_bytes: int, entries: int, flags: int = 0, name: str = "") -> int:
    """Return a new map's fd."""
    attributes = struct.pack("5I8x", kind, key_bytes, value_bytes, entries, flags) + _name(name)
    return _bpf(_MAP_CREATE, attributes, f"no map {name} of {entries} entries")


def update(fd: int, key: bytes, value: bytes) -> None:
    """Set a key to a value (per-CPU maps: the values of all CPUs, each padded to 8 bytes)."""
    keys, values = _buffer(key), _buffer(value)
    _bpf(_UPDATE, _pair(fd, keys, values), f"key {key.hex()} not set")


def lookup(fd: int, key: bytes, value_bytes: int) -> bytes | None:
    """Return a key's value; None: no such key. ``value_bytes`` must be as in the map."""
    keys, values = _buffer(key), ctypes.create_string_buffer(value_bytes)
    try:
        _bpf(_LOOKUP, _pair(fd, keys, values), f"key {key.hex()} not read")
    except BpfRefused as exc:
        if exc.errno == errno.ENOENT:
            return None
        raise
    return values.raw


def lookup_per_cpu(fd: int, key: bytes, value_bytes: int) -> list[bytes]:
    """Return a key's value of each CPU; none: no such key."""
    step = -(-value_bytes // 8) * 8
    values = lookup(fd, key, step * possible_cpus()) or b""
    return [values[at : at + value_bytes] for at in range(0, len(values), step)]


def delete(fd: int, key: bytes) -> bool:
    """Remove a key; return whether it was there."""
    keys = _buffer(key)
    try:
        _bpf(_DELETE, struct.pack("I4xQQQ", fd, ctypes.addressof(keys), 0, 0), f"key {key.hex()} not removed")
    except BpfRefused as exc:
        if exc.errno == errno.ENOENT:
            return False
        raise
    return True


def keys(fd: int, key_bytes: int) -> list[bytes]:
    """Return the keys, each once, even while others come and go."""
    return list(dict.fromkeys(_keys(fd, key_bytes)))


def load(kind: int, code: bytes, name: str, expected_attach: int = 0) -> int:
    """Return the fd of a program that the verifier took.

    Raises: BpfRefused with the verifier's last lines.
    """
    instructions, license_ = _buffer(code), _buffer(_LICENSE)
    log = ctypes.create_string_buffer(_LOG_BYTES)

    def attempt(level: int) -> int:
        return _bpf(
            _PROG_LOAD,
            struct.pack("IIQQ", kind, len(code) // 8, ctypes.addressof(instructions), ctypes.addressof(license_))
            + struct.pack("IIQII", level, level * _LOG_BYTES, level * ctypes.addressof(log), 0, 0)
            + _name(name)
            + struct.pack("II", 0, expected_attach),
            f"program {name} not loaded",
        )

    for _ in range(_TRIES):
        try:
            return attempt(0)
        except BpfRefused as exc:
            if exc.errno != errno.EAGAIN:
                break
    try:
        return attempt(1)
    except BpfRefused as exc:
        said = log.value.decode(errors="replace").splitlines()[-_LOG_LINES:]
        raise BpfRefused(exc.errno, "\n".join([exc.strerror or "", *said])) from None


def attach(program_fd: int, ifindex: int, attach_type: int, flags: int = 0) -> int:
    """Return the fd of a link: the program sees the device's packets until the last of its fds and pins is gone."""
    attributes = struct.pack("IIII48x", program_fd, ifindex, attach_type, flags)
    return _bpf(_LINK_CREATE, attributes, f"program not attached to device {ifindex}")


def replace(link_fd: int, program_fd: int) -> None:
    """Give a link another program in one step: every packet meets the old or the new one."""
    _bpf(_LINK_UPDATE, struct.pack("IIII", link_fd, program_fd, 0, 0), "program not replaced")


def attached_to(link_fd: int) -> int:
    """Return the ifindex of a link's device; 0: it is gone."""
    found = re.search(r"^ifindex:\s*(\d+)$", Path(f"/proc/self/fdinfo/{link_fd}").read_text(), re.MULTILINE)
    return int(found[1]) if found else 0


def pin(fd: int, path: str | os.PathLike[str]) -> None:
    """Keep a map, program or link at a path in a bpffs; removing the file lets it go."""
    name = _buffer(os.fsencode(path) + b"\0")
    _bpf(_PIN, struct.pack("QII", ctypes.addressof(name), fd, 0), f"not pinned at {os.fspath(path)}")


def open_pinned(path: str | os.PathLike[str]) -> int:
    """Return an fd of what is pinned at the path."""
    name = _buffer(os.fsencode(path) + b"\0")
    return _bpf(_GET, struct.pack("QII", ctypes.addressof(name), 0, 0), f"not opened: {os.fspath(path)}")


def run_test(program_fd: int, frame: bytes, repeat: int = 1, context: bytes = b"") -> tuple[int, bytes, int]:
    """Run a program on a frame that goes nowhere; return its verdict, the frame as it left it, and ns per run.

    The frame has at least 14 bytes; ``context``: a ``struct xdp_md`` or ``__sk_buff`` to start with.
    """
    source, out = _buffer(frame), ctypes.create_string_buffer(_FRAME_BYTES_MAX)
    given = _buffer(context)
    attributes = struct.pack(
        "4IQQ4IQQ4I",
        *(program_fd, 0, len(frame), len(out), ctypes.addressof(source), ctypes.addressof(out)),
        *(repeat, 0, len(context), 0, ctypes.addressof(given) if context else 0, 0, 0, 0, 0, 0),
    )
    box = _buffer(attributes)
    _bpf_box(_TEST_RUN, box, f"frame of {len(frame)} bytes not tested")
    _, verdict, _, length = struct.unpack_from("4I", box)
    (took_ns,) = struct.unpack_from("I", box, 36)
    return verdict, ctypes.string_at(out, length), took_ns


def run_live(program_fd: int, frame: bytes, count: int, batch: int = 64) -> None:
    """Run an XDP program on ``count`` copies of a frame and do what it says: redirected ones are really sent.

    A program that is attached nowhere makes every call slow (25 ms): attach it to an idle device first.
    """
    source = _buffer(frame)
    attributes = struct.pack(
        "4IQQ4IQQ4I",
        *(program_fd, 0, len(frame), 0, ctypes.addressof(source), 0),
        *(count, 0, 0, 0, 0, 0, _LIVE_FRAMES, 0, batch, 0),
    )
    _bpf(_TEST_RUN, attributes, f"{count} frames not run")


def _keys(fd: int, key_bytes: int) -> Iterator[bytes]:
    key, following = ctypes.create_string_buffer(key_bytes), ctypes.create_string_buffer(key_bytes)
    start = 0  # no key at all: the first one follows
    while True:
        try:
            attributes = struct.pack("I4xQQQ", fd, start and ctypes.addressof(key), ctypes.addressof(following), 0)
            _bpf(_NEXT_KEY, attributes, "keys not listed")
        except BpfRefused as exc:
            if exc.errno == errno.ENOENT:
                return
            raise
        start = 1
        key.raw = following.raw
        yield key.raw


def _pair(fd: int, key: ctypes.Array[ctypes.c_char], value: ctypes.Array[ctypes.c_char]) -> bytes:
    return struct.pack("I4xQQQ", fd, ctypes.addressof(key), ctypes.addressof(value), 0)


def _name(name: str) -> bytes:
    """Return a name as the kernel takes it: 15 of letters, digits, ``_`` and ``.``."""
    return re.sub(r"[^A-Za-z0-9_.]", "_", name).encode()[:_NAME_BYTES_MAX].ljust(_NAME_BYTES_MAX + 1, b"\0")


def _buffer(content: bytes) -> ctypes.Array[ctypes.c_char]:
    return ctypes.create_string_buffer(content, max(1, len(content)))


def _bpf(command: int, attributes: bytes, complaint: str) -> int:
    return _bpf_box(command, _buffer(attributes), complaint)


def _bpf_box(command: int, box: ctypes.Array[ctypes.c_char], complaint: str) -> int:
    number = _NUMBERS.get(os.uname().machine)
    if number is None:
        raise BpfRefused(errno.ENOSYS, f"{complaint}: bpf(2) is not known on {os.uname().machine}")
    result = int(_libc.syscall(ctypes.c_long(number), ctypes.c_long(command), box, ctypes.c_long(len(box))))
    if result < 0:
        code = ctypes.get_errno()
        raise BpfRefused(code, f"{complaint}: {os.strerror(code)}")
    return result
