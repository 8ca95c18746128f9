"""Commands that go on: watches, followed events and logs, the console, interrupted and cut off."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import msgspec
import pytest

from pileus.cli import contexts
from pileus.cli.failure import BROKEN_PIPE, BUG, INTERRUPTED, NOT_FOUND, OK, USAGE

if TYPE_CHECKING:
    from tests.cloud.cli.cli_world import Cloud
    from tests.cloud.cli.cli_world import cloud as another_cloud
    from tests.cloud.cli.conftest import Run
else:
    from cli_world import cloud as another_cloud

    Cloud = Run = Any

LIMIT_S = 60.0
COMMAND = (sys.executable, "-m", "pileus.cli.main")


@contextlib.contextmanager
def running(*arguments: str, **how: Any) -> Iterator[subprocess.Popen[bytes]]:
    """Run ``pileus`` as a process of its own for the block; it is ended at the end of it."""
    out, stdin = how.get("stdout", subprocess.PIPE), how.get("stdin", subprocess.DEVNULL)
    with subprocess.Popen([*COMMAND, *arguments], stdout=out, stderr=subprocess.PIPE, stdin=stdin) as child:
        try:
            yield child
        finally:
            if child.poll() is None:
                child.kill()


def line(stream: IO[bytes] | None, containing: str) -> str:
    """Return the next line with this text; fails when none comes in time."""
    assert stream is not None
    until = time.monotonic() + LIMIT_S
    seen = b""
    while time.monotonic() < until:
        if select.select([stream], [], [], 1.0)[0]:
            part = os.read(stream.fileno(), 1)
            if not part:
                break
            seen += part
            last = seen.decode(errors="replace").rsplit("\n", 2)
            if part == b"\n" and containing in last[-2]:
                return last[-2]
    raise AssertionError(f"no line with {containing!r} in {seen.decode(errors='replace')!r}")


def test_a_watch_shows_each_change_and_ends_quietly_at_ctrl_c(pileus: Run, account: str) -> None:
    assert pileus("create", "vm", "first", "--account", account, "--wait").code == OK
    with running("get", "vm", "--account", account, "--watch") as child:
        assert line(child.stdout, "NAME").split()[0] == "NAME"
        assert "running" in line(child.stdout, "first")
        assert pileus("create", "vm", "second", "--account", account).code == OK
        assert "running" in line(child.stdout, "second   running")
        assert pileus("delete", "vm", "first", "--account", account).code == OK
        assert "gone" in line(child.stdout, "gone")
        child.send_signal(signal.SIGINT)
        _, err = child.communicate(timeout=LIMIT_S)
        assert (child.returncode, err.strip()) == (INTERRUPTED, b"")


def test_a_watch_for_programs_is_json_line_by_line(pileus: Run, account: str) -> None:
    with running("get", "network", "--account", account, "-w", "-o", "json") as child:
        assert msgspec.json.decode(line(child.stdout, "default"))["name"] == "default"
        assert pileus("create", "network", "two", "--account", account, "--range", "10.2.0.0/24").code == OK
        assert msgspec.json.decode(line(child.stdout, '"two"'))["desired"]["range"] == "10.2.0.0/24"
        assert pileus("delete", "network", "two", "--account", account).code == OK
        assert msgspec.json.decode(line(child.stdout, '"gone"'))["gone"] is True


def test_followed_events_come_as_they_happen(pileus: Run, account: str) -> None:
    with running("events", "--account", account, "--follow") as child:
        assert "network default" in line(child.stdout, "network default")
        assert pileus("create", "network", "two", "--account", account, "--range", "10.2.0.0/24").code == OK
        assert "network two" in line(child.stdout, "network two")


def test_a_followed_log_is_printed_as_it_grows(pileus: Run, account: str, cloud: Cloud) -> None:
    assert pileus("create", "vm", "web", "--account", account, "--wait").code == OK
    there = pileus("get", "vm", "web", "--account", account, "-o", "json").json["id"]
    cloud.hosts.logs[there] = b"one\n"
    with running("logs", "vm", "web", "--account", account, "-f") as child:
        assert line(child.stdout, "one") == "one"
        cloud.hosts.logs[there] += b"two\nthree\n"
        assert line(child.stdout, "three") == "three"
        child.send_signal(signal.SIGINT)
        out, _ = child.communicate(timeout=LIMIT_S)
        assert out == b""


def test_the_console_needs_a_terminal_and_says_what_prints_the_log(pileus: Run, account: str) -> None:
    with running("console", "vm", "web", "--account", account) as child:
        out, err = child.communicate(timeout=LIMIT_S)
    assert (child.returncode, out) == (USAGE, b"")
    assert err.decode() == (
        f"error: console needs a terminal; `pileus logs vm web --account {account}` prints what was written\n"
    )


def test_a_wait_that_is_interrupted_says_that_it_goes_on(pileus: Run, account: str, cloud: Cloud) -> None:
    name = f"held-{account}"
    cloud.vms.held.add(name)
    with running("create", "vm", name, "--account", account, "--wait") as child:
        assert "NoHost" in line(child.stderr, "NoHost")
        child.send_signal(signal.SIGINT)
        out, err = child.communicate(timeout=LIMIT_S)
    assert (child.returncode, out) == (INTERRUPTED, b"")
    assert err.decode().endswith("stopped waiting; it goes on\n")
    cloud.vms.held.discard(name)
    assert pileus("wait", "vm", name, "--account", account).code == OK


@pytest.mark.parametrize("answer", ["y", "n"])
def test_on_a_terminal_deleting_an_account_asks_and_says_what_goes_with_it(
    pileus: Run, account: str, answer: str
) -> None:
    ours, theirs = pty.openpty()
    try:
        command = [*COMMAND, "delete", "account", account, "--wait"]
        with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs) as child:
            try:
                asked = read_until(ours, b"[y/N]")
                os.write(ours, answer.encode() + b"\r")
                code = child.wait(LIMIT_S)
            finally:
                if child.poll() is None:
                    child.kill()
    finally:
        os.close(ours)
        os.close(theirs)
    assert b"All its VMs, volumes and networks go with it" in asked
    there = pileus("get", "account", account).code
    assert (code, there) == ((OK, NOT_FOUND) if answer == "y" else (INTERRUPTED, OK))


def test_on_a_terminal_forgetting_a_context_asks(pileus: Run) -> None:
    ours, theirs = pty.openpty()
    try:
        with subprocess.Popen(
            [*COMMAND, "context", "delete", "local"], stdin=theirs, stdout=theirs, stderr=theirs
        ) as child:
            try:
                read_until(ours, b"Forget context local and its key?")
                os.write(ours, b"n\r")
                assert child.wait(LIMIT_S) == INTERRUPTED
            finally:
                if child.poll() is None:
                    child.kill()
    finally:
        os.close(ours)
        os.close(theirs)
    assert "local" in contexts.load().contexts
    assert pileus("context", "delete", "local").code == OK, "a script is not asked"
    assert "local" not in contexts.load().contexts


def test_the_console_on_a_terminal_is_left_with_its_escape_and_gives_the_terminal_back(
    pileus: Run, account: str
) -> None:
    assert pileus("create", "vm", "web", "--account", account, "--wait").code == OK
    ours, theirs = pty.openpty()
    try:
        with running("console", "vm", "web", "--account", account, stdin=theirs, stdout=theirs) as child:
            assert "ctrl-] leaves it" in line(child.stderr, "ctrl-]")
            os.write(ours, b"ls\r")
            assert read_until(ours, b"LS\r").count(b"ls") == 0, "the terminal echoed: it was not raw"
            os.write(ours, b"\x1d")
            assert child.wait(LIMIT_S) == OK
    finally:
        os.close(ours)
        os.close(theirs)


def read_until(descriptor: int, text: bytes) -> bytes:
    seen = b""
    until = time.monotonic() + LIMIT_S
    while text not in seen:
        assert time.monotonic() < until, seen
        if select.select([descriptor], [], [], 1.0)[0]:
            seen += os.read(descriptor, 1024)
    return seen


def test_a_wait_outlives_a_server_that_is_started_again(pileus: Run, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with another_cloud(tmp_path / "data", port) as cloud:
        operator = cloud.operator
        contexts.put("other", operator)
        cloud.vms.held.add("web")
        for arguments in (("zone", "local"), ("offering", "tiny", "--vcpus", "1", "--memory-mib", "64", "--disk-gib", "1"),
                          ("image", "tiny", "--format", "raw", "--file", __file__),
                          ("account", "acme"), ("vm", "web", "--account", "acme")):  # fmt: skip
            assert pileus("create", *arguments).code == OK
        child = stack_wait()
        assert "NoHost" in line(child.stderr, "NoHost")
    try:
        assert "trying again" in line(child.stderr, "trying again")
        with another_cloud(tmp_path / "data", port):
            out, err = child.communicate(timeout=LIMIT_S)
        assert (child.returncode, out) == (OK, b"vm web of account acme is ready\n"), err
    finally:
        if child.poll() is None:
            child.kill()
            child.communicate()


def stack_wait() -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [*COMMAND, "wait", "vm", "web", "--account", "acme", "--timeout", f"{LIMIT_S:g}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def test_a_reader_that_goes_away_is_no_error() -> None:
    with running("explain", "vm") as child:
        assert child.stdout is not None
        child.stdout.close()
        assert child.wait(LIMIT_S) == BROKEN_PIPE
        assert child.stderr is not None
        assert child.stderr.read() == b""


def test_a_bug_is_one_line_and_a_traceback_only_on_request() -> None:
    broken = "m.cli.callback = lambda **_: 1 / 0"
    program = f"import sys; from pileus.cli import main as m; {broken}; sys.exit(m.main(['get', 'vm']))"
    environment = {key: value for key, value in os.environ.items() if key != "PILEUS_DEBUG"}
    quiet = subprocess.run([sys.executable, "-c", program], capture_output=True, env=environment, check=False)
    assert quiet.returncode == BUG
    assert quiet.stderr.decode().splitlines()[0] == "error: a bug in pileus: ZeroDivisionError: division by zero"
    assert b"Traceback" not in quiet.stderr
    loud = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, env=environment | {"PILEUS_DEBUG": "1"}, check=False
    )
    assert b"Traceback" in loud.stderr


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("pileus des", {"describe"}),
        ("pileus get net", {"network"}),
        ("pileus get vm --account {account} we", {"web"}),
        ("pileus describe vm --account {account} ", {"web"}),
        ("pileus create vm x --account {account} --network d", {"default"}),
        ("pileus create vm x --power p", {"paused"}),
        ("pileus create n", {"network", "node"}),
        ("pileus explain vm.nics.ad", {"vm.nics.address"}),
        ("pileus get vm -o js", {"json", "jsonpath="}),
    ],
)
def test_the_shell_completes_verbs_kinds_flags_and_names(
    pileus: Run, account: str, words: str, offered: set[str]
) -> None:
    assert pileus("create", "vm", "web", "--account", account).code == OK
    text = words.format(account=account)
    environment = os.environ | {
        "_PILEUS_COMPLETE": "bash_complete",
        "COMP_WORDS": text,
        "COMP_CWORD": str(len(text.split(" ")) - 1),
    }
    done = subprocess.run(COMMAND, env=environment, capture_output=True, check=False)
    assert {row.partition(",")[2] for row in done.stdout.decode().splitlines()} == offered, done.stderr
