"""``pileus forward vm/web 8080:80``: ports of this machine that lead to ports of a VM, through its network's router."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import sys
from collections.abc import Sequence
from typing import Any

import click
from msgspec import Struct

from pileus.cli.client import Json
from pileus.cli.failure import REFUSED, Failure, usage
from pileus.cli.progress import clean
from pileus.cli.session import Session, account_option
from pileus.cli.target import VM, split, vm_argument
from pileus.kernel.clock import system_clock, unix

PORT_MAX = 65_535
BOOT_S = 120.0
"""For so long after its start a VM that does not answer may still boot: without acceleration, on a busy machine."""


class Pair(Struct, frozen=True):
    """A port here (0: any free one) and the VM's port it leads to."""

    here: int
    there: int


@click.command("forward", no_args_is_help=True)
@vm_argument("[[HERE]:]PORT...")
@click.option("--address", default="127.0.0.1", metavar="ADDRESS", show_default=True, help="Listen on this address.")
@click.option("--network", default="", metavar="NAME", help="Through this network of the VM, if it is in several.")
@click.option(
    "--stdio", type=click.IntRange(1, PORT_MAX), default=None, metavar="PORT",
    help="Connect standard input and output to this port instead, as ssh's ProxyCommand needs it.",
)  # fmt: skip
@click.option(
    "--booting", is_flag=True, help="With --stdio: ask a VM that started less than two minutes ago until it answers."
)
@account_option
@click.pass_obj
def command(session: Session, /, words: tuple[str, ...], **options: Any) -> None:
    """Lead ports of this machine to a VM's, until ctrl-C.

    `pileus forward vm/web 8080:80` leads port 8080 here to port 80 there, `80` port 80 to port 80, and `:80` a free port
    that it prints.
    """
    name, rest = split(words, "ports")
    pairs = [pair(text) for text in rest]
    if (options["stdio"] is None) == (not pairs):
        raise usage("say which ports, such as `pileus forward vm/web 8080:80`, or --stdio PORT, not both")
    vm = session.get(VM, name, options["account"])
    if options["stdio"] is not None:
        patience_s = _boots_s(vm) if options["booting"] else 0.0
        asyncio.run(_join_stdio(session, vm, options["stdio"], options["network"], patience_s))
    else:
        asyncio.run(_Listening(session, vm, options["network"]).run(options["address"], pairs))


def pair(text: str) -> Pair:
    """Return what ``8080:80``, ``:80`` or ``80`` says. Raises: Failure."""
    here, colon, there = text.rpartition(":")
    here = here or ("0" if colon else there)
    if not (_is_port(here) and _is_port(there) and int(there)):
        raise usage(f'"{text}" is no pair of ports; say HERE:THERE such as 8080:80, or :80 for a free port here')
    return Pair(int(here), int(there))


def _is_port(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 5 and int(text) <= PORT_MAX


async def _join_stdio(session: Session, vm: Json, port: int, network: str, patience_s: float) -> None:
    from pileus.cli.tunnel import StandardStreams, join, way

    await join(way(session, vm, port, network), StandardStreams(), patience_s)


def _boots_s(vm: Json) -> float:
    """Return for how long the VM may still boot, by the clock of this machine."""
    started_at = (vm["observed"] or {}).get("started_at")
    return min(max(unix(started_at) + BOOT_S - system_clock(), 0.0), BOOT_S) if started_at else 0.0


class _Listening:
    """Listens, and joins each connection to the VM."""

    def __init__(self, session: Session, vm: Json, network: str) -> None:
        self._session = session
        self._vm = vm
        self._network = network
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self, address: str, pairs: Sequence[Pair]) -> None:
        """Serve until cancelled. Raises: Failure when a port cannot be had."""
        async with contextlib.AsyncExitStack() as stack:
            for wanted in pairs:
                server = await stack.enter_async_context(await self._listen(address, wanted))
                host, port = server.sockets[0].getsockname()[:2]
                sys.stdout.write(f"{_place(host, port)} leads to port {wanted.there} of vm {self._vm['name']}\n")
            sys.stdout.write("ctrl-C ends it\n")
            sys.stdout.flush()
            await asyncio.Event().wait()

    async def _listen(self, address: str, wanted: Pair) -> asyncio.Server:
        def begin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.create_task(self._join(reader, writer, wanted.there))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

        try:
            return await asyncio.start_server(begin, address, wanted.here)
        except OSError as error:
            raise _cannot_listen(error, address, wanted) from None

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, port: int) -> None:
        from pileus.cli.tunnel import LocalSocket, join, way

        _say(f"connection from {_place(*writer.get_extra_info('peername')[:2])} to port {port}")
        try:
            await join(way(self._session, self._vm, port, self._network), LocalSocket(reader, writer))
        except Failure as failure:
            _say(f"error: {failure.message}")
        except OSError:
            pass  # the program here went away; the VM sees its connection end
        finally:
            writer.close()


def _cannot_listen(error: OSError, address: str, wanted: Pair) -> Failure:
    where = _place(address, wanted.here)
    if error.errno == errno.EADDRINUSE:
        return Failure(
            f"{where} is in use", exit_code=REFUSED, hint=f"`:{wanted.there}` takes a free port and prints it"
        )
    if error.errno == errno.EACCES:
        return Failure(f"you may not listen on {where}", exit_code=REFUSED, hint="ports below 1024 are for root")
    return Failure(f"cannot listen on {where}: {error.strerror or error}", exit_code=REFUSED)


def _place(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _say(text: str) -> None:
    sys.stderr.write(f"{clean(text)}\n")
