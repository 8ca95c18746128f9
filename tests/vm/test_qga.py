"""A foreign guest, a Debian that has QEMU's agent and nothing of ours, managed without any NIC; and power cuts in it."""

from __future__ import annotations

import asyncio
import base64
import json
import math
import os
import shutil
import socket
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from pileus.drivers.host.errors import DriverError
from pileus.drivers.host.guest.base import GuestAnswer, GuestRequest, NodeFact
from pileus.drivers.host.guest.qga_allowed import Allowed, Command
from pileus.drivers.host.guest.real import GuestChannel
from pileus.drivers.host.ovs.real import OpenVSwitch
from pileus.drivers.host.paths import HostPaths
from pileus.drivers.host.qemu.base import BackingFile, DirectBoot, DiskAttachment, MachineSpec
from pileus.drivers.host.qemu.real import QemuHypervisor
from pileus.image.recipes import ensure_image
from pileus.image.types import BuildError, BuiltImage
from pileus.node.document import document_hash

pytestmark = pytest.mark.anyio

LIMIT_S = 120
MACHINE = "0197-foreign"
SH = "/bin/sh"
ALLOWED = Allowed(
    commands=(
        Command(name="links", path="/bin/ls", arguments=("/sys/class/net",)),
        Command(name="show", path="/bin/cat", arguments=("/etc/rules",)),
        Command(name="log", path="/bin/cat", arguments=("/var/log/ran",)),
        Command(
            name="slow",
            path=SH,
            arguments=("-c", "echo slow >> /var/log/ran; sync; echo RUNS > /dev/console; sleep 3"),
            timeout_s=20,
        ),
        Command(
            name="safe",
            path=SH,
            arguments=("-c", "echo safe >> /var/log/ran; sync; echo RUNS > /dev/console; sleep 3"),
            timeout_s=20,
            repeatable=True,
        ),
        Command(name="quick", path=SH, arguments=("-c", "echo {word} >> /var/log/ran"), values={"word": "word"}),
        Command(name="agent", path="/bin/pidof", arguments=("qemu-ga",)),
        Command(name="break", path="/bin/killall", arguments=("-9", "qemu-ga")),
        Command(name="apply", path="/bin/cp", arguments=("/etc/document", "/etc/applied")),
    ),
    files=("/etc/rules",),
    document="/etc/document",
    apply="apply",
)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Foreign:
    """A host with one foreign guest on it."""

    def __init__(self, folder: Path, image: BuiltImage) -> None:
        self.paths = HostPaths(state=folder / "state", run=folder / "run")
        self.paths.state.mkdir()
        self.image = image
        self.disk = self.paths.state / "root.qcow2"
        self.hypervisor = QemuHypervisor(self.paths, OpenVSwitch(self.paths).open_tap, "tcg")
        self.guest = GuestChannel(self.paths)
        self.hypervisor.on_change(self._hint)
        self._changed = asyncio.Event()

    async def open(self) -> None:
        await self.hypervisor.open()
        make = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", str(self.image.disk), str(self.disk)]
        done = await asyncio.create_subprocess_exec(*make)
        assert await done.wait() == 0
        await self.attach()
        await self.start()

    async def attach(self) -> None:
        """Be a new agent of the host."""
        self.guest = GuestChannel(self.paths)
        self.guest.on_change(lambda machine: self._changed.set())
        await self.guest.attach(MACHINE, "qga", allowed=ALLOWED)

    def _hint(self, machine: str) -> None:
        self.guest.hint(machine)

    async def die(self) -> None:
        """End the host's agent."""
        await self.guest.detach(MACHINE)

    async def leave_unread(self) -> None:
        """Be somebody who asks the guest's agent something, and goes when the answer is there, without reading it."""
        loop, answered = asyncio.get_running_loop(), asyncio.Event()
        with socket.socket(socket.AF_UNIX) as wire:
            wire.connect(str(self.paths.channel_socket(MACHINE)))
            wire.sendall(b'{"execute":"guest-ping"}\n')
            loop.add_reader(wire, answered.set)
            try:
                async with asyncio.timeout(LIMIT_S):
                    await answered.wait()
            finally:
                loop.remove_reader(wire)

    async def start(self) -> None:
        """Start the guest."""
        layer = BackingFile(path=str(self.image.disk), format="qcow2")
        await self.hypervisor.start(
            MachineSpec(
                id=MACHINE, name=MACHINE, vcpus=1, memory_mib=128, nics=(), channel="qga",
                disks=(DiskAttachment(id="root", path=str(self.disk), format="qcow2", backing=(layer,)),),
                boot=DirectBoot(
                    kernel=str(self.image.kernel), initrd=str(self.image.initrd), append=self.image.append
                ),
            )
        )  # fmt: skip

    async def cut_power(self) -> None:
        """End the guest as a power cut does, and start it again; returns when its agent answers."""
        await self.hypervisor.power_off(MACHINE)
        await self.until(lambda fact: fact.state == "silent")
        await self.start()
        await self.until(ready)

    async def until(self, wanted: Callable[[NodeFact], bool]) -> NodeFact:
        """Return the fact as soon as it is as ``wanted``."""
        try:
            async with asyncio.timeout(LIMIT_S):
                while not wanted(fact := await self.fact()):
                    self._changed.clear()
                    await self._changed.wait()
                return fact
        except TimeoutError:
            said = (await self.guest.log(MACHINE, 3000)).decode(errors="replace")
            raise AssertionError(f"{await self.fact()}\n{said}") from None

    async def fact(self) -> NodeFact:
        """Return what is known of the guest."""
        return (await self.guest.nodes())[MACHINE]

    async def ask(self, sequence: int, *steps: dict[str, Any]) -> GuestAnswer:
        """Return how a request ends, asked again whenever the guest falls silent."""
        payload = json.dumps(steps).encode()
        asked = GuestRequest(id=f"r{sequence}", sequence=sequence, deadline=math.inf, payload=payload)
        while True:
            await self.until(ready)
            try:
                return await self.guest.request(MACHINE, asked)
            except DriverError as error:
                if error.reason != "NodeSilent":
                    raise
                await asyncio.sleep(0.05)

    async def log(self, sequence: int) -> list[str]:
        """Return what commands wrote of themselves in the guest."""
        return str(steps(await self.ask(sequence, run("log")))[0]["output"]).split()

    async def tear_down(self) -> None:
        await self.die()
        await self.hypervisor.remove(MACHINE)
        await self.hypervisor.close()


