"""QEMU's guest agent as a backchannel: against the real program, and against programs that only pretend to be it."""

from __future__ import annotations

import asyncio
import base64
import json
import math
import os
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from pileus.drivers.host.errors import DriverError
from pileus.drivers.host.guest.base import GuestAnswer, GuestRequest, NodeFact
from pileus.drivers.host.guest.flood import Limits
from pileus.drivers.host.guest.qga import ANSWER_BYTES_MAX, GuestAgent, connect
from pileus.drivers.host.guest.qga_allowed import Allowed, Command
from pileus.drivers.host.guest.qga_channel import AgentChannel
from pileus.image.types import BuildError
from pileus.node.document import document_hash

if TYPE_CHECKING:
    from tests.contract.guest import qga_rigs
else:
    import qga_rigs

pytestmark = pytest.mark.anyio

SH = "/bin/sh"
BOOT_ID = Path("/proc/sys/kernel/random/boot_id").read_text().strip()


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def folder() -> Iterator[Path]:
    # Not pytest's folder: socket paths have a limit of 107 characters, and another user must reach it.
    made = Path(tempfile.mkdtemp(prefix="pileus-q-"))
    yield made
    shutil.rmtree(made)


@pytest.fixture(scope="module")
def program() -> Iterator[list[str]]:
    if not qga_rigs.has_setpriv():
        pytest.skip("the agent is kept from this machine by setpriv")
    with tempfile.TemporaryDirectory(prefix="pileus-qga-") as unpacked:
        Path(unpacked).chmod(0o755)
        try:
            yield qga_rigs.unpacked_agent(Path(unpacked))
        except BuildError as error:
            pytest.skip(f"the package qemu-guest-agent cannot be had: {error}")


def allowed(folder: Path) -> Allowed:
    log = folder / "log"
    waits = f"echo ran >> {log}; while [ ! -e {folder}/go ]; do sleep 0.1; done; echo counted"
    return Allowed(
        commands=(
            Command(name="count", path=SH, arguments=("-c", waits)),
            Command(name="again", path=SH, arguments=("-c", waits), repeatable=True),
            Command(name="say", path="/bin/echo", arguments=("{what}",), values={"what": "text"}),
            Command(name="pour", path=SH, arguments=("-c", "head -c 3000000 /dev/zero; echo bad >&2; exit 3")),
            Command(name="hang", path="/bin/sleep", arguments=("100",), timeout_s=1),
            Command(name="apply", path=SH, arguments=("-c", f"echo applied >> {log}; grep -q good {folder}/document")),
        ),
        files=(f"{folder}/rules", f"{folder}/big", f"{folder}/no/such/folder"),
        document=f"{folder}/document",
        apply="apply",
        state=f"{folder}/state",
    )


class Host:
    """Agents of a host that hold the channel of one machine, one after the other."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.changed = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    def attach(self, limits: Limits | None = None, package: Allowed | None = None) -> AgentChannel:
        """Be a new agent of the host."""
        socket = self.folder / "agent"
        package = package or allowed(self.folder)
        self.channel = AgentChannel("vm-1", socket, package, self.changed.set, limits or Limits())
        self._tasks.append(asyncio.create_task(self.channel.run()))
        return self.channel

    async def die(self) -> None:
        """End the host's agent."""
        for task in self._tasks:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        self._tasks = []

    async def until(self, wanted: Callable[[NodeFact], bool]) -> NodeFact:
        """Return the fact as soon as it is as ``wanted``."""
        async with asyncio.timeout(qga_rigs.LIMIT_S):
            while not wanted(self.channel.fact):
                self.changed.clear()
                await self.changed.wait()
        return self.channel.fact

    def log(self) -> list[str]:
        """What commands wrote of themselves."""
        file = self.folder / "log"
        return file.read_text().split() if file.exists() else []


@pytest.fixture
async def host(folder: Path) -> AsyncIterator[Host]:
    made = Host(folder)
    yield made
    await made.die()


@pytest.fixture
async def agent(program: list[str], folder: Path) -> AsyncIterator[qga_rigs.RealAgent]:
    made = qga_rigs.RealAgent(program, folder)
    await made.start()
    yield made
    await made.close()


def ready(fact: NodeFact) -> bool:
    return fact.state == "ready"


def run(command: str, **values: str) -> dict[str, Any]:
    return {"run": {"command": command, "values": values}}


def write(path: Path, content: bytes) -> dict[str, Any]:
    return {"write": {"path": str(path), "content_base64": base64.b64encode(content).decode()}}


def request(sequence: int, *steps: dict[str, Any]) -> GuestRequest:
    return GuestRequest(id=f"r{sequence}", sequence=sequence, deadline=math.inf, payload=json.dumps(steps).encode())


