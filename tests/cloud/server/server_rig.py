"""A server on a real port with real TLS, and small clients for it."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from tests.cloud.server.server_world import LIMIT_S, Reply, StandInAgents, wiring
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from pileus.server.run import ServerSettings, Started, serve


@dataclass
class Rig:
    """A server that answers, and the folder it lives in."""

    started: Started
    agents: StandInAgents
    folder: Path
    key: str

    def trust(self, certificate: Path | None = None) -> ssl.SSLContext:
        """Return a client's context that trusts the cluster only, showing the PEM file ``certificate`` if given."""
        context = ssl.create_default_context(cadata=self.started.ca)
        if certificate is not None:
            context.load_cert_chain(certificate)
        return context

    async def __call__(
        self,
        method: str,
        path: str,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        context: ssl.SSLContext | None = None,
    ) -> Reply:
        """Send one request on a connection of its own, as the operator unless ``headers`` say otherwise."""
        content = body if isinstance(body, bytes) else b"" if body is None else msgspec.json.encode(body)
        given = {
            "host": f"127.0.0.1:{self.started.port}",
            "authorization": f"Bearer {self.key}",
            "content-length": str(len(content)),
            "connection": "close",
            **(headers or {}),
        }
        head = "".join(f"{name}: {value}\r\n" for name, value in given.items())
        raw = await self.raw(f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode() + content, context)
        return parsed(raw)

    async def raw(self, sent: bytes, context: ssl.SSLContext | None = None) -> bytes:
        """Send bytes and return what comes until the server closes."""
        async with asyncio.timeout(LIMIT_S), self.connection(context) as (reader, writer):
            writer.write(sent)
            await writer.drain()
            return await reader.read()

    @contextlib.asynccontextmanager
    async def connection(
        self, context: ssl.SSLContext | None = None
    ) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        """Have a connection for the block."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.started.port, ssl=context or self.trust())
        try:
            yield reader, writer
        finally:
            writer.close()
            with contextlib.suppress(OSError, ssl.SSLError):
                await writer.wait_closed()

    async def host(self, name: str) -> str:
        """Make a host; return its id."""
        made = await self("POST", "/v1/infra.host", {"name": name, "desired": {}})
        assert made.status == 201, made.body
        return str(made.json["id"])

    async def gone(self, kind: str, id: str) -> None:
        """Wait until a resource is gone."""
        parts = self.started.parts
        async with asyncio.timeout(LIMIT_S):
            with parts.hub.watch(("kind", kind)) as changes:
                while await parts.store.row(id) is not None:
                    await changes.wait(1.0)

    async def joined(self, host: str, name: str = "agent") -> Path:
        """Join as the agent of ``host``; return a file with its certificate and key."""
        token = (await self("POST", f"/v1/infra.host/{host}/join-token")).json["token"]
        key, csr = request_for(name)
        answer = await self("POST", "/agent/v1/join", {"token": token, "csr": csr})
        assert answer.status == 200, answer.body
        path = self.folder / f"{name}-{host}.pem"
        path.write_text(key + answer.json["certificate"])
        return path


@contextlib.asynccontextmanager
async def running(folder: Path, **settings: Any) -> AsyncIterator[Rig]:
    """A server for the block; it must end gracefully in time."""
    loop = asyncio.get_running_loop()
    answering: asyncio.Future[Started] = loop.create_future()
    agents = StandInAgents()
    wanted = ServerSettings(data=folder / "data", **{"port": 0, **settings})
    task = asyncio.create_task(serve(wanted, answering.set_result, wiring(agents)))
    waiting: set[asyncio.Future[Any]] = {task, answering}
    await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        await task
    started = answering.result()
    try:
        yield Rig(started, agents, folder, started.operator_key or "")
    finally:
        started.stop()
        async with asyncio.timeout(3):
            await task


async def refusal_of(connection: connect) -> tuple[int, str, str]:
    """Return status, code and message of a WebSocket that is not made."""
    with pytest.raises(InvalidStatus) as raised:
        async with connection:
            pass
    answer = raised.value.response
    problem = msgspec.json.decode(answer.body or b"{}")
    return answer.status_code, problem["code"], problem["detail"]


def request_for(name: str, key: Any = None) -> tuple[str, str]:
    """Return the PEM of a fresh key and of a certificate request for it."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    csr = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    return private_pem(key), csr.public_bytes(serialization.Encoding.PEM).decode()


def private_pem(key: Any) -> str:
    """Return the PEM of a private key."""
    text: bytes = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return text.decode()


def parsed(raw: bytes) -> Reply:
    """Return the answer of a closed HTTP/1.1 connection."""
    head, _, body = raw.partition(b"\r\n\r\n")
    lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:])}
    return Reply(int(lines[0].split(" ")[1]) if lines[0] else 0, headers, body)
