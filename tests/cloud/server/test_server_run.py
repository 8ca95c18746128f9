"""The server as a process: starts, refuses to start, withstands bad peers, ends."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import ssl
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.cloud.server.server_rig import Rig, running
from tests.cloud.server.server_world import LIMIT_S
from websockets.asyncio.client import connect

from pileus.kernel.errors import Rejected
from pileus.server import tls

pytestmark = pytest.mark.anyio


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    """A server with real TLS."""
    async with running(tmp_path) as it:
        yield it


async def test_the_command_serves_until_sigterm_and_then_ends_in_time(tmp_path: Path) -> None:
    data = tmp_path / "data"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", "from pileus.cli.main import main; main()", "server", "--data", str(data), "--port", "0",
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    async with asyncio.timeout(LIMIT_S):
        said = [(await process.stdout.readline()).decode().rstrip() for _ in range(3)]
    port = int(said[0].rpartition(":")[2])
    key = (data / "operator-key").read_text().strip()
    context = ssl.create_default_context(cafile=data / "tls/ca.crt")
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    head = f"GET /v1/compute.offering?watch=1 HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\n\r\n"
    writer.write(head.encode())
    async with asyncio.timeout(LIMIT_S):
        assert b"200 OK" in await reader.readuntil(b"\r\n\r\n")
        assert b"synced" in await reader.readuntil(b"\n\n")
    asked = time.monotonic()
    process.send_signal(signal.SIGTERM)
    async with asyncio.timeout(LIMIT_S):
        assert (await reader.read()).endswith(b"0\r\n\r\n")
        out, err = await process.communicate()
    assert process.returncode == 0
    assert time.monotonic() - asked < 3
    writer.close()
    with contextlib.suppress(OSError, ssl.SSLError):
        await writer.wait_closed()
    assert key not in "\n".join(said) + out.decode() + err.decode()
    assert all("event" in json.loads(line) for line in err.decode().splitlines())
    assert {path.name: path.stat().st_mode & 0o777 for path in (data / "operator-key", data / "pileus.db")} == {
        "operator-key": 0o600,
        "pileus.db": 0o600,
    }
    assert (data / "tls/server.pem").stat().st_mode & 0o777 == 0o600
    assert data.stat().st_mode & 0o777 == 0o700


async def test_open_streams_do_not_delay_the_end(tmp_path: Path) -> None:
    async with running(tmp_path) as rig:
        certificate = await rig.joined(await rig.host("h1"))
        url = f"wss://127.0.0.1:{rig.started.port}/agent/v1/stream"
        socket_ = await connect(url, ssl=rig.trust(certificate), proxy=None)
        await socket_.send(b"x")
        assert await socket_.recv() == b"x"
        started = time.monotonic()
        rig.started.stop()
        async with asyncio.timeout(3):
            await socket_.wait_closed()
        assert time.monotonic() - started < 3


async def test_a_second_start_keeps_authority_and_administrator(tmp_path: Path) -> None:
    async with running(tmp_path) as first:
        key, ca = first.key, first.started.ca
        certificate = await first.joined(await first.host("h1"))
        server = (tmp_path / "data/tls/server.pem").read_bytes()
    async with running(tmp_path) as second:
        assert second.started.operator_key is None
        assert second.started.ca == ca
        assert (tmp_path / "data/tls/server.pem").read_bytes() == server
        answer = await second("GET", "/v1/whoami", headers={"authorization": f"Bearer {key}"})
        assert answer.json["user"] == "admin"
        url = f"wss://127.0.0.1:{second.started.port}/agent/v1/stream"
        async with connect(url, ssl=second.trust(certificate), proxy=None):
            pass
    async with running(tmp_path, tls_names=("cloud.example", "192.0.2.1")) as third:
        assert (tmp_path / "data/tls/server.pem").read_bytes() != server
        context = third.trust()
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", third.started.port, ssl=context, server_hostname="cloud.example"
        )
        writer.close()
        await writer.wait_closed()
        del reader


async def test_a_second_server_on_the_same_folder_is_refused(rig: Rig) -> None:
    with pytest.raises(Rejected, match="another pileus server uses") as raised:
        async with running(rig.folder):
            pass
    assert raised.value.code == "in-use"
    assert (await rig("GET", "/healthz")).status == 200


async def test_a_port_in_use_is_named_with_the_flag(rig: Rig, tmp_path: Path) -> None:
    with pytest.raises(Rejected, match=rf"port {rig.started.port} .* --port") as raised:
        async with running(tmp_path / "other", port=rig.started.port):
            pass
    assert raised.value.code == "port-in-use"
    assert not (tmp_path / "other/data/pileus.db").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"host": "192.0.2.1"}, "cannot listen on 192.0.2.1"),
        ({"host": "no such host"}, "cannot listen on"),
        ({"database": "mysql://x"}, "--database takes"),
    ],
)
async def test_bad_settings_are_refused_with_the_flag(tmp_path: Path, settings: dict[str, str], message: str) -> None:
    with pytest.raises(Rejected, match=message):
        async with running(tmp_path, **settings):
            pass


async def test_a_data_folder_that_cannot_be_used_is_told(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file")
    with pytest.raises(Rejected, match="--data"):
        async with running(tmp_path):
            pass


async def test_a_peer_that_never_finishes_its_head_is_let_go(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tls, "HEAD_S", 0.2)
    for sent in (b"", b"\r\n", b"GET / HTT", b"GET / HTTP/1.1\r\nhost: x\r\nx: y"):
        assert await rig.raw(sent) == b"", sent


async def test_a_head_without_end_is_refused_and_held_in_bounds(rig: Rig) -> None:
    for sent in (
        b"GET / HTTP/1.1\r\nx: " + b"y" * 200_000,
        b"GET / HTTP/1.1\r\n" + b"".join(b"x%d: y\r\n" % number for number in range(20_000)),
        b"GET /" + b"y" * 200_000,
    ):
        answer = await _raw_or_cut(rig, sent)
        assert answer == b"" or answer.startswith(b"HTTP/1.1 400"), answer[:100]
    assert (await rig("GET", "/healthz")).status == 200


async def test_nonsense_on_the_port_is_refused_and_logged_by_nobody(
    rig: Rig, capfd: pytest.CaptureFixture[str]
) -> None:
    for sent in (b"\x00\x01\x02" * 100, b"SSH-2.0-x\r\n", b"GET / HTTP/9.9\r\n\r\n"):
        assert (await _raw_or_cut(rig, sent)).startswith((b"HTTP/1.1 400", b"HTTP/1.1 404"))
    reader, writer = await asyncio.open_connection("127.0.0.1", rig.started.port)
    writer.write(b"GET / HTTP/1.1\r\n\r\n")
    with contextlib.suppress(ConnectionError):
        await reader.read()
    writer.close()
    assert (await rig("GET", "/healthz")).status == 200
    assert "Traceback" not in capfd.readouterr().err


async def test_an_early_refusal_of_a_long_body_reaches_the_caller(rig: Rig) -> None:
    body = b"x" * 3_000_000
    answer = await rig("POST", "/v1/network.network", body, {"authorization": "Bearer nonsense"})
    assert answer.status == 401
    refused = await rig("POST", "/v1/network.network?account=x", body)
    assert refused.status == 413


async def test_a_flood_without_identity_stays_cheap(rig: Rig) -> None:
    number = 3_000
    before_kib = _resident_kib()
    cpu_s = time.process_time()
    async with rig.connection() as (reader, writer):
        for _ in range(number // 50):
            writer.write(
                b"GET /v1/compute.vm HTTP/1.1\r\nhost: x\r\nauthorization: Bearer pil_%b\r\n\r\n" % (b"A" * 40) * 50
            )
            await writer.drain()
            for _ in range(50):
                head = await reader.readuntil(b"\r\n\r\n")
                assert head.startswith(b"HTTP/1.1 401")
                await reader.readexactly(int(head.lower().partition(b"content-length: ")[2].partition(b"\r")[0]))
    each_us = (time.process_time() - cpu_s) / number * 1e6
    grown_kib = _resident_kib() - before_kib
    print(f"refused requests: {number}, {each_us:.0f} us of CPU each (client included), {grown_kib} KiB more memory")
    assert each_us < 2_000
    assert grown_kib < 20_000


async def test_connections_that_say_nothing_do_not_keep_others_out(rig: Rig) -> None:
    idle = [socket.create_connection(("127.0.0.1", rig.started.port)) for _ in range(300)]
    try:
        assert (await rig("GET", "/healthz")).status == 200
    finally:
        for one in idle:
            one.close()


async def _raw_or_cut(rig: Rig, sent: bytes) -> bytes:
    """Return the answer; empty when the connection was cut while the request was still being sent."""
    try:
        return await rig.raw(sent)
    except (ConnectionError, ssl.SSLError):
        return b""


def _resident_kib() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") // 1024
