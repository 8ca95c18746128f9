"""A data centre in a box: one server process, and a few that are its hosts, until told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import msgspec
from msgspec import Struct

from pileus.drivers.host.qemu.procfs import identify
from pileus.kernel.errors import Rejected
from pileus.lab.seats import LINE_BYTES_MAX, Attached, Opened, Order, Ready, Seat, read
from pileus.local.up import Running

STOP_TIMEOUT_S = 20.0
NAME = "lab"
"""Of its context."""

Say = Callable[[str], None]
Child = asyncio.subprocess.Process


class LabSettings(Struct, frozen=True, kw_only=True):
    """``hosts`` simulated hosts in ``processes`` processes; ``instant``: what they do takes no time."""

    data: Path
    hosts: int
    port: int = 7443
    processes: int = 1
    instant: bool = False
    database: str = ""


async def run(settings: LabSettings, say: Say, ready: Callable[[str], None]) -> None:
    """Run the lab until SIGTERM or SIGINT; ``ready`` gets its address once every host is.

    Raises: Rejected when a part of it does not start, or ends by itself.
    """
    settings.data.mkdir(parents=True, exist_ok=True, mode=0o700)
    stop = asyncio.Event()
    with signals(stop.set):
        async with contextlib.AsyncExitStack() as stack:
            work = asyncio.create_task(_run(settings, stack, say, ready), name="lab")
            stopping = asyncio.create_task(stop.wait(), name="stop")
            await asyncio.wait({work, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if stopping.done():
                say("stopping")
            for task in (work, stopping):
                task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await work
    (settings.data / "running.json").unlink(missing_ok=True)


async def _run(settings: LabSettings, stack: contextlib.AsyncExitStack, say: Say, ready: Callable[[str], None]) -> None:
    say(f"starting the server with {settings.hosts} hosts")
    server = await stack.enter_async_context(
        _child(settings.data / "server.log", "pileus.lab.central", str(settings.data), str(settings.port),
               str(settings.hosts), settings.database)
    )  # fmt: skip
    opened = await _opened(server, settings)
    say(f"server answers at {opened.url}; attaching the hosts")
    counts: dict[int, int] = {}
    everyone = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        for number, seats in enumerate(_shares(opened.seats, settings.processes)):
            hosts = await stack.enter_async_context(_child(settings.data / "hosts.log", "pileus.lab.hosts"))
            order = Order(url=opened.url, folder=str(settings.data / "hosts"), seats=seats, instant=settings.instant)
            _write(hosts, order)

            def attached(count: int, number: int = number) -> None:
                counts[number] = count
                say(f"{sum(counts.values())} of {settings.hosts} hosts attached")
                if sum(counts.values()) == settings.hosts:
                    everyone.set()

            tasks.create_task(_follow(hosts, settings, attached))
        line = await _line(server)
        if not line:
            raise _ended(settings.data / "server.log")
        read(line, Ready)
        await everyone.wait()  # the server may think hosts ready that were so before it started
        _note(settings, opened.url)
        ready(opened.url)
        tasks.create_task(_until_end(server, settings))


def _note(settings: LabSettings, url: str) -> None:
    own = identify(os.getpid())
    assert own is not None  # we run
    Running(pid=own.pid, url=url, start_ticks=own.start_ticks).save(settings.data)


async def _opened(server: Child, settings: LabSettings) -> Opened:
    line = await _line(server)
    if not line:
        raise _ended(settings.data / "server.log")
    opened = read(line, Opened)
    if opened.error:
        raise Rejected(opened.error)
    return opened


async def _follow(hosts: Child, settings: LabSettings, attached: Callable[[int], None]) -> None:
    """Pass on what a process of hosts tells. Raises: Rejected when it ends."""
    while line := await _line(hosts):
        attached(read(line, Attached).count)
    await hosts.wait()
    raise _ended(settings.data / "hosts.log")


async def _until_end(server: Child, settings: LabSettings) -> None:
    await server.wait()
    raise _ended(settings.data / "server.log")


def _shares(seats: tuple[Seat, ...], processes: int) -> Iterator[tuple[Seat, ...]]:
    """Yield the seats of each process, as evenly as may be; none of them empty."""
    for number in range(min(processes, len(seats))):
        yield seats[number::processes]


def _write(child: Child, message: Struct) -> None:
    assert child.stdin is not None
    child.stdin.write(msgspec.json.encode(message) + b"\n")


async def _line(child: Child) -> bytes:
    """Return the next line that the process tells; empty when it ended."""
    assert child.stdout is not None
    return await child.stdout.readline()


@contextlib.asynccontextmanager
async def _child(log: Path, module: str, *arguments: str) -> AsyncIterator[Child]:
    """Run a module as a process for the block. It ends with its standard input, also when this process is killed."""
    with log.open("ab") as errors:
        # A session of its own: ctrl-c at a terminal is for this process, which ends the others in order.
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-m", module, *arguments, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
            stderr=errors, start_new_session=True, limit=LINE_BYTES_MAX,
        )  # fmt: skip
    try:
        yield child
    finally:
        assert child.stdin is not None
        child.stdin.close()
        try:
            async with asyncio.timeout(STOP_TIMEOUT_S):
                await child.wait()
        except TimeoutError:
            child.kill()
            await child.wait()


def _ended(log: Path) -> Rejected:
    return Rejected(f"a process of the lab ended; its log {log} says: {last_words(log)}")


def last_words(log: Path) -> str:
    """Return what a log ends with: its last error, or else its last lines."""
    lines = log.read_text(errors="replace").splitlines()
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return errors[-1] if errors else " | ".join(lines[-3:])


@contextlib.contextmanager
def signals(stop: Callable[[], object]) -> Iterator[None]:
    """Call ``stop`` on SIGTERM and SIGINT for the block."""
    loop = asyncio.get_running_loop()
    numbers = (signal.SIGTERM, signal.SIGINT)
    for number in numbers:
        loop.add_signal_handler(number, stop)
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)
