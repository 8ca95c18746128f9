"""The control path of one port, over OpenFlow 1.3 on the bridge's own socket: frames put in, frames taken out.

A connection per port, so that a guest that floods fills its own queue only. Source: OpenFlow 1.3.5 (7.3.7, 7.4.1);
ovs-actions(7) on ``controller``; nicira-ext.h on NXT_SET_CONTROLLER_ID.
"""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections import deque
from collections.abc import Awaitable, Callable
from pathlib import Path

from pileus.drivers.host.errors import DriverError, OvsdbError
from pileus.drivers.host.ovs.base import ETHERTYPE_CONTROL
from pileus.drivers.host.ovs.flows import (
    ADMISSION,
    CONTROL_MARK,
    Flow,
    Role,
    add_line,
    any_cookie,
)

PAYLOAD_BYTES_MAX = 1400
HOST_MAC = bytes.fromhex("027069000001")
"""The source of frames to guests: locally administered, and never looked at by the switch."""

INBOX_FRAMES_MAX = 256
RATE_FRAMES, BURST_FRAMES = 1000, 250
"""What a guest may send in a second, and at once; what is over it, the datapath drops before it costs anybody much."""

VERSION = 4
HELLO, ERROR, ECHO_REQUEST, ECHO_REPLY, EXPERIMENTER, SET_CONFIG, PACKET_IN, PACKET_OUT, SET_ASYNC = (
    0, 1, 2, 3, 4, 9, 10, 13, 28,
)  # fmt: skip
BARRIER_REQUEST, BARRIER_REPLY = 20, 21
NICIRA, SET_CONTROLLER_ID = 0x2320, 20
FRAGMENTS_NX_MATCH = 3
NO_BUFFER, PORT_CONTROLLER, PORT_TABLE, REASON_ACTION = 0xFFFFFFFF, 0xFFFFFFFD, 0xFFFFFFF9, 0x2
HEADER = struct.Struct("!BBHI")
ETHERNET = struct.Struct("!6s6sH")


def control_meter(ofport: int) -> int:
    """Return the number of the meter of a port's control path; ports' other meters are below (16 bits, twice)."""
    return 0x20000 + ofport


def control_meter_text(ofport: int) -> str:
    """Return the meter."""
    return f"meter={control_meter(ofport)},pktps,burst,band=type=drop,rate={RATE_FRAMES},burst_size={BURST_FRAMES}"


def control_lines(ofport: int, mac: str) -> list[str]:
    """Return the bundle lines that open the path, above all that a port may or may not do."""
    kind = f"dl_type={ETHERTYPE_CONTROL:#x}"
    out = f"meter:{control_meter(ofport)},controller(max_len=65535,id={ofport})"
    flows = [
        Flow(table=ADMISSION, priority=700, role=Role.admit, match=f"in_port={ofport},vlan_tci=0,{kind}", actions=out),
        Flow(table=ADMISSION, priority=700, role=Role.control, match=f"in_port=CONTROLLER,dl_dst={mac},{kind}",
             actions=f"output:{ofport}"),
    ]  # fmt: skip
    return [add_line(flow, CONTROL_MARK << 48 | ofport << 32 | flow.role) for flow in flows]


def shut_lines(ofport: int) -> list[str]:
    """Return the bundle lines that close the path."""
    return [f"flow delete {any_cookie(CONTROL_MARK, ofport)}"]


class Inbox:
    """The last payloads that came, no more than ``INBOX_FRAMES_MAX``; older ones are lost."""

    def __init__(self) -> None:
        self.is_closed = False
        self._payloads: deque[bytes] = deque(maxlen=INBOX_FRAMES_MAX)
        self._changed = asyncio.Event()

    def put(self, payload: bytes) -> None:
        """Take a payload; an empty one says nothing."""
        if payload and not self.is_closed:
            self._payloads.append(payload)
            self._changed.set()

    async def get(self) -> bytes:
        """Return the next payload; empty when it is closed."""
        while not self._payloads and not self.is_closed:
            self._changed.clear()
            await self._changed.wait()
        return b"" if self.is_closed else self._payloads.popleft()

    def close(self) -> None:
        """Let everybody who waits go."""
        self.is_closed = True
        self._changed.set()


def check_payload(payload: bytes) -> None:
    """Raise DriverError (FrameTooLong) when it does not fit."""
    if len(payload) > PAYLOAD_BYTES_MAX:
        raise DriverError("FrameTooLong", f"a control frame holds {PAYLOAD_BYTES_MAX} bytes, not {len(payload)}")