@pytest.fixture
async def foreign() -> AsyncIterator[Foreign]:
    if os.geteuid() != 0 or shutil.which("qemu-system-x86_64") is None:
        pytest.skip("guests need root and qemu-system-x86")
    try:
        image = ensure_image("debian-qga", print)
    except BuildError as error:
        pytest.skip(f"the image debian-qga cannot be built here: {error}")
    # Not pytest's folder: socket paths have a limit of 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="pileus-q-"))
    made = Foreign(folder, image)
    try:
        await made.open()
        yield made
    finally:
        await made.tear_down()
        shutil.rmtree(folder)


def ready(fact: NodeFact) -> bool:
    return fact.state == "ready"


def run(command: str, **values: str) -> dict[str, Any]:
    return {"run": {"command": command, "values": values}}


def write(path: str, content: bytes) -> dict[str, Any]:
    return {"write": {"path": path, "content_base64": base64.b64encode(content).decode()}}


def steps(answer: GuestAnswer) -> list[dict[str, Any]]:
    assert answer.state in ("applied", "unknown"), answer
    found = json.loads(answer.answer)["steps"]
    assert isinstance(found, list)
    return found


async def test_a_foreign_guest_without_any_nic_takes_files_commands_and_its_document(foreign: Foreign) -> None:
    first = await foreign.until(ready)
    assert (first.hash, first.refused) == ("", "")
    found = steps(await foreign.ask(1, run("links"), write("/etc/rules", b"let it be\n"), run("show")))
    assert [one["result"] for one in found] == ["done"] * 3
    assert found[0]["output"] == "lo\n", "it has no other way to be reached"
    assert found[2]["output"] == "let it be\n"

    for step, words in ((run("reboot"), "command 'reboot'"), (write("/etc/passwd", b""), "file '/etc/passwd'")):
        answer = await foreign.ask(2, step)
        assert answer.state == "refused"
        assert words in answer.answer.decode()

    document = {"rules": {str(number): "x" * 1000 for number in range(500)}}
    await foreign.guest.configure(MACHINE, document)
    assert (await foreign.fact()).hash == document_hash(document)

    await foreign.hypervisor.reset(MACHINE)
    again = await foreign.until(lambda fact: ready(fact) and fact.boot_id != first.boot_id)
    assert again.hash == document_hash(document), "the guest knows what it runs"
    assert steps(await foreign.ask(1, run("links"), write("/etc/rules", b"let it be\n"), run("show"))) == found

    (agent,) = steps(await foreign.ask(3, run("agent")))
    await foreign.die()
    for _ in range(5):
        await foreign.leave_unread()
    await foreign.attach()
    assert steps(await foreign.ask(4, run("agent"))) == [agent], "its agent outlives hosts that die at any moment"

    broken = await foreign.ask(5, run("break"))
    assert broken.state in ("applied", "unknown"), "its agent is the one that was killed"
    assert steps(await foreign.ask(6, run("show")))[0]["output"] == "let it be\n"
    assert steps(await foreign.ask(7, run("agent"))) != [agent]


