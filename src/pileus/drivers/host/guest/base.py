"""The contract of the way into a guest: for now its NoCloud seed and its serial console."""

from __future__ import annotations

from typing import Protocol

from msgspec import Struct


class SeedNic(Struct, frozen=True, kw_only=True):
    """One NIC as the guest shall set it up: addresses with prefix length, such as ``10.1.1.10/24``."""

    mac: str
    addresses: tuple[str, ...]
    gateway: str | None = None
    dns: tuple[str, ...] = ()


class Seed(Struct, frozen=True, kw_only=True):
    """NoCloud data of one VM. ``user_data`` goes in as it is: a script (``#!``) or cloud-config, or nothing."""

    instance_id: str
    hostname: str
    ssh_keys: tuple[str, ...] = ()
    user_data: str = ""
    nics: tuple[SeedNic, ...] = ()


class Console(Protocol):
    """An open serial console: what the guest prints, and what is typed to it."""

    async def read(self) -> bytes:
        """Return the next bytes; empty when the machine is gone."""

    async def write(self, text: bytes) -> None:
        """Type ``text``."""

    async def close(self) -> None:
        """Let go of the console."""


class Guest(Protocol):
    """Seeds and consoles of the machines of one host. Every call is idempotent."""

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