class PortExchange:
    """Host end of the path of the port ``ofport``, whose guest has ``mac``."""

    def __init__(self, ofport: int, mac: str, on_close: Callable[[PortExchange], Awaitable[None]]) -> None:
        self.ofport = ofport
        self._header = ETHERNET.pack(bytes.fromhex(mac.replace(":", "")), HOST_MAC, ETHERTYPE_CONTROL)
        self._on_close = on_close
        self._inbox = Inbox()
        self._ready = asyncio.Event()
        self._writer: asyncio.StreamWriter | None = None
        self._reading: asyncio.Task[None] | None = None

    async def connect(self, socket: Path, timeout_s: float = 10) -> None:
        """Return when the switch will send the port's frames here. Raises: OvsdbError."""
        try:
            async with asyncio.timeout(timeout_s):
                reader, self._writer = await asyncio.open_unix_connection(socket)
                self._reading = asyncio.create_task(self._read(reader))
                self._say(HELLO, b"")
                # These flags are the bridge's: any others would hide the ports of first fragments from the flows.
                self._say(SET_CONFIG, struct.pack("!HH", FRAGMENTS_NX_MATCH, 0xFFFF))
                self._say(SET_ASYNC, struct.pack("!6I", REASON_ACTION, REASON_ACTION, 0, 0, 0, 0))
                self._say(EXPERIMENTER, struct.pack("!II6xH", NICIRA, SET_CONTROLLER_ID, self.ofport))
                self._say(BARRIER_REQUEST, b"")
                await self._ready.wait()
        except (TimeoutError, OSError) as exc:
            self.abandon()
            raise OvsdbError("Open vSwitch does not open a control path") from exc
        if self._inbox.is_closed:
            raise OvsdbError("Open vSwitch closed the control path")

    async def send(self, payload: bytes) -> None:
        """Put a frame into the guest's NIC; lost when the path is closed. Raises: DriverError (FrameTooLong)."""
        check_payload(payload)
        if self._inbox.is_closed or self._writer is None:
            return
        action = struct.pack("!HHIH6x", 0, 16, PORT_TABLE, 0)
        start = struct.pack("!IIH6x", NO_BUFFER, PORT_CONTROLLER, len(action))
        self._say(PACKET_OUT, start + action + self._header + payload)
        with contextlib.suppress(OSError):  # the reader notices the end
            await self._writer.drain()

    async def receive(self) -> bytes:
        """Return the next payload that the guest sent, as padded as it came; empty when the path is closed."""
        return await self._inbox.get()

    async def close(self) -> None:
        """Close the path; what the guest sends afterwards is refused as any other foreign frame."""
        if not self._inbox.is_closed:
            self.abandon()
            await self._on_close(self)

    def abandon(self) -> None:
        """Let go of the connection and leave the flows."""
        self._inbox.close()
        self._ready.set()
        if self._reading is not None:
            self._reading.cancel()
        if self._writer is not None:
            self._writer.close()

    def _say(self, kind: int, body: bytes) -> None:
        assert self._writer is not None
        self._writer.write(HEADER.pack(VERSION, kind, HEADER.size + len(body), 0) + body)

    async def _read(self, reader: asyncio.StreamReader) -> None:
        try:
            while True:
                _, kind, length, _ = HEADER.unpack(await reader.readexactly(HEADER.size))
                self._take(kind, await reader.readexactly(length - HEADER.size))
        except (asyncio.IncompleteReadError, OSError):
            self.abandon()

    def _take(self, kind: int, body: bytes) -> None:
        if kind == PACKET_IN:
            self._inbox.put(_payload(body))
        elif kind == ECHO_REQUEST:
            self._say(ECHO_REPLY, body)
        elif kind == BARRIER_REPLY:
            self._ready.set()
        elif kind == ERROR:
            self.abandon()


def _payload(body: bytes) -> bytes:
    """Return the payload of a packet-in: 16 bytes, a match padded to 8 bytes, 2 bytes, the frame."""
    (match_bytes,) = struct.unpack_from("!H", body, 18)
    frame = body[16 + (match_bytes + 7) // 8 * 8 + 2 :]
    is_control = len(frame) > ETHERNET.size and ETHERNET.unpack_from(frame)[2] == ETHERTYPE_CONTROL
    return frame[ETHERNET.size :] if is_control else b""