def steps(answer: GuestAnswer) -> list[dict[str, Any]]:
    assert answer.state in ("applied", "unknown"), answer
    found = json.loads(answer.answer)["steps"]
    assert isinstance(found, list)
    return found


async def test_files_are_written_whole_and_commands_tell_how_they_ended(
    agent: qga_rigs.RealAgent, host: Host, folder: Path
) -> None:
    channel = host.attach()
    fact = await host.until(ready)
    assert fact.version.startswith("7.")
    assert fact.boot_id == BOOT_ID
    (folder / "rules").write_bytes(b"old")
    os.chmod(folder / "rules", 0o640)
    if os.geteuid() == 0:
        os.chown(folder / "rules", qga_rigs.NOBODY, qga_rigs.NOBODY)
    big = os.urandom(1_000_000)
    what = "it's $(reboot); \"said\" 'so' `x` é"
    first = request(1, write(folder / "rules", b"new\0"), write(folder / "big", big), run("say", what=what))
    answer = await channel.request(first)
    assert [one["result"] for one in steps(answer)] == ["done"] * 3
    assert steps(answer)[2] == {
        "step": "run say", "result": "done", "exit_code": 0, "output": what + "\n", "error_output": "",
        "truncated": False,
    }  # fmt: skip
    assert (folder / "rules").read_bytes() == b"new\0"
    assert (folder / "rules").stat().st_mode & 0o7777 == 0o640
    assert (folder / "big").read_bytes() == big
    assert (folder / "big").stat().st_mode & 0o7777 == 0o600
    assert not [name for name in os.listdir(folder) if name.endswith(".pileus-new")]
    assert await channel.request(first) == answer, "asked again, it is the same answer"

    poured = steps(await channel.request(request(2, run("pour"), run("say", what="never"))))
    assert (poured[0]["result"], poured[0]["exit_code"], poured[0]["truncated"]) == ("failed", 3, True)
    assert poured[0]["error_output"] == "bad\n"
    assert poured[0]["output"] == "\ufffd" * 16384
    assert poured[1]["result"] == "skipped"
    hung = steps(await channel.request(request(3, run("hang"))))
    assert (hung[0]["result"], hung[0]["exit_code"]) in [("failed", 124), ("failed", 143)]
    lost = steps(await channel.request(request(4, write(folder / "no/such/folder", b""))))
    assert lost[0]["result"] == "failed"


@pytest.mark.parametrize(
    ("step", "words"),
    [
        (run("reboot"), "allows no command 'reboot'"),
        (write(Path("/etc/passwd"), b""), "does not allow the file '/etc/passwd'"),
        (run("say", what="-n"), "what is no text"),
        (run("say"), "takes these values: what"),
    ],
)
async def test_what_the_package_does_not_allow_is_refused_by_name_and_nothing_of_the_request_is_done(
    agent: qga_rigs.RealAgent, host: Host, folder: Path, step: dict[str, Any], words: str
) -> None:
    channel = host.attach()
    await host.until(ready)
    answer = await channel.request(request(1, write(folder / "rules", b"new"), step))
    assert answer.state == "refused"
    assert words in answer.answer.decode()
    assert not (folder / "rules").exists()


async def test_a_host_that_dies_in_the_middle_leaves_a_command_that_runs_once(
    agent: qga_rigs.RealAgent, host: Host
) -> None:
    channel = host.attach()
    await host.until(ready)
    asked = request(1, run("count"))
    task = asyncio.create_task(channel.request(asked))
    async with asyncio.timeout(qga_rigs.LIMIT_S):
        while not host.log():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    await host.die()
    with pytest.raises((DriverError, asyncio.CancelledError)):
        await task
    channel = host.attach()
    await host.until(ready)
    with pytest.raises(DriverError) as caught:
        await channel.request(request(2, run("count")))
    assert caught.value.reason == "NodeBusy", "one after the other"
    (host.folder / "go").touch()
    answer = await channel.request(asked)
    assert (answer.state, steps(answer)[0]["output"]) == ("applied", "counted\n")
    assert await channel.request(asked) == answer
    assert host.log() == ["ran"]


async def test_an_agent_that_dies_in_the_middle_is_found_again(agent: qga_rigs.RealAgent, host: Host) -> None:
    channel = host.attach()
    await host.until(ready)
    asked = request(1, run("count"))
    task = asyncio.create_task(channel.request(asked))
    async with asyncio.timeout(qga_rigs.LIMIT_S):
        while not host.log():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    await agent.kill()
    channel.hint()  # A machine's port says that nobody has it open any more.
    with pytest.raises(DriverError) as caught:
        await task
    assert caught.value.reason == "NodeSilent"
    await host.until(lambda fact: fact.state == "silent")
    await agent.start()
    (host.folder / "go").touch()
    channel.hint()
    await host.until(ready)
    assert steps(await channel.request(asked))[0]["result"] == "done"
    assert host.log() == ["ran"]


