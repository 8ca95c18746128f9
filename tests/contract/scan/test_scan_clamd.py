"""Our side of clamd's protocol: against a socket that speaks it, also badly, and against a real clamd where there is one."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from pileus.scan.clamd import STREAM_BYTES_MAX, NoClamd, version
from pileus.scan.engines import Session, Sighting, Stopped

SIGNATURE = b"a text that only this test calls malicious"
WAIT_S = 60.0
UNPACKED = Path(sys.prefix) / "clamd" / "usr" / "sbin"
"""Where tools/setup puts it."""


@contextmanager
def answering(path: Path, answer: bytes) -> Iterator[Future[bytes]]:
    """Give a socket where somebody hears what comes up to the first zero byte, answers so, and hears the rest."""

    def speak(listener: socket.socket) -> bytes:
        with listener.accept()[0] as asker:
            heard = b""
            while b"\0" not in heard:
                heard += asker.recv(1)
            asker.sendall(answer)
            asker.shutdown(socket.SHUT_WR)
            while more := asker.recv(1 << 16):
                heard += more
            return heard

    with socket.socket(socket.AF_UNIX) as listener, ThreadPoolExecutor(1) as thread:
        listener.bind(str(path))
        listener.listen()
        yield thread.submit(speak, listener)


@contextmanager
def session(path: Path) -> Iterator[Session]:
    with socket.socket(socket.AF_UNIX) as asked:
        asked.connect(str(path))
        yield Session(asked)


def real(folder: Path, signature: bytes = SIGNATURE) -> Iterator[Path]:
    """Run a clamd that knows one text; give its socket once it answers."""
    program = shutil.which("clamd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:{UNPACKED}")
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
    with socket.socket(socket.AF_UNIX) as asked:
        asked.settimeout(1.0)
        try:
            asked.connect(str(path))
            asked.sendall(b"zPING\0")
            return asked.recv(5) == b"PONG\0"
        except OSError:
            return False


def test_a_real_one_says_what_it_is_and_finds_what_it_knows_again_and_again(tmp_path: Path) -> None:
    for path in real(tmp_path):
        assert asyncio.run(version(path, WAIT_S)).startswith("ClamAV 1.")
        with session(path) as asked:
            content = b"x" * 300_000 + SIGNATURE + b"x" * 300_000
            assert asked.look(content, WAIT_S) == [Sighting("Test.Text.UNOFFICIAL", length=len(content))]
            assert asked.look(b"x" * STREAM_BYTES_MAX, WAIT_S) == []
            assert asked.look(b"", WAIT_S) == []


def test_what_is_sent_is_the_content_in_pieces_with_their_lengths(tmp_path: Path) -> None:
    with answering(tmp_path / "clamd.sock", b"1: stream: OK\0") as heard:
        with session(tmp_path / "clamd.sock") as asked:
            assert asked.look(b"x" * 200_000, WAIT_S) == []
        sent = heard.result(WAIT_S).removeprefix(b"zIDSESSION\0zINSTREAM\0")
    first, rest = 128 * 1024, 200_000 - 128 * 1024
    pieces = struct.pack(">I", first) + b"x" * first + struct.pack(">I", rest) + b"x" * rest
    assert sent == pieces + struct.pack(">I", 0)


BAD: dict[str, bytes] = {
    "nothing": b"",
    "no end": b"1: stream: OK",
    "another word": b"1: stream: PERHAPS\0",
    "an error": b"1: stream: Can't allocate memory ERROR\0",
    "an answer without end": b"1: stream: " + b"x" * 10_000,
    "a clean word amid others": b"1: stream: OK stream: X\0",
}


@pytest.mark.parametrize("case", BAD)
def test_any_other_answer_says_nothing_of_the_content(tmp_path: Path, case: str) -> None:
    with answering(tmp_path / "clamd.sock", BAD[case]), session(tmp_path / "clamd.sock") as asked:
        with pytest.raises(Stopped) as stopped:
            asked.look(b"content", WAIT_S)
        assert stopped.value.reason == "NoAnswer"


def test_a_daemon_that_says_nothing_is_not_waited_for(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as mute:
        mute.bind(str(tmp_path / "clamd.sock"))
        mute.listen()
        with session(tmp_path / "clamd.sock") as asked, pytest.raises(Stopped, match="longer than it may"):
            asked.look(b"content", 0.2)
        with pytest.raises(NoClamd, match="did not answer within"):
            asyncio.run(version(tmp_path / "clamd.sock", 0.2))


@pytest.mark.parametrize("answer", [b"ClamAV 1.4.6", b"nginx\0", b"", b"\xff\x1b[2J\0"])
def test_what_answers_otherwise_is_no_clamd(tmp_path: Path, answer: bytes) -> None:
    with answering(tmp_path / "clamd.sock", answer), pytest.raises(NoClamd) as refused:
        asyncio.run(version(tmp_path / "clamd.sock", WAIT_S))
    assert "\x1b" not in str(refused.value)


def test_its_version_is_taken_as_it_says_it(tmp_path: Path) -> None:
    with answering(tmp_path / "clamd.sock", b"ClamAV 1.4.6/27000/Sat\0") as heard:
        assert asyncio.run(version(tmp_path / "clamd.sock", WAIT_S)) == "ClamAV 1.4.6/27000/Sat"
        assert heard.result(WAIT_S) == b"zVERSION\0"
    with pytest.raises(NoClamd, match="cannot be asked"):
        asyncio.run(version(tmp_path / "nowhere", WAIT_S))


def test_a_name_of_a_signature_is_made_harmless(tmp_path: Path) -> None:
    answer = b"1: stream: \x1b[2JBad FOUND\0"
    with answering(tmp_path / "clamd.sock", answer), session(tmp_path / "clamd.sock") as asked:
        assert [one.rule for one in asked.look(b"x", WAIT_S)] == ["\\x1b[2JBad"]
