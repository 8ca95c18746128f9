"""A decapsulator in a network namespace: its two NICs are veths, whose other ends the test holds."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import fcntl
import itertools
import json
import os
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from tests.contract.ovs.lan import is_running

from pileus.drivers.host.ovs import namespace
from pileus.node.mirror import wire
from pileus.node.mirror.pcapng import Block, Packet, Reader, Statistics

LIMIT_S = 20.0
PORT = 4753
MACS = {"tunnel": "02:50:00:00:0d:01", "sniffers": "02:50:00:00:0d:02"}
SOURCE = "10.98.0.1"
Document = dict[str, dict[str, Any]]
Json = dict[str, Any]
T = TypeVar("T")
_NUMBERS = itertools.count()


def until(what: str, look: Callable[[], T | None], limit_s: float = LIMIT_S) -> T:
    """Return what ``look`` gives as soon as it is something."""
    end = time.monotonic() + limit_s
    while not (found := look()):
        assert time.monotonic() < end, f"not within {limit_s:g} s: {what}"
        time.sleep(0.01)
    return found


def key_of(slot: int, random: int = 0x123456789) -> int:
    return random << 16 | slot


def session(key: int, to: str = "sniffers", source: str = SOURCE, **more: Any) -> Json:
    room = {"store_mib": 1} if to == "store" else {}
    return {"key": f"{key:015x}", "source": source, "to": to, "name": "web", "ends_at": 0, **room, **more}


def document(sessions: dict[str, Json] | None = None, **more: Any) -> Document:
    return {"links": {name: {"mac": mac} for name, mac in MACS.items()}, "sessions": sessions or {}, **more}


def inner(text: bytes, size: int = 100) -> bytes:
    """Return a UDP frame that says ``text``."""
    payload = text.ljust(size - 42, b".")
    head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 28 + len(payload), 0, 0, 64, 17, 0, b"\x0a\0\0\1", b"\x0a\0\0\2")
    return bytes(6) + b"\x02" * 6 + b"\x08\x00" + head + struct.pack("!HHHH", 4000, 53, 8 + len(payload), 0) + payload


class Node:
    """The namespaces and the role's process."""

    def __init__(self, path: str, folder: Path) -> None:
        self.path, self._folder = path, folder
        self.name, self.outside = (f"pmn{os.getpid()}{side}{next(_NUMBERS)}" for side in "ab")
        self._child: subprocess.Popen[str] | None = None
        for name in (self.name, self.outside):
            _ip("netns", "add", name)
            _ip("-n", name, "link", "set", "lo", "up")
        for link in MACS:
            self.plug(link)
        self.sniffer = self._packets("sniffers")
        self._tunnel = self._packets("tunnel")

    def plug(self, link: str) -> None:
        """Have the NIC, and its other end."""
        ends = ["type", "veth", "peer", "name", link, "netns", self.outside]
        _ip("-n", self.name, "link", "add", f"n{link}", "address", MACS[link], *ends)
        _ip("-n", self.outside, "link", "set", link, "mtu", "2000", "up")
        asyncio.run(namespace.inside(self.outside, lambda: _poll(link)))

    def start(self) -> None:
        """Start the role."""
        program = Path(__file__).with_name("inside.py")
        argv = [
            "ip",
            "netns",
            "exec",
            self.name,
            sys.executable,
            str(program),
            str(PORT),
            self.path,
            str(self._folder / "counts"),
        ]
        self._child = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def kill(self) -> None:
        """End the role as a crash does."""
        assert self._child is not None
        self._child.kill()
        self._child.communicate()

    def close(self) -> None:
        """Take everything down."""
        if self._child is not None:
            with contextlib.suppress(subprocess.TimeoutExpired, ValueError):
                self._child.communicate(timeout=LIMIT_S)
            self._child.kill()
            self._child.wait()
        self.sniffer.close()
        self._tunnel.close()
        for name in (self.name, self.outside):
            _ip("netns", "delete", name)

    def apply(self, wanted: Document) -> Json:
        """Return what the role says after the document; when it has set up its NICs, so have their other ends."""
        said = self._call(op="apply", document=wanted)
        if said.get("path"):
            # Until the kernel has noticed that a link is up, it drops what is sent there.
            until("both links", lambda: asyncio.run(namespace.inside(self.outside, lambda: all(map(is_running, MACS)))))
        return said

    def status(self) -> Json:
        """Return what the role says."""
        return self._call(op="status")

    def send(self, header: wire.Header, frame: bytes) -> None:
        """Let a mirrored packet arrive."""
        self.send_raw(wire.encapsulate(header, frame, to_mac=bytes.fromhex(MACS["tunnel"].replace(":", ""))))

    def send_raw(self, frame: bytes) -> None:
        """Let a frame arrive at the tunnel's NIC."""
        self._tunnel.send(frame)

    def received(self, count: int) -> list[tuple[int, bytes]]:
        """Return the next frames that came out, by key; waits for ``count``."""
        found: list[tuple[int, bytes]] = []
        while len(found) < count:
            try:
                labelled = wire.read_label(self.sniffer.recv(9000))
            except TimeoutError:
                raise AssertionError(f"{len(found)} of {count} came out; {self.status()} {self._seen()}") from None
            if labelled is not None:
                found.append(labelled)
        return found

    def said_by_itself(self) -> list[bytes]:
        """Return the frames that came out of the tunnel's NIC so far."""
        found = []
        self._tunnel.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                found.append(self._tunnel.recv(9000))
        self._tunnel.settimeout(LIMIT_S)
        return found

    def connect(self, **asked: Any) -> socket.socket:
        """Return a reader's connection that has asked."""
        made = self.connect_raw()
        made.sendall(json.dumps(asked).encode() + b"\n")
        return made

    def connect_raw(self) -> socket.socket:
        """Return a reader's connection."""
        place = ("127.0.0.1", PORT)
        return asyncio.run(namespace.inside(self.name, lambda: socket.create_connection(place, LIMIT_S)))

    def capture(self, id: str, **more: Any) -> tuple[list[Packet], Statistics]:
        """Return a whole capture: its packets, and the last statistics."""
        with self.connect(session=id, want="packets", **more) as reading:
            blocks = read_capture(reading)
        last = blocks[-1]
        assert isinstance(last, Statistics)
        return [each for each in blocks if isinstance(each, Packet)], last

    def flows(self, id: str) -> list[Json]:
        """Return the lines of a session's flows."""
        with self.connect(session=id, want="flows") as reading:
            return [json.loads(line) for line in read_all(reading).splitlines()]

    def _packets(self, link: str) -> socket.socket:
        def make() -> socket.socket:
            made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
            made.setsockopt(socket.SOL_SOCKET, 33, 64 << 20)  # SO_RCVBUFFORCE
            made.setsockopt(263, 23, 1)  # PACKET_IGNORE_OUTGOING
            made.bind((link, 3))
            made.settimeout(LIMIT_S)
            return made

        return asyncio.run(namespace.inside(self.outside, make))

    def _seen(self) -> str:
        argv = ["ip", "-n", self.outside, "-s", "link", "show", "sniffers"]
        return subprocess.run(argv, check=False, capture_output=True, text=True).stdout

    def _call(self, **asked: Any) -> Json:
        assert self._child is not None
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._child.stdin.write(json.dumps(asked) + "\n")
        self._child.stdin.flush()
        line = self._child.stdout.readline()
        assert line, "the role has ended"
        said = json.loads(line)
        assert isinstance(said, dict)
        return said


def read_all(reading: socket.socket) -> bytes:
    parts = []
    while part := reading.recv(1 << 16):
        parts.append(part)
    return b"".join(parts)


def read_capture(reading: socket.socket) -> list[Block]:
    reader = Reader()
    found = reader.feed(read_all(reading))
    reader.finish()
    return found


def texts(packets: list[Packet]) -> list[bytes]:
    """Return what the frames say."""
    return [packet.data[42:].rstrip(b".") for packet in packets]


def waiting_bytes(reading: socket.socket) -> int:
    """Return how much has come and was not read."""
    return int(struct.unpack("i", fcntl.ioctl(reading, 0x541B, bytes(4)))[0])


def _poll(link: str) -> None:
    """Let the veth have GRO: it takes frames that are redirected to it only where its end polls for them."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        value = ctypes.create_string_buffer(struct.pack("II", namespace.ETHTOOL_SGRO, 1))
        request = struct.pack("16sP16x", link.encode(), ctypes.addressof(value))
        fcntl.ioctl(control, namespace.SIOCETHTOOL, request)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


def run(path: str, folder: Path) -> Iterator[Node]:
    """Have a node whose role runs."""
    node = Node(path, folder)
    try:
        node.start()
        yield node
    finally:
        node.close()