@pytest.mark.parametrize(("command", "state", "times"), [("count", "unknown", 1), ("again", "applied", 2)])
async def test_a_command_that_was_killed_with_its_guest_is_told_as_unknown_unless_it_may_run_again(
    agent: qga_rigs.RealAgent, host: Host, folder: Path, command: str, state: str, times: int
) -> None:
    channel = host.attach()
    await host.until(ready)
    asked = request(1, run(command))
    task = asyncio.create_task(channel.request(asked))
    async with asyncio.timeout(qga_rigs.LIMIT_S):
        while not host.log():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    mark = next((folder / "state/requests/1-r1").glob("0.began"))
    os.kill(int(mark.read_text().split()[1]), signal.SIGKILL)
    (folder / "go").touch()
    await host.until(lambda fact: fact.state == "silent")
    await host.until(ready)
    answer = await channel.request(asked)
    assert (answer.state, host.log()) == (state, ["ran"] * times)


async def test_a_document_is_written_and_applied_when_it_differs(
    agent: qga_rigs.RealAgent, host: Host, folder: Path
) -> None:
    channel = host.attach()
    assert (await host.until(ready)).hash == ""
    document = {"rules": {"a": "good"}}
    await channel.configure(document)
    assert channel.fact.hash == document_hash(document)
    assert json.loads((folder / "document").read_text()) == document
    await channel.configure(document)
    assert host.log() == ["applied"]

    bad = {"rules": {"a": "evil"}}
    with pytest.raises(DriverError, match="run apply failed with exit code 1") as caught:
        await channel.configure(bad)
    assert caught.value.reason == "NodeRefused"
    assert channel.fact.hash == ""
    assert "exit code 1" in channel.fact.refused
    with pytest.raises(DriverError):
        await channel.configure(bad)
    assert host.log() == ["applied"] * 3, "one that failed is tried again"

    await channel.configure(document)
    await host.die()
    host.attach()
    assert (await host.until(ready)).hash == document_hash(document), "the guest knows what it runs"

    await host.die()
    other = msgspec.structs.replace(allowed(folder), document=f"{folder}/elsewhere")
    channel = host.attach(package=other)
    assert (await host.until(ready)).hash == "", "another package wants it in another file"
    await channel.configure(document)
    assert json.loads((folder / "elsewhere").read_text()) == document

    await host.die()
    ledger = folder / "state/configuration/ledger"
    ledger.write_text(ledger.read_text().replace(document_hash(document), "x" * 1_000_000))
    host.attach(package=other)
    assert (await host.until(ready)).hash == "", "a guest may note anything"


async def test_an_agent_that_may_not_do_what_is_needed_says_so(program: list[str], host: Host, folder: Path) -> None:
    agent = qga_rigs.RealAgent(program, folder)
    await agent.start(without=("guest-exec", "guest-file-open"))
    try:
        host.attach()
        fact = await host.until(ready)
        assert fact.refused == "its guest agent does not allow guest-exec, guest-file-open"
    finally:
        await agent.close()


async def test_answers_that_somebody_else_left_unread_are_not_taken_for_ours(
    agent: qga_rigs.RealAgent, folder: Path
) -> None:
    for _ in range(5):
        await qga_rigs.leave_unread(folder / "agent")
    reader, writer = await asyncio.open_unix_connection(folder / "agent")
    writer.write(b'{"execute":"guest-info"}\n' * 3 + b'{"execute":"guest-in')
    await writer.drain()
    await reader.readline()
    writer.close()
    mine = await connect(folder / "agent", "vm-1")
    await mine.sync(qga_rigs.LIMIT_S)
    version, lacks = await mine.facts()
    assert version.startswith("7.")
    assert lacks == frozenset()
    assert agent.runs
    mine.close()


async def test_notes_that_are_damaged_are_never_taken_for_none(
    agent: qga_rigs.RealAgent, host: Host, folder: Path
) -> None:
    channel = host.attach()
    await host.until(ready)
    await channel.request(request(1, run("say", what="x")))
    (folder / "state/requests/ledger").write_bytes(b'[{"sequ')
    with pytest.raises(DriverError) as caught:
        await channel.request(request(1, run("count")))
    assert caught.value.reason == "NotesLost"
    assert host.log() == []


DEEP = b'{"return":' + b"[" * 50_000 + b"\n"

