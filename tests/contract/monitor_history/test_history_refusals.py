"""Where a history may lead, whom it trusts, and what a customer reads when it cannot be written."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import uvloop
from tests.contract.monitor_history.customers_database import NAME, PASSWORD, Names, certificate, note_task, wire
from tests.contract.monitor_history.history_rig import Rig, states

from pileus.kernel.errors import Transient
from pileus.kernel.outbound import Names as SystemNames
from pileus.monitor.history.types import HistoryAssigned
from pileus.monitor.receiver import Postgres

pytestmark = pytest.mark.anyio

Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], None]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"password": "wrong"}, 'password authentication failed for user "postgres"'),
        ({"user": "nobody"}, 'password authentication failed for user "nobody"'),
        ({"database": "missing"}, 'database "missing" does not exist'),
        ({"host": "unknown.example.com"}, "Name or service not known"),
        ({"host": "empty.example.com"}, "its name has no address"),
        ({"port": 1}, "port 1: connection refused; see that PostgreSQL listens there"),
    ],
)
async def test_what_is_wrong_is_said(rig: Rig, changes: dict[str, object], words: str) -> None:
    rig.names.known["empty.example.com"] = []
    with pytest.raises(Transient, match=words) as failed:
        await rig.take(states(1, 1), **changes)
    assert PASSWORD not in failed.value.message


async def test_a_password_may_come_from_a_file_whose_line_ends(rig: Rig) -> None:
    await rig.take(states(1, 1), password=f"{PASSWORD}\n")
    with pytest.raises(Transient, match="password authentication failed"):
        await rig.take(states(1, 1), password=f"{PASSWORD} ")


async def test_a_user_who_may_only_read_is_refused_and_one_who_may_only_add_is_enough(rig: Rig) -> None:
    user = f"u{rig.name}"
    await rig.rows(f"CREATE USER {user} PASSWORD 'p'")
    with pytest.raises(Transient, match="permission denied for schema public"):
        await rig.take(states(1, 1), user=user, password="p")
    await rig.take([])
    await rig.rows(f"GRANT SELECT ON pileus_history TO {user}")
    with pytest.raises(Transient, match="permission denied for table pileus_history"):
        await rig.take(states(1, 1), user=user, password="p")
    await rig.rows(f"REVOKE SELECT ON pileus_history FROM {user}")
    await rig.rows(f"GRANT INSERT ON pileus_history TO {user}")
    await rig.take(states(1, 3), user=user, password="p")
    await rig.take(states(1, 5), user=user, password="p")
    assert await rig.numbers() == [1, 2, 3, 4, 5]
    await rig.rows(f"ALTER USER {user} SET default_transaction_read_only = on")
    with pytest.raises(Transient, match="read-only transaction"):
        await rig.take(states(6, 6), user=user, password="p")


async def test_a_database_that_cannot_keep_every_text_is_refused(rig: Rig) -> None:
    other = f"{rig.name}l"
    await rig.rows(f"CREATE DATABASE {other} ENCODING 'LATIN1' TEMPLATE template0 LOCALE 'C'")
    with pytest.raises(Transient, match="its encoding is LATIN1, and has to be UTF8"):
        await rig.take(states(1, 1), database=other)


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_the_name_that_was_written_is_verified_at_the_address_that_was_checked(
    rig: Rig, loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    other_ca, _ = certificate(NAME)
    trusted = {"tls": "verify", "ca": rig.database.ca}

    async def main() -> None:
        await rig.take(states(1, 500, 1000), **trusted)
        assert await rig.rows("SELECT count(*) FROM pileus_history") == [(500,)]
        await rig.take(states(501, 502), **trusted)
        with pytest.raises(Transient, match="Hostname mismatch"):
            await rig.take(states(503, 503), **trusted, host="other.example.com")
        rig.names.known["127.0.0.1"] = ["127.0.0.1"]
        with pytest.raises(Transient, match="IP address mismatch"):
            await rig.take(states(503, 503), **trusted, host="127.0.0.1")
        for ca in ("", other_ca):
            with pytest.raises(Transient, match="certificate verify failed"):
                await rig.take(states(503, 503), tls="verify", ca=ca)
        with pytest.raises(Transient, match="ca cannot be read"):
            await rig.take(states(503, 503), tls="verify", ca="no PEM")
        assert len(await rig.numbers()) == 502

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(main())


async def test_a_database_without_tls_gets_no_password(rig: Rig) -> None:
    await asyncio.to_thread(rig.database.stop)
    await asyncio.to_thread(lambda: rig.database.start(tls=False))
    try:
        async with wire(rig.database.port) as way:
            with pytest.raises(Transient, match="rejected SSL upgrade"):
                await rig.take(states(1, 1), port=way.port, tls="verify", ca=rig.database.ca)
            assert bytes(way.upward) == struct.pack("!II", 8, 80877103), "the question for TLS, and nothing else"
    finally:
        await asyncio.to_thread(rig.database.stop)
        await asyncio.to_thread(rig.database.start)


PRIVATE = {
    "private.example.com": ["10.0.0.1"],
    "loop.example.com": ["127.0.0.1"],
    "metadata.example.com": ["169.254.169.254"],
    "mixed.example.com": ["1.1.1.1", "127.0.0.1"],
    "mapped.example.com": ["::ffff:127.0.0.1"],
    "six.example.com": ["::1"],
}


async def test_a_tenants_history_reaches_no_private_address(rig: Rig) -> None:
    connections = 0

    def canary(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        writer.close()

    servers = [await asyncio.start_server(canary, "127.0.0.1", 0)]
    port = servers[0].sockets[0].getsockname()[1]
    with contextlib.suppress(OSError):  # a machine without IPv6
        servers.append(await asyncio.start_server(canary, "::1", port))
    public = HistoryAssigned(reach="public")
    for tls in ("verify", "off"):
        for host in PRIVATE:
            with pytest.raises(Transient, match="is of a private network or of the cloud's own machines"):
                await Postgres(Names(**PRIVATE)).take(rig.desired(host=host, port=port, tls=tls), public, "s", [])
        for host in ("localhost", "127.0.0.1", "0.0.0.0", "2130706433", "127.1"):
            with pytest.raises(Transient):
                await Postgres(SystemNames()).take(rig.desired(host=host, port=port, tls=tls), public, "s", [])
    assert connections == 0
    with pytest.raises(Transient):
        await Postgres(SystemNames()).take(
            rig.desired(host="127.0.0.1", port=port), HistoryAssigned(reach="any"), "s", []
        )
    assert connections == 1, "the canary hears"
    for server in servers:
        server.close()


@contextlib.asynccontextmanager
async def hostile(talk: Talk, chain: Path | None = None) -> AsyncIterator[int]:
    """Give the port of a server that talks so, behind TLS when there is a certificate."""

    writers: list[asyncio.StreamWriter] = []
    at_work: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        note_task(at_work)
        writers.append(writer)
        if chain is not None:
            await reader.readexactly(8)
            writer.write(b"S")
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(chain)
            await writer.start_tls(context)
        await reader.read(65_536)
        talk(reader, writer)
        with contextlib.suppress(OSError):
            while await reader.read(65_536):
                continue
        writer.transport.abort()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for each in writers:
            each.transport.abort()
        if at_work:
            await asyncio.wait(at_work)


async def test_who_accepts_and_says_nothing_is_given_up_in_time(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pileus.monitor.receiver.TIMEOUT_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        for tls in ("off", "verify"):
            began = time.monotonic()
            with pytest.raises(Transient, match="did not answer within"):
                await rig.take(states(1, 1), port=silent.getsockname()[1], tls=tls)
            assert time.monotonic() - began < 2.0


def _message(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("!I", len(body) + 4) + body


WRONG = {
    "noise": b"\xff\x00garbage" * 100,
    "nothing": b"",
    "a length below zero": b"R" + struct.pack("!i", -5) + b"x" * 100,
    "an unknown way in": _message(b"R", struct.pack("!I", 7)),
    "a short way in": _message(b"R", b"\0"),
    "no mechanism": _message(b"R", struct.pack("!I", 10) + b"OTHER\0\0"),
    "in at once": _message(b"R", struct.pack("!I", 0)) + _message(b"Z", b"I"),
    "a row that nobody asked for": _message(b"R", struct.pack("!I", 0)) + _message(b"D", b"\x7f\xff"),
    "a refusal without words": _message(b"E", b"\0"),
    "a refusal in no known text": _message(b"E", b"SFATAL\0CXX\xff\xfe\0M\xff\xff\0\0"),
}


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # the driver's, of a half-made connection
@pytest.mark.parametrize("said", WRONG.values(), ids=WRONG)
async def test_who_is_no_postgresql_is_a_failure_like_others(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, said: bytes
) -> None:
    monkeypatch.setattr("pileus.monitor.receiver.TIMEOUT_S", 1.0)

    def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(said)
        writer.write_eof()

    async with hostile(talk) as port:
        with pytest.raises(Transient):
            await rig.take(states(1, 1), port=port)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (_message(b"N", b"SNOTICE\0C00000\0M" + b"x" * 60_000 + b"\0\0") * 100, "it said more than 4 MiB"),
        (_message(b"R", struct.pack("!I", 11) + b"r=nonce,s=c2FsdA==,i=2000000000"), "it wants the password hashed"),
    ],
    ids=["endless", "hashing"],
)
async def test_a_hostile_database_costs_neither_memory_nor_time(
    rig: Rig, tmp_path: Path, said: bytes, words: str
) -> None:
    ca, chain = certificate(NAME)
    path = tmp_path / "chain.pem"
    path.write_text(chain)

    def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if b"hashed" in words.encode():
            writer.write(_message(b"R", struct.pack("!I", 10) + b"SCRAM-SHA-256\0\0"))
        writer.write(said)

    async with hostile(talk, path) as port:
        began = time.monotonic()
        with pytest.raises(Transient, match=words):
            await rig.take(states(1, 1), port=port, tls="verify", ca=ca)
        assert time.monotonic() - began < 5.0
