"""A customer's PostgreSQL: one that can be killed, stopped and started, speaks TLS, and is behind a wire that can be cut."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg
from aiohttp.abc import AbstractResolver, ResolveResult
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from tests.postgres import BIN, START_TIMEOUT_S, STOP_TIMEOUT_S, USER

NAME = "db.example.com"
PASSWORD = "only of this test"
OPTIONS = ("fsync=off", "shared_buffers=16MB", "max_connections=30")
"""fsync is for machines that fail; what a process that is killed had committed is in the files all the same."""


class Database:
    """A cluster with TLS that keeps what it commits."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = _free_port()
        self.ca, chain = certificate(NAME)
        self._process: subprocess.Popen[bytes] | None = None
        (folder / "server.pem").write_text(chain)
        (folder / "password").write_text(PASSWORD)
        for path in (folder, folder / "server.pem", folder / "password"):
            path.chmod(0o700 if path == folder else 0o600)
            if os.geteuid() == 0:
                shutil.chown(path, USER)
        made = ["--no-sync", "--auth=scram-sha-256", f"--pwfile={folder / 'password'}", "--encoding=UTF8"]
        command: list[str | Path] = [BIN / "initdb", *made, "--locale=C", "-U", USER, "-D", "data"]
        subprocess.run(command, cwd=folder, user=_user(), check=True, capture_output=True)

    def start(self, *, tls: bool = True) -> None:
        """Start it, and wait until it answers."""
        pem = self.folder / "server.pem"
        options = [*OPTIONS, *([f"ssl_cert_file={pem}", f"ssl_key_file={pem}", "ssl=on"] if tls else [])]
        arguments = ["-D", "data", "-p", str(self.port), "-h", "127.0.0.1", "-k", str(self.folder)]
        arguments += [part for option in options for part in ("-c", option)]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [BIN / "postgres", *arguments], cwd=self.folder, user=_user(), stdout=log, stderr=log
            )
        asyncio.run(self._answers())

    def stop(self) -> None:
        """End it in order."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
            self._process.wait(STOP_TIMEOUT_S)

    def hold(self) -> None:
        """Stop all of it (SIGSTOP), and wait until nothing of it moves: a fork under way still makes its child."""
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGSTOP)
        self._await_still([self._process.pid])
        # The first one makes none and buries none now, so that this list is whole.
        children = self._children()
        for pid in children:
            os.kill(pid, signal.SIGSTOP)
        self._await_still(children)

    def let_go(self) -> None:
        """Let all of it go on."""
        assert self._process is not None
        for pid in [*self._children(), self._process.pid]:
            os.kill(pid, signal.SIGCONT)

    def kill(self) -> None:
        """End all of it at once, and wait until it is gone."""
        assert self._process is not None
        self.hold()
        for pid in [*self._children(), self._process.pid]:
            os.kill(pid, signal.SIGKILL)
        self._process.wait(STOP_TIMEOUT_S)

    def _children(self) -> list[int]:
        """Return the numbers of the first process's children; whole only while that one is stopped (proc(5))."""
        assert self._process is not None
        pid = self._process.pid
        return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    @staticmethod
    def _await_still(pids: list[int]) -> None:
        deadline = time.monotonic() + STOP_TIMEOUT_S
        for pid in pids:
            while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "TZ":
                assert time.monotonic() < deadline, f"process {pid} does not stop"
                time.sleep(0.001)

    def url(self, database: str = "postgres") -> str:
        """Return where it is, without TLS."""
        return f"postgresql://{USER}:{PASSWORD.replace(' ', '%20')}@127.0.0.1:{self.port}/{database}?sslmode=disable"

    async def fetch(self, statement: str, database: str = "postgres") -> list[tuple[Any, ...]]:
        """Return the rows of a statement."""
        connection = await asyncpg.connect(self.url(database))
        try:
            return [tuple(row) for row in await connection.fetch(statement)]
        finally:
            await connection.close()

    async def _answers(self) -> None:
        async with asyncio.timeout(START_TIMEOUT_S):
            while True:
                try:
                    await self.fetch("SELECT 1")
                except (OSError, asyncpg.PostgresError):
                    await asyncio.sleep(0.05)
                    continue
                return


