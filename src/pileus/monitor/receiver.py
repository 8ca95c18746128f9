"""A customer's PostgreSQL as a receiver of journals: what comes twice is there once.

Its address is looked up once for each connection, and what is connected to is the address that was checked.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Sequence
from datetime import datetime
from ipaddress import ip_address
from typing import Protocol

import asyncpg
from msgspec import Struct

from pileus.kernel.addresses import is_public
from pileus.kernel.errors import Transient
from pileus.monitor.history.types import HistoryAssigned, HistoryDesired

TIMEOUT_S = 10.0
"""For the connection, and for each batch."""

SCHEMA = """
CREATE TABLE IF NOT EXISTS pileus_history (
    stream text NOT NULL,
    seq bigint NOT NULL,
    at timestamptz NOT NULL,
    kind text NOT NULL,
    body jsonb NOT NULL,
    PRIMARY KEY (stream, seq)
);
CREATE OR REPLACE VIEW pileus_state AS
    SELECT stream, seq, at, body->>'vm' AS vm, body->>'name' AS name,
           body->'row'->'execution'->>'state' AS state, body->'row' AS details
    FROM pileus_history WHERE kind = 'state';
CREATE OR REPLACE VIEW pileus_action AS
    SELECT stream, seq, at, body->>'id' AS action, body->>'vm' AS vm, body->>'state' AS state,
           body->'cause'->>'actor' AS actor, body->'cause'->>'cause' AS cause,
           body->'cause'->>'key' AS idempotency_key, body->'steps' AS steps
    FROM pileus_history WHERE kind = 'action';
"""
INSERT = "INSERT INTO pileus_history (stream, seq, at, kind, body) VALUES ($1, $2, $3, $4, $5) ON CONFLICT DO NOTHING"

_FAILED = (
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    OSError,
    TimeoutError,
    ValueError,
)


class Entry(Struct, frozen=True):
    """An entry of a journal. ``at``: RFC 3339; ``body``: JSON."""

    seq: int
    at: str
    kind: str
    body: str


class Receiver(Protocol):
    """Takes entries."""

    async def take(
        self, desired: HistoryDesired, assigned: HistoryAssigned, stream: str, entries: Sequence[Entry]
    ) -> None:
        """Return once all of them are kept there. Raises: Transient; then some may be, and all may come again."""


class Postgres:
    """The real one: a connection for each call, so that nothing of a customer's stays open here."""

    async def take(
        self, desired: HistoryDesired, assigned: HistoryAssigned, stream: str, entries: Sequence[Entry]
    ) -> None:
        """Write the entries in one transaction. Raises: Transient."""
        try:
            async with asyncio.timeout(2 * TIMEOUT_S):
                await _deliver(desired, assigned, stream, entries)
        except TimeoutError:
            raise Transient(f"the database did not answer within {2 * TIMEOUT_S:.0f} s") from None
        except _FAILED as failed:
            words = "".join(each if each.isprintable() else " " for each in str(failed))[:300]
            raise Transient(f"the database cannot be written: {words or type(failed).__name__}") from failed


async def _deliver(desired: HistoryDesired, assigned: HistoryAssigned, stream: str, entries: Sequence[Entry]) -> None:
    address = await _checked(desired, assigned)
    connection = await asyncpg.connect(
        host=address,
        port=desired.port,
        user=desired.user,
        password=desired.password,
        database=desired.database,
        passfile="/dev/null",
        ssl=_Named.of(desired) if desired.tls == "verify" else False,
        timeout=TIMEOUT_S,
        command_timeout=TIMEOUT_S,
        statement_cache_size=0,
    )
    try:
        async with connection.transaction():
            await connection.execute("SET LOCAL client_min_messages = warning")
            await connection.execute(SCHEMA)
            rows = [(stream, each.seq, datetime.fromisoformat(each.at), each.kind, each.body) for each in entries]
            await connection.executemany(INSERT, rows)
    finally:
        connection.terminate()


async def _checked(desired: HistoryDesired, assigned: HistoryAssigned) -> str:
    """Return the address to connect to. Raises: OSError."""
    found = await asyncio.get_running_loop().getaddrinfo(desired.host, desired.port, type=socket.SOCK_STREAM)
    address = ip_address(str(found[0][4][0]).partition("%")[0])
    if assigned.reach == "public" and not is_public(address):
        raise PermissionError(f"{address} is of a private network or of the cloud's own machines")
    if address.is_multicast or address.is_unspecified:
        raise PermissionError(f"{address} is not the address of a machine")
    return str(address)


class _Named(ssl.SSLContext):
    """Verifies the name that the customer wrote, although the connection is made to the address that was checked."""

    name = ""

    @classmethod
    def of(cls, desired: HistoryDesired) -> _Named:
        context = cls(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_default_certs()
        context.name = desired.host
        if desired.ca:
            try:
                context.load_verify_locations(cadata=desired.ca)
            except ssl.SSLError as wrong:
                raise ValueError(f"ca cannot be read: {wrong.reason}") from wrong
        return context

    def wrap_bio(
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        server_side: bool = False,
        server_hostname: str | bytes | None = None,
        session: ssl.SSLSession | None = None,
    ) -> ssl.SSLObject:
        """Return what asyncio speaks TLS with, for the name."""
        return super().wrap_bio(incoming, outgoing, server_side, self.name, session)
