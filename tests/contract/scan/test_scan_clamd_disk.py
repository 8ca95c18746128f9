"""Disks that a ClamAV daemon looks at through the jail: one that speaks as clamd does, and a real one where there is one."""

from __future__ import annotations

import asyncio
import os
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.contract.scan.test_scan_clamd import SIGNATURE, real
from tests.contract.scan.test_scan_jail import LONG, MIB, WAIT_S, sh

from pileus.scan.disk import Layer, Limits, scan_disk

if TYPE_CHECKING:
    from pileus.scan.report import Report

pytestmark = pytest.mark.anyio

Answerer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def listening(path: Path, answer: Answerer) -> AsyncIterator[Path]:
    """Give the socket of a daemon that answers so."""
    server = await asyncio.start_unix_server(answer, path)
    try:
        yield path
    finally:
        server.close()


async def spoken(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Speak as clamd(8) says of a session, with one signature."""
    assert await reader.readuntil(b"\0") == b"zIDSESSION\0"
    number = 0
    try:
        while True:
            assert await reader.readuntil(b"\0") == b"zINSTREAM\0"
            content = bytearray()
            while length := struct.unpack(">I", await reader.readexactly(4))[0]:
                content += await reader.readexactly(length)
            number += 1
            said = b"Test.Text.UNOFFICIAL FOUND" if SIGNATURE in content else b"OK"
            writer.write(b"%d: stream: %s\0" % (number, said))
            await writer.drain()
    except asyncio.IncompleteReadError:
        writer.close()


@pytest.fixture(params=["spoken", "real"])
async def daemon(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Path]:
    """A daemon with one signature: one of ours, and a real one."""
    if request.param == "spoken":
        async with listening(tmp_path / "clamd.sock", spoken) as path:
            yield path
        return
    for path in real(tmp_path):
        yield path


async def scanned(folder: Path, daemon: Path, limits: Limits = LONG) -> Report:
    report = await scan_disk([Layer(str(folder / "disk"), "raw")], daemon, scratch=folder / "scratch", limits=limits)
    assert os.listdir(folder / "scratch") == []
    return report


def partitioned(folder: Path, *, in_file: bytes = b"", in_bytes: bytes = b"", large_mib: int = 1) -> None:
    """Make ``disk``: a partition that no reader knows, and one of ext4 with files."""
    (folder / "tree").mkdir()
    (folder / "tree" / "large").write_bytes(os.urandom(large_mib * MIB) + in_file)
    (folder / "tree" / "small").write_bytes(b"text")
    sh("mke2fs -q -F -t ext4 -d tree part 64M; truncate -s 70M disk", folder)
    entries = struct.pack("<B3xB3xII", 0, 0x0E, 2048, 2048) + struct.pack("<B3xB3xII", 0, 0x83, 4096, 131072)
    with (folder / "disk").open("r+b") as disk:
        disk.seek(446)
        disk.write(entries.ljust(64, b"\0") + b"\x55\xaa")
        disk.seek(2048 * 512 + 1000)
        disk.write(in_bytes)
    sh("dd if=part of=disk bs=1M seek=2 conv=notrunc,sparse status=none", folder)


async def test_what_it_knows_is_found_in_files_and_where_no_file_can_be_read(folder: Path, daemon: Path) -> None:
    # More than is sent at once: it goes in pieces.
    partitioned(folder, in_file=SIGNATURE, in_bytes=SIGNATURE, large_mib=40)
    report = await scanned(folder, daemon)
    assert (report.state, report.reason, report.files) == ("found", "", 2)
    found = [(one.rule, one.where, one.path, one.partition) for one in report.findings]
    assert found == [("Test.Text.UNOFFICIAL", "disk", "", 1), ("Test.Text.UNOFFICIAL", "file", "/large", 2)]


async def test_a_disk_without_it_is_clean(folder: Path, daemon: Path) -> None:
    partitioned(folder)
    report = await scanned(folder, daemon)
    assert (report.state, report.reason, report.files) == ("clean", "", 2)


async def dies(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readexactly(100_000)
    writer.close()


async def is_full(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readexactly(100_000)
    writer.write(b"INSTREAM size limit exceeded. ERROR\0")
    await writer.drain()
    writer.close()


async def lies(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readexactly(100_000)
    writer.write(b"1: stream: OK 2: \x1b[2JOK\0")
    await writer.drain()
    await reader.read()
    writer.close()


async def is_mute(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while await reader.read(1 << 20):
        pass
    writer.close()


@pytest.mark.parametrize(
    ("answer", "reason"), [(dies, "NoAnswer"), (is_full, "TooLarge"), (lies, "NoAnswer"), (is_mute, "TimedOut")]
)
async def test_a_daemon_that_does_not_answer_well_leaves_it_unknown(
    folder: Path, answer: Answerer, reason: str
) -> None:
    partitioned(folder)
    limits = Limits(time_s=1.0 if answer is is_mute else WAIT_S)
    async with listening(folder / "clamd.sock", answer) as path:
        report = await scanned(folder, path, limits)
    assert (report.state, report.reason) == ("unknown", reason)
    assert "\x1b" not in report.message


async def test_no_daemon_is_unknown(folder: Path) -> None:
    partitioned(folder)
    report = await scanned(folder, folder / "nowhere")
    assert (report.state, report.reason) == ("unknown", "NoClamd")
