"""The backchannels of one host: which machines' are held, with which keys."""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from pileus.drivers.host.errors import DriverError
from pileus.drivers.host.guest.backchannel import Backchannel
from pileus.drivers.host.guest.base import ChannelForm, NodeFact
from pileus.drivers.host.guest.carriers import Dial, Exchange, dial_port, dial_socket
from pileus.drivers.host.guest.flood import Limits
from pileus.drivers.host.guest.qga_allowed import Allowed
from pileus.drivers.host.guest.qga_channel import AgentChannel
from pileus.drivers.host.guest.untrusted import readable
from pileus.drivers.host.paths import HostPaths
from pileus.node.conversation import ChannelStream
from pileus.node.wire import KEY_BYTES

Wanted = tuple[ChannelForm, str, Allowed | None]
Channel = Backchannel | AgentChannel


class Channels:
    """Holds one backchannel per attached machine; ``listeners`` hear of every change of a fact."""

    def __init__(self, paths: HostPaths, exchange: Exchange | None, limits: Limits) -> None:
        self.listeners: list[Callable[[str], None]] = []
        self._paths = paths
        self._exchange = exchange
        self._limits = limits
        self._held: dict[str, tuple[Wanted, Channel, asyncio.Task[None]]] = {}

    async def attach(self, machine: str, form: ChannelForm, port: str, allowed: Allowed | None) -> None:
        """Hold the machine's backchannel. Raises DriverError (NoKey, BadChannel, BadPackage)."""
        wanted = (form, port, allowed)
        if machine in self._held and self._held[machine][0] == wanted:
            return
        channel = await self._make(machine, form, port, allowed)
        await self.detach(machine)
        self._held[machine] = (wanted, channel, asyncio.create_task(channel.run()))

    async def detach(self, machine: str) -> None:
        """Let go."""
        held = self._held.pop(machine, None)
        if held is not None:
            held[2].cancel()
            with suppress(asyncio.CancelledError):
                await held[2]

    def get(self, machine: str) -> Channel:
        """Return the machine's channel. Raises DriverError (NodeSilent)."""
        if machine not in self._held:
            raise DriverError("NodeSilent", f"the backchannel of machine {machine} is not attached")
        return self._held[machine][1]

    def facts(self) -> dict[str, NodeFact]:
        """Return what is known of every attached machine's node."""
        return {machine: channel.fact for machine, (_, channel, _) in self._held.items()}

    def heard_s(self, machine: str) -> float:
        """Return for how many seconds nothing of the machine's node was heard; -1.0: never anything."""
        heard_at = self._held[machine][1].heard_at if machine in self._held else 0.0
        return asyncio.get_running_loop().time() - heard_at if heard_at else -1.0

    def hint(self, machine: str) -> None:
        """Look at the machine's channel now."""
        if machine in self._held:
            self._held[machine][1].hint()

    def _tell(self, machine: str) -> None:
        for listener in self.listeners:
            listener(machine)

    async def _make(self, machine: str, form: ChannelForm, port: str, allowed: Allowed | None) -> Channel:
        def changed() -> None:
            self._tell(machine)

        if form == "qga":
            socket = self._paths.channel_socket(machine)
            return AgentChannel(machine, socket, allowed or Allowed(), changed, self._limits)
        key = await asyncio.to_thread(_read_key, self._paths.channel_key(machine), machine)
        return Backchannel(machine, key, self._dial(machine, form, port), changed, self._limits)

    def _dial(self, machine: str, form: ChannelForm, port: str) -> Dial:
        if form == "serial":
            return dial_socket(self._paths.channel_socket(machine), machine)
        if self._exchange is None or not port:
            raise DriverError("BadChannel", f"machine {machine} has no switch port to reach its node through")
        return dial_port(self._exchange, port)


class TcpStream:
    """See ``base.Stream``."""

    def __init__(self, stream: ChannelStream) -> None:
        self._stream = stream

    async def read(self) -> bytes:
        """Return the next bytes; empty at the end. Raises DriverError (StreamLost)."""
        try:
            return await self._stream.read()
        except ConnectionError as exc:
            raise _lost(exc) from exc

    async def write(self, data: bytes) -> None:
        """Send ``data``. Raises DriverError (StreamLost)."""
        try:
            await self._stream.write(data)
        except ConnectionError as exc:
            raise _lost(exc) from exc

    async def finish(self) -> None:
        """End our direction, after what was written."""
        self._stream.finish()

    async def close(self) -> None:
        """End both directions, after what was written."""
        self._stream.close()


def _lost(exc: ConnectionError) -> DriverError:
    return DriverError("StreamLost", f"the connection broke: {readable(str(exc))}")


def kept_key(file: Path) -> bytes:
    """Return the machine's key, made now if there is none: it stays the same as long as the machine."""
    with suppress(FileNotFoundError):
        return bytes.fromhex(file.read_text())
    key = secrets.token_bytes(KEY_BYTES)
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_suffix(".new")
    draft.unlink(missing_ok=True)
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w") as out:
        out.write(key.hex())
        out.flush()
        os.fsync(out.fileno())
    draft.replace(file)
    return key


def _read_key(file: Path, machine: str) -> bytes:
    try:
        key = bytes.fromhex(file.read_text())
    except (OSError, ValueError) as exc:
        raise DriverError("NoKey", f"machine {machine} has no backchannel key; write its seed first") from exc
    if len(key) != KEY_BYTES:
        raise DriverError("NoKey", f"the backchannel key of machine {machine} is damaged")
    return key