@pytest.mark.parametrize(("command", "state", "times"), [("slow", "unknown", 1), ("safe", "applied", 2)])
async def test_a_guest_that_loses_power_in_the_middle_of_a_command_tells_the_truth(
    foreign: Foreign, command: str, state: str, times: int
) -> None:
    await foreign.until(ready)
    asked = asyncio.create_task(foreign.ask(1, write("/etc/rules", b"a"), run(command), write("/etc/rules", b"b")))
    async with asyncio.timeout(LIMIT_S):
        while b"RUNS" not in await foreign.guest.log(MACHINE, 3000):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    await foreign.cut_power()
    answer = await asked
    assert answer.state == state
    assert [one["result"] for one in steps(answer)] == ["done", *(
        ["unknown", "skipped"] if state == "unknown" else ["done", "done"]
    )]  # fmt: skip
    assert await foreign.log(2) == [command] * times
    assert steps(await foreign.ask(3, run("show")))[0]["output"] == ("a" if state == "unknown" else "b")


@pytest.mark.long
async def test_requests_are_done_once_and_in_order_whatever_dies(foreign: Foreign) -> None:
    """The host's agent and the guest die in turn, at moments that no test chooses."""
    await foreign.until(ready)
    applied = []
    for number, pause_s in enumerate((0.05, 0.2, 0.4, 0.6, 0.9, 1.3)):
        word, sequence = f"w{number}", 2 * number + 1
        wanted = (run("quick", word=word), write("/etc/rules", word.encode()))
        asked = asyncio.create_task(foreign.ask(sequence, *wanted))
        await asyncio.sleep(pause_s)
        if number % 2:
            await foreign.cut_power()
            await asked
        else:
            await foreign.die()
            asked.cancel()
            await asyncio.gather(asked, return_exceptions=True)
            await foreign.attach()
        answer = await foreign.ask(sequence, *wanted)
        assert answer == await foreign.ask(sequence, *wanted)
        assert answer.state in ("applied", "unknown")
        if answer.state == "applied":
            applied.append(word)
            assert steps(await foreign.ask(sequence + 1, run("show")))[0]["output"] == word
    log = await foreign.log(1000)
    assert log == sorted(set(log)), "each at most once, and in order"
    assert set(applied) <= set(log)
    assert len(applied) >= 3, "a host's death alone leaves nothing unknown"
