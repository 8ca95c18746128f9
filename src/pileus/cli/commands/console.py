"""``pileus console vm/web``: the VM's serial console in this terminal, over a WebSocket."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import termios
import tty
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING

import click

from pileus.cli.client import refusal, segment
from pileus.cli.failure import UNREACHABLE, Failure, usage
from pileus.cli.progress import clean
from pileus.cli.session import Session, account_option, root
from pileus.cli.target import VM, split, vm_argument

if TYPE_CHECKING:
    from websockets.asyncio.client import ClientConnection

ESCAPE = b"\x1d"
"""ctrl-], as telnet and virsh have it."""

CHUNK_BYTES = 4096


@click.command("console", no_args_is_help=True)
@vm_argument()
@account_option
@click.pass_obj
def command(session: Session, /, words: tuple[str, ...], account: str) -> None:
    """Use a VM's serial console; ctrl-] leaves it."""
    name, rest = split(words, "a console")
    if rest:
        raise click.UsageError(f"a console takes one VM, not also {' '.join(rest)}")
    if not sys.stdin.isatty():
        place = f" --account {account}" if account else ""
        raise usage(f"console needs a terminal; `pileus logs vm {name}{place}` prints what was written")
    vm = session.get(VM, name, account)
    target = session.client.target(f"{root(VM)}/{segment(vm['id'])}/console", [("account", vm["account"])])
    asyncio.run(_run(session, f"wss://{session.client.authority}{target}", vm["name"]))


async def _run(session: Session, url: str, name: str) -> None:
    import websockets
    from websockets.asyncio.client import connect

    headers = {"Authorization": session.client.authorization}
    try:
        async with connect(
            url, ssl=session.client.tls, additional_headers=headers, max_size=None, proxy=None, compression=None
        ) as socket:
            await _use(socket, name)
    except websockets.InvalidStatus as error:
        raise refusal(error.response.status_code, bytes(error.response.body or b"")) from None
    except websockets.ConnectionClosedError as error:
        reason = error.rcvd.reason if error.rcvd is not None else ""
        raise Failure(f"the console ended: {reason or 'the connection was lost'}", exit_code=UNREACHABLE) from None
    except (OSError, websockets.WebSocketException) as error:
        raise Failure(f"the console of {name} cannot be reached: {error}", exit_code=UNREACHABLE) from None


async def _use(socket: ClientConnection, name: str) -> None:
    with _raw_terminal():
        sys.stderr.write(f"console of vm {name}; ctrl-] leaves it, Enter shows a prompt\r\n")
        tasks = [asyncio.create_task(_type(socket)), asyncio.create_task(_show(socket))]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()


async def _type(socket: ClientConnection) -> None:
    """Send what is typed until ctrl-], or until the terminal goes away."""
    async for keys in _keys():
        before, escape, _ = keys.partition(ESCAPE)
        if before:
            await socket.send(before)
        if escape:
            return


async def _keys() -> AsyncIterator[bytes]:
    """Yield what is typed until the terminal goes away."""
    stdin = sys.stdin.fileno()
    typed: asyncio.Queue[bytes] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    loop.add_reader(stdin, lambda: typed.put_nowait(os.read(stdin, CHUNK_BYTES)))
    try:
        while keys := await typed.get():
            yield keys
    finally:
        loop.remove_reader(stdin)


async def _show(socket: ClientConnection) -> None:
    async for message in socket:
        sys.stdout.buffer.write(message.encode() if isinstance(message, str) else message)
        sys.stdout.buffer.flush()
    if not socket.close_reason:  # only the server's end has none
        raise Failure("the console ended: the server stops", exit_code=UNREACHABLE)
    sys.stderr.write(f"\r\nthe console ended: {clean(socket.close_reason)}")


@contextlib.contextmanager
def _raw_terminal() -> Iterator[None]:
    """Give every key to the guest, and the terminal back as it was."""
    stdin = sys.stdin.fileno()
    before = termios.tcgetattr(stdin)
    try:
        tty.setraw(stdin, termios.TCSADRAIN)
        yield
    finally:
        termios.tcsetattr(stdin, termios.TCSADRAIN, before)
        sys.stderr.write("\r\n")
