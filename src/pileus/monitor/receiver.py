"""A customer's PostgreSQL as a receiver of journals: what comes twice is there once.

Its address is looked up once for each connection, and what is connected to is the address that was checked.
"""

from __future__ import annotations

import asyncio
import errno
import os
import re
import socket
import struct
from collections.abc import Sequence
from datetime import datetime
from typing import Protocol

import asyncpg
from aiohttp.abc import AbstractResolver
from msgspec import Struct

from pileus.kernel.errors import Transient
from pileus.kernel.outbound import Names, check_reach
from pileus.kernel.words import printable
from pileus.monitor.guarded import Guarded
from pileus.monitor.history.types import HistoryAssigned, HistoryDesired

TIMEOUT_S = 15.0
"""For all of one batch: name, connection, TLS, rows."""
WORDS_MAX = 300
"""Of what a database says about a failure."""

BEGIN = """
BEGIN;
SET LOCAL client_min_messages = warning;
SET LOCAL statement_timeout = 10000;
SET LOCAL idle_in_transaction_session_timeout = 60000;
"""
"""The bounds end what nobody waits for any more: a session behind a lock does not see that its client is gone."""

IS_THERE = """
SELECT to_regclass('pileus_history') IS NOT NULL
    AND to_regclass('pileus_state') IS NOT NULL AND to_regclass('pileus_action') IS NOT NULL
"""
LOCK = "SELECT pg_advisory_xact_lock(8101814590)"
"""Two histories that begin in one database at the same moment make the tables one after the other."""
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

NUL = re.compile(r"(?<!\\)((?:\\\\)*)\\u0000")
"""In JSON: a character that no text of PostgreSQL has. What an appliance says may contain it."""

_UNREACHED = frozenset({errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETUNREACH})

_FAILED = (
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    OSError,
    ValueError,
    # What the driver comes to when a server says what no PostgreSQL says:
    AssertionError,
    AttributeError,
    BufferError,
    LookupError,
    RuntimeError,
    TypeError,
    struct.error,
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

    def __init__(self, names: AbstractResolver | None = None) -> None:
        self._names = names or Names()

    async def take(
        self, desired: HistoryDesired, assigned: HistoryAssigned, stream: str, entries: Sequence[Entry]
    ) -> None:
        """Write the entries in one transaction. Raises: Transient."""
        try:
            async with asyncio.timeout(TIMEOUT_S):
                addresses = await self._addresses(desired, assigned)
                await _deliver(addresses, desired, stream, entries)
        except TimeoutError:
            raise Transient(f"the database did not answer within {TIMEOUT_S:.0f} s") from None
        except _FAILED as failed:
            raise Transient(f"the database cannot be written: {_words(failed, desired)}") from failed

    async def _addresses(self, desired: HistoryDesired, assigned: HistoryAssigned) -> list[str]:
        """Return where to connect to. Raises: OSError, also when one of the addresses is out of reach."""
        found = await self._names.resolve(desired.host, desired.port, socket.AF_UNSPEC)
        addresses = list(dict.fromkeys(str(each["host"]) for each in found))
        if not addresses:
            raise OSError("its name has no address")
        for each in addresses:
            check_reach(assigned.reach, each)
        return addresses


def _words(failed: BaseException, desired: HistoryDesired) -> str:
    if isinstance(failed, OSError) and failed.errno in _UNREACHED:
        why = os.strerror(failed.errno).lower()
        return f"{desired.host}, port {desired.port}: {why}; see that PostgreSQL listens there, for the cloud's servers, too"
    return printable(str(failed))[:WORDS_MAX] or type(failed).__name__


async def _deliver(addresses: list[str], desired: HistoryDesired, stream: str, entries: Sequence[Entry]) -> None:
    guarded = Guarded.of(desired.host, desired.ca) if desired.tls == "verify" else None
    try:
        connection = await _connected(addresses, desired, guarded)
        try:
            await _write(connection, stream, entries)
        finally:
            connection.terminate()  # not close, nor roll back: who hangs is not waited for
    except _FAILED as failed:
        if guarded is not None and guarded.complaint:  # the driver only knows that the connection is gone
            raise ConnectionAbortedError(guarded.complaint) from failed
        raise


async def _connected(
    addresses: list[str], desired: HistoryDesired, guarded: Guarded | None
) -> asyncpg.Connection[asyncpg.Record]:
    connection = await asyncpg.connect(
        host=addresses,
        port=[desired.port] * len(addresses),
        user=desired.user,
        password=desired.password.rstrip("\r\n"),  # a file's last line ends so
        database=desired.database,
        passfile="/dev/null",
        ssl=guarded or False,
        timeout=TIMEOUT_S,
        statement_cache_size=0,
    )
    if guarded is not None:
        guarded.is_in = True
    return connection


async def _write(connection: asyncpg.Connection[asyncpg.Record], stream: str, entries: Sequence[Entry]) -> None:
    encoding = connection.get_settings().server_encoding
    if encoding != "UTF8":
        raise ValueError(f"its encoding is {encoding}, and has to be UTF8")
    await connection.execute(BEGIN)
    if not await connection.fetchval(IS_THERE):
        await connection.execute(LOCK)
        await connection.execute(SCHEMA)
    rows = [(stream, each.seq, datetime.fromisoformat(each.at), each.kind, storable(each.body)) for each in entries]
    await connection.executemany(INSERT, rows)
    await connection.execute("COMMIT")


def storable(body: str) -> str:
    """Return JSON that PostgreSQL takes: where a text has U+0000, U+FFFD."""
    return NUL.sub(r"\1\\ufffd", body)
