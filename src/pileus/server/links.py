"""What the HTTP server and the part that talks to agents know of each other."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any, Protocol


class Channel(Protocol):
    """An agent's connection: whole binary messages both ways."""

    async def receive(self) -> bytes | None:
        """Return the next message; None once the connection is closed."""

    async def send(self, message: bytes) -> None:
        """Send a message. Raises: Transient when the connection is closed."""


class Duplex(Protocol):
    """A byte stream both ways, such as a serial console."""

    async def read(self) -> bytes:
        """Return what arrived; empty at the end."""

    async def write(self, content: bytes) -> None:
        """Send bytes. Raises: Transient when the other end is gone."""

    async def close(self) -> None:
        """End it; ended already: nothing."""


class Connection(Protocol):
    """A connection to a port of a VM: each direction has an end of its own."""

    @property
    def done(self) -> bool:
        """Whether both directions ended, and nothing broke."""

    async def read(self) -> bytes:
        """Return what arrived; empty at the end. Raises: Transient when it broke."""

    async def write(self, content: bytes, /) -> None:
        """Send bytes as the VM takes them. Raises: Transient when it is over."""

    async def finish(self) -> None:
        """End our direction."""

    async def close(self) -> None:
        """End it; ended already: nothing."""


class AgentLinks(Protocol):
    """The agents of this server."""

    async def serve(self, host_id: str, channel: Channel) -> None:
        """Speak with the agent of ``host_id`` until its connection closes."""

    def call(self, host_id: str, verb: str, id: str, arguments: Mapping[str, Any]) -> AsyncIterator[bytes]:
        """Ask the agent and yield its answer's parts. Raises: Transient when it is not connected."""

    async def console(self, host_id: str, vm_id: str) -> Duplex:
        """Open a VM's serial console. Raises: Transient when the agent is not connected."""

    async def connect(self, host_id: str, appliance: str, address: str, port: int) -> Connection:
        """Connect to an address in the networks of an appliance's VM on the host.

        Raises: Transient when the agent or the appliance is silent, Conflict (connect-refused) in the VM's name, TooMany.
        """

    async def disk(self, host_id: str, volume: str) -> Connection:
        """Have a volume sent, packed as VMDK. Raises: Transient when the agent is not connected or refuses, TooMany."""
