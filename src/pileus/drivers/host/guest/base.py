"""The contract of the way into a guest: its NoCloud seed, its serial console, and an appliance's backchannel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, Protocol

from msgspec import Struct

from pileus.drivers.host.guest.qga_allowed import Allowed


class SeedNic(Struct, frozen=True, kw_only=True):
    """One NIC as the guest shall set it up: addresses with prefix length, such as ``10.1.1.10/24``."""

    mac: str
    addresses: tuple[str, ...]
    gateway: str | None = None
    dns: tuple[str, ...] = ()


ChannelForm = Literal["serial", "nic", "qga"]
"""``serial``: a virtio-serial port. ``nic``: frames that the switch puts into the VM's first NIC and takes out there.
``qga``: QEMU's guest agent in a foreign guest."""

Document = dict[str, dict[str, Any]]
"""A node's configuration: section -> key -> entry, JSON."""


class Seed(Struct, frozen=True, kw_only=True):
    """NoCloud data of one VM. ``user_data`` goes in as it is: a script (``#!``) or cloud-config, or nothing."""

    instance_id: str
    hostname: str
    ssh_keys: tuple[str, ...] = ()
    user_data: str = ""
    ovf_environment: str = ""
    """XML that the guest finds as ``ovf-env.xml`` beside NoCloud's files."""
    nics: tuple[SeedNic, ...] = ()
    channel: ChannelForm | Literal[""] = ""
    """Set for an appliance: the seed then carries its backchannel key, made here and kept beside the seed."""
    role: str = ""
    """What the appliance shall be, such as ``router``."""


class Console(Protocol):
    """An open serial console: what the guest prints, and what is typed to it."""

    async def read(self) -> bytes:
        """Return the next bytes; empty when the machine is gone."""

    async def write(self, text: bytes) -> None:
        """Type ``text``."""

    async def close(self) -> None:
        """Let go of the console."""


class NodeFact(Struct, frozen=True, kw_only=True):
    """What is known of a node: ``silent`` until it has proved itself on the open channel since its last boot.

    ``hash``: of the document it runs (``document_hash`` of pileus.node.document), empty before its first one.
    ``refused``: why it did not take, or could not do, the last document. ``status``: what its role says of itself,
    at most 64 KiB of JSON, untrusted.
    """

    machine: str
    state: Literal["silent", "ready", "quarantined"]
    """``quarantined``: it did harm again and again; nothing is read from it until it is attached anew."""
    hash: str = ""
    version: str = ""
    boot_id: str = ""
    refused: str = ""
    status: dict[str, Any] = {}


PAYLOAD_BYTES_MAX = 16 << 20
"""Of a request."""

ANSWER_BYTES_MAX = 256 << 10


class GuestRequest(Struct, frozen=True, kw_only=True):
    """One request to a node's role.

    ``sequence`` rises from request to request of a node; the node begins none at or below its last one, and keeps over
    every restart how its last ones ended. ``deadline``: Unix seconds; a node that has not begun by then never does.
    ``withdrawn``: it shall not be begun any more; the answer tells whether it was.
    """

    id: str
    sequence: int
    deadline: float
    payload: bytes = b""
    withdrawn: bool = False


class GuestAnswer(Struct, frozen=True, kw_only=True):
    """How a request ended: once, and the same however often it is asked.

    ``applied``: the role did it, ``answer`` is what it said. ``refused``: it changed nothing, ``answer`` says why.
    ``expired``, ``withdrawn``: it was never begun. ``unknown``: later ones came since and the node forgot this one, or it
    was cut off (by a restart after which it may not be begun again, by a role that broke): ``answer`` says so.
    """

    state: Literal["applied", "refused", "expired", "withdrawn", "unknown"]
    answer: bytes = b""


class Stream(Protocol):
    """A TCP connection that a node made on our behalf, inside its networks."""

    async def read(self) -> bytes:
        """Return the next bytes; empty at the end. Raises: DriverError (StreamLost) when it broke."""

    async def write(self, data: bytes) -> None:
        """Send ``data``; waits while the node cannot take more. Raises: DriverError (StreamLost) when it is over."""

    async def finish(self) -> None:
        """End our direction (TCP's FIN), once; reading goes on."""

    async def close(self) -> None:
        """End both directions."""


class Guest(Protocol):
    """Seeds, consoles and backchannels of the machines of one host. Every call is idempotent."""

    async def write_seed(self, machine: str, seed: Seed) -> str:
        """Write the machine's NoCloud ISO (label ``cidata``), atomically, and return its path."""

    async def log(self, machine: str, tail_bytes: int) -> bytes:
        """Return the last ``tail_bytes`` of what the console printed, over rotations; empty when there is none."""

    async def rotate(self, limit_bytes: int) -> None:
        """Keep each console log below ``2 * limit_bytes`` (one older part is kept)."""

    async def console(self, machine: str) -> Console:
        """Open the serial console; a second open takes it over. Raises DriverError (NoConsole) when not running."""

    async def remove(self, machine: str) -> None:
        """Remove seed and logs of the machine."""

    async def attach(self, machine: str, form: ChannelForm, port: str = "", allowed: Allowed | None = None) -> None:
        """Hold the machine's backchannel from now on: connect, prove each other, and again after every end.

        ``port``: the switch port of the machine's first NIC, for the form ``nic``. ``allowed``: what may be done in a
        guest of the form ``qga``.
        """

    async def detach(self, machine: str) -> None:
        """Let go of the machine's backchannel."""

    async def nodes(self) -> dict[str, NodeFact]:
        """Return what is known of every attached machine's node."""

    async def configure(self, machine: str, document: Document) -> None:
        """Let the node run ``document``: what differs from what it runs is sent, all of it when nothing is known.

        Returns when the node runs it. Raises: DriverError (NodeSilent; NodeRefused with the node's own words).
        """

    async def request(self, machine: str, request: GuestRequest) -> GuestAnswer:
        """Let the node do ``request``, once however often this is called, and return how it ended.

        Requests of one node are made one after another. Raises: DriverError (NodeSilent: try again, nothing is lost).
        """

    async def poll(self, machine: str, timeout_s: float) -> NodeFact:
        """Let the node look at its role now, and return what it says then.

        Calls at the same time share one look. Raises: DriverError (NodeSilent: no answer in time, which is all that a
        node says whose version knows no polls; what is known of it stays as it is).
        """

    def heard_s(self, machine: str) -> float:
        """Return for how many seconds nothing of the node was heard that proves it lives; -1.0: never anything."""

    async def connect(self, machine: str, address: str, port: int, timeout_s: float = 10.0) -> Stream:
        """Let the node open a TCP connection in its networks. Raises: DriverError (NodeSilent, ConnectRefused)."""

    def on_change(self, listener: Callable[[str], None]) -> None:
        """Call ``listener`` with a machine's id whenever its NodeFact changed."""