@contextlib.contextmanager
def running() -> Iterator[Database]:
    """Give a running one for the block."""
    folder = Path(tempfile.mkdtemp(prefix="pileus-history-", dir="/dev/shm"))
    try:
        database = Database(folder)
        database.start()
        try:
            yield database
        finally:
            database.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class Names(AbstractResolver):
    """Says what the test wants of each name."""

    def __init__(self, **known: list[str]) -> None:
        self.known = {NAME: ["127.0.0.1"], "other.example.com": ["127.0.0.1"], **known}

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Return the addresses. Raises: OSError for an unknown name."""
        if host not in self.known:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [
            ResolveResult(hostname=host, host=each, port=port, family=family, proto=0, flags=0)
            for each in self.known[host]
        ]

    async def close(self) -> None:
        """Nothing is open."""


@dataclass
class Wire:
    """Lies between a client and a database on loopback; ``on_upward`` is told of all bytes upwards before they go on."""

    port: int = 0
    connections: int = 0
    upward: bytearray = field(default_factory=bytearray)
    on_upward: Callable[[Wire], None] = lambda wire: None
    is_deaf: bool = False
    """Nothing goes down any more."""
    open_ones: list[asyncio.StreamWriter] = field(default_factory=list)
    at_work: set[asyncio.Task[None]] = field(default_factory=set)

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, is_upward: bool) -> None:
        """Hand on what is read, until one side ends."""
        while data := await reader.read(65_536):
            if is_upward:
                self.upward += data
                self.on_upward(self)
            elif self.is_deaf:
                self.cut()
                return
            writer.write(data)
            await writer.drain()

    def cut(self) -> None:
        """End what goes through it."""
        for each in self.open_ones:
            each.transport.abort()
        self.open_ones.clear()


@contextlib.asynccontextmanager
async def wire(to_port: int) -> AsyncIterator[Wire]:
    """Give one to a port of the loopback for the block."""
    made = Wire()

    async def both(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        note_task(made.at_work)
        made.connections += 1
        try:
            server_reader, server_writer = await asyncio.open_connection("127.0.0.1", to_port)
        except OSError:
            writer.transport.abort()
            return
        made.open_ones += [writer, server_writer]
        ways = (made.carry(reader, server_writer, True), made.carry(server_reader, writer, False))
        tasks = [asyncio.create_task(each) for each in ways]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for each in (writer, server_writer):
            each.transport.abort()

    server = await asyncio.start_server(both, "127.0.0.1", 0)
    made.port = server.sockets[0].getsockname()[1]
    try:
        yield made
    finally:
        server.close()
        made.cut()
        if made.at_work:
            await asyncio.wait(made.at_work)


def note_task(tasks: set[asyncio.Task[None]]) -> None:
    """Keep the task that calls among those that are waited for at the end."""
    task = asyncio.current_task()
    assert task is not None
    tasks.add(task)


def certificate(name: str) -> tuple[str, str]:
    """Return a new authority's PEM, and a key and certificate from it for the name."""
    authority_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a customer's authority")])
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    authority = (
        _builder(issuer, issuer, authority_key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(authority_key, hashes.SHA256())
    )
    made = (
        _builder(subject, issuer, key.public_key())
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return authority.public_bytes(pem).decode(), (private + made.public_bytes(pem)).decode()


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    begin = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
    return (
        x509.CertificateBuilder(subject_name=subject, issuer_name=issuer, public_key=key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(begin + datetime.timedelta(days=36_500))
    )


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _user() -> str | None:
    return USER if os.geteuid() == 0 else None
