"""Our side of clamd's protocol: against a socket that speaks it, also badly, and against a real clamd where there is one."""

from __future__ import annotations

import asyncio
import os
import shutil
import struct
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from pileus.scan import clamd as client
from pileus.scan.clamd import STREAM_BYTES_MAX, Clamd, NoClamd

pytestmark = pytest.mark.anyio

SIGNATURE = b"a text that only this test calls malicious"
WAIT_S = 60.0


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def pieces(*content: bytes) -> AsyncIterator[bytes]:
    for piece in content:
        yield piece


Answerer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def listening(tmp_path: Path, answer: Answerer) -> AsyncIterator[Clamd]:
    """Give a client of a daemon that answers so."""
    server = await asyncio.start_unix_server(answer, tmp_path / "clamd.sock")
    try:
        yield Clamd(tmp_path / "clamd.sock", timeout_s=WAIT_S)
    finally:
        server.close()


async def spoken(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Speak as clamd(8) says, with one signature."""
    command = await reader.readuntil(b"\0")
    answers = {b"zPING\0": b"PONG\0", b"zVERSION\0": b"ClamAV 1.4.6\0"}
    if command == b"zINSTREAM\0":
        content = bytearray()
        while length := struct.unpack(">I", await reader.readexactly(4))[0]:
            content += await reader.readexactly(length)
        writer.write(b"stream: Test.Text.UNOFFICIAL FOUND\0" if SIGNATURE in content else b"stream: OK\0")
    else:
        writer.write(answers[command])
    await writer.drain()
    writer.close()


@pytest.fixture(params=["spoken", "real"])
async def daemon(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Clamd]:
    """A daemon with one signature: one of ours, and a real one."""
    if request.param == "spoken":
        async with listening(tmp_path, spoken) as clamd:
            yield clamd
        return
    for path in real(tmp_path):
        yield Clamd(path, timeout_s=WAIT_S)


def real(folder: Path, signature: bytes = SIGNATURE) -> Iterator[Path]:
    """Run a clamd that knows one text; give its socket once it answers."""
    program = shutil.which("clamd", path=os.environ.get("PATH", "") + ":/usr/sbin")
    if program is None:
        pytest.skip("clamd is not installed")
    (folder / "db").mkdir()
    (folder / "db" / "test.ndb").write_text(f"Test.Text:0:*:{signature.hex()}\n")
    (folder / "clamd.conf").write_text(
        f"LocalSocket {folder}/clamd.sock\nDatabaseDirectory {folder}/db\nForeground yes\nStreamMaxLength 25M\n"
        f"User {'root' if os.geteuid() == 0 else os.environ.get('USER', '')}\n"
    )
    child = subprocess.Popen([program, "-c", folder / "clamd.conf"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        until = time.monotonic() + WAIT_S
        while not answers(folder / "clamd.sock"):
            assert child.poll() is None, child.communicate()[0]
            assert time.monotonic() < until
        yield folder / "clamd.sock"
    finally:
        child.kill()
        child.communicate()


def answers(path: Path) -> bool:
    import socket

    with socket.socket(socket.AF_UNIX) as asked:
        asked.settimeout(1.0)
        try:
            asked.connect(str(path))
            asked.sendall(b"zPING\0")
            return asked.recv(5) == b"PONG\0"
        except OSError:
            return False


async def test_it_lives_and_says_what_it_is(daemon: Clamd) -> None:
    await daemon.ping()
    assert (await daemon.version()).startswith("ClamAV 1.")


async def test_a_signature_is_found_in_a_stream_wherever_it_is_cut(daemon: Clamd) -> None:
    filler = b"x" * 300_000
    report = await daemon.scan(pieces(filler, SIGNATURE[:10], SIGNATURE[10:], filler))
    assert report.state == "found"
    assert [(one.rule, one.where) for one in report.findings] == [("Test.Text.UNOFFICIAL", "stream")]
    assert report.scanned_bytes == 600_000 + len(SIGNATURE)
    clean = await daemon.scan(pieces(filler))
    assert (clean.state, clean.scanned_bytes) == ("clean", 300_000)
    assert (await daemon.scan(pieces())).state == "clean"


async def test_more_than_is_sent_is_unknown(daemon: Clamd) -> None:
    much = [b"x" * 1024 * 1024] * (STREAM_BYTES_MAX // 1024**2 + 1)
    report = await daemon.scan(pieces(*much))
    assert (report.state, report.reason) == ("unknown", "TooLarge")
    report = await daemon.scan(pieces(SIGNATURE, *much))
    assert (report.state, report.reason) == ("found", "TooLarge")


async def test_a_smaller_limit_of_its_own_is_heard_while_sending(tmp_path: Path) -> None:
    async def full(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(100_000)
        writer.write(b"INSTREAM size limit exceeded. ERROR\0")
        await writer.drain()
        writer.close()

    async with listening(tmp_path, full) as clamd:
        report = await clamd.scan(pieces(*[b"x" * 1024 * 1024] * 20))
    assert (report.state, report.reason) == ("unknown", "TooLarge")


BAD: dict[str, bytes] = {
    "nothing": b"",
    "no end": b"stream: OK",
    "another word": b"stream: PERHAPS\0",
    "an error": b"stream: Can't allocate memory ERROR\0",
    "an answer without end": b"stream: " + b"x" * 10_000,
    "a clean word amid others": b"stream: OK stream: X\0",
}


@pytest.mark.parametrize("case", BAD)
async def test_any_other_answer_is_unknown(tmp_path: Path, case: str) -> None:
    async def bad(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"zINSTREAM\0")
        writer.write(BAD[case])
        await writer.drain()
        writer.close()

    async with listening(tmp_path, bad) as clamd:
        report = await clamd.scan(pieces(b"content"))
    assert (report.state, report.reason) == ("unknown", "NoAnswer")


async def test_a_daemon_that_says_nothing_is_not_waited_for(tmp_path: Path) -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async with listening(tmp_path, silent):
        clamd = Clamd(tmp_path / "clamd.sock", timeout_s=0.2)
        report = await clamd.scan(pieces(b"content"))
        assert (report.state, report.reason) == ("unknown", "NoAnswer")
        with pytest.raises(NoClamd):
            await clamd.ping()


async def test_no_daemon_is_unknown_too(tmp_path: Path) -> None:
    clamd = Clamd(tmp_path / "nowhere")
    with pytest.raises(NoClamd):
        await clamd.version()
    assert (await clamd.scan(pieces(b"x"))).state == "unknown"


async def test_a_name_of_a_signature_is_made_harmless(tmp_path: Path) -> None:
    async def rude(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"zINSTREAM\0")
        writer.write(b"stream: \x1b[2JBad FOUND\0")
        await writer.drain()
        writer.close()

    async with listening(tmp_path, rude) as clamd:
        report = await clamd.scan(pieces(b"x"))
    assert report.findings[0].rule == "\\x1b[2JBad"
    assert client.ANSWER_BYTES_MAX < 10_000