HARM: dict[str, qga_rigs.Answers] = {
    "garbage": lambda call: qga_rigs.honest(call) if "sync" in call["execute"] else os.urandom(200) + b"\n",
    "no line ever ends": lambda call: b"x" * (2 * ANSWER_BYTES_MAX),
    "too many lines": lambda call: b'{"return": {}}\n' * 200_000,
    "nested too deep": lambda call: qga_rigs.honest(call) if "sync" in call["execute"] else DEEP,
    "not UTF-8": lambda call: qga_rigs.honest(call) if "sync" in call["execute"] else b'{"return": "\xff\xfe"}\n',
    "another's number": lambda call: qga_rigs.honest({**call, "id": "sync" if "sync" in call["execute"] else "99"}),
    "not its type": lambda call: qga_rigs.honest(call, guest_info=["x"]),
    "no base64": lambda call: qga_rigs.honest(call, guest_file_read={"count": 3, "buf-b64": "???", "eof": False}),
    "two answers": lambda call: qga_rigs.honest(call) * 2,
}


@pytest.mark.parametrize("harm", HARM)
async def test_an_agent_that_does_harm_is_hung_up_on_and_then_left_alone(harm: str, host: Host, folder: Path) -> None:
    false = qga_rigs.FalseAgent(folder, HARM[harm])
    await false.start()
    try:
        host.attach(Limits(hang_up_s_min=0.01, hang_up_s_max=0.02))
        # What is read as silence would be tried again for ever; hints keep that short.
        fact = await _hinted_until(host, lambda fact: fact.state == "quarantined")
        assert "was hung up on" in fact.refused
        assert false.connections > Limits().offences_max
        with pytest.raises(DriverError, match="is quarantined: again and again"):
            await host.channel.request(request(1, run("count")))
    finally:
        await false.stop()


async def _hinted_until(host: Host, wanted: Callable[[NodeFact], bool]) -> NodeFact:
    async def hint() -> None:
        while True:
            await asyncio.sleep(0.05)
            host.channel.hint()

    hints = asyncio.create_task(hint())
    try:
        return await host.until(wanted)
    finally:
        hints.cancel()


ENDLESS = base64.b64encode(bytes(48 << 10)).decode()


@pytest.mark.parametrize(
    "special",
    [
        {"guest_file_read": {"count": 48 << 10, "buf-b64": ENDLESS, "eof": False}},
        {"guest_exec_status": {"exited": True, "exitcode": 9}},
        {"guest_exec_status": {"exited": True}},
        {"guest_file_read": {"count": 2, "buf-b64": base64.b64encode(b"{}").decode(), "eof": True}},
        {"guest_file_write": {"count": 1, "eof": False}},
    ],
)
async def test_a_guest_that_lies_about_its_files_gets_an_error_and_keeps_nobody_waiting(
    special: dict[str, object], host: Host, folder: Path
) -> None:
    false = qga_rigs.FalseAgent(folder, lambda call: qga_rigs.honest(call, **special))
    await false.start()
    try:
        channel = host.attach(Limits(hang_up_s_min=0.01, hang_up_s_max=0.02))
        await host.until(lambda fact: ready(fact) or fact.refused != "")
        with pytest.raises(DriverError):
            await channel.request(request(1, run("count")))
    finally:
        await false.stop()


async def test_an_agent_that_says_nothing_is_silent_and_may_start_later(host: Host, folder: Path) -> None:
    starts = False
    false = qga_rigs.FalseAgent(folder, lambda call: qga_rigs.honest(call) if starts else b"")
    await false.start()
    try:
        channel = host.attach()
        async with asyncio.timeout(qga_rigs.LIMIT_S):
            while not false.connections:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert channel.fact.state == "silent"
        with pytest.raises(DriverError) as caught:
            await channel.request(request(1, run("count")))
        assert caught.value.reason == "NodeSilent"
        starts = True
        channel.hint()
        await host.until(ready)
    finally:
        await false.stop()


async def test_two_that_call_at_once_each_get_their_answer(agent: qga_rigs.RealAgent, folder: Path) -> None:
    mine = await connect(folder / "agent", "vm-1")
    await mine.sync(qga_rigs.LIMIT_S)

    async def say(word: str) -> str:
        return mine.text(await mine.run(("/bin/echo", word), qga_rigs.LIMIT_S))

    words = [f"word{number}" for number in range(20)]
    assert await asyncio.gather(*(say(word) for word in words)) == words
    assert isinstance(mine, GuestAgent)
    mine.close()


async def test_what_was_done_is_told_although_the_package_does_not_allow_it_any_more(
    agent: qga_rigs.RealAgent, host: Host, folder: Path
) -> None:
    channel = host.attach()
    await host.until(ready)
    done = await channel.request(request(1, run("say", what="hello")))
    assert done.state == "applied"
    await host.die()
    channel = host.attach(package=Allowed(state=f"{folder}/state"))
    await host.until(ready)
    assert await channel.request(request(1, run("say", what="hello"))) == done
    later = await channel.request(request(2, run("say", what="hello")))
    assert later.state == "refused"
    assert b"allows no command 'say'" in later.answer
