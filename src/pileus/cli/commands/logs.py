"""``pileus logs vm NAME``: what the guest wrote to its serial console. Guests are not trusted: see ``shown``."""

from __future__ import annotations

import re
import sys
import time
from typing import Any

import click

from pileus.cli.client import Json, segment
from pileus.cli.session import Session, a, account_option, kind_argument, name_argument, root
from pileus.kernel.kind import Kind

FOLLOW_BYTES = 65_536
"""Read again at each look; a guest that writes more than this between two looks loses the start of it."""

WHOLE_BYTES = 16_777_216
"""The most that the server gives of a log."""

LINE_BYTES = 400
"""Allowance for a line when only the last lines are fetched; boot messages have about 80."""

LOOK_S = 1.0

_ESCAPES = re.compile(rb"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[ -/]*[0-~])")
_CONTROLS = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|\r(?!\n)")


@click.command("logs", no_args_is_help=True)
@kind_argument
@name_argument
@account_option
@click.option("-f", "--follow", is_flag=True, help="Go on with what is written until ctrl-C.")
@click.option("--tail", type=click.IntRange(min=0), default=None, metavar="N", help="Only the last N lines.")
@click.option("--raw", is_flag=True, help="Keep control characters also on a terminal.")
@click.pass_obj
def command(session: Session, /, kind: Kind, name: str, account: str, **options: Any) -> None:
    """Print what a VM wrote to its console: `pileus logs vm web -f`."""
    if kind.name != "compute.vm":
        raise click.UsageError(f"only a vm has a log, not {a(kind.short)}: `pileus logs vm NAME`")
    vm = session.get(kind, name, account)
    clean = sys.stdout.isatty() and not options["raw"]
    tail = options["tail"]
    text = _fetch(session, kind, vm, WHOLE_BYTES if tail is None else min(max(1, tail) * LINE_BYTES, WHOLE_BYTES))
    _write(text if tail is None else last_lines(text, tail), clean=clean)
    while options["follow"]:
        time.sleep(LOOK_S)
        now = _fetch(session, kind, vm, FOLLOW_BYTES)
        _write(added(text, now), clean=clean)
        text = now or text


def _fetch(session: Session, kind: Kind, vm: Json, tail_bytes: int) -> bytes:
    query = [("account", vm["account"]), ("tail_bytes", str(tail_bytes))]
    path = f"{root(kind)}/{segment(vm['id'])}/log"
    return session.client.request("GET", path, query, None, {"Accept": "text/plain"}).body


def last_lines(text: bytes, count: int) -> bytes:
    """Return the last ``count`` lines."""
    return b"".join(text.splitlines(keepends=True)[-count:]) if count else b""


def added(before: bytes, now: bytes) -> bytes:
    """Return what ``now``, the end of a growing text, has after the end of ``before``.

    Where they have nothing in common, too much was written meanwhile or the log began anew: all of ``now``.
    """
    if not before:
        return now
    for size in (4096, 512, 64):
        mark = before[-size:]
        at = now.rfind(mark)
        if at >= 0:
            return now[at + len(mark) :]
    return now


def shown(text: bytes) -> bytes:
    """Return ``text`` without what could steer the terminal that it is shown on."""
    return _CONTROLS.sub(b"", _ESCAPES.sub(b"", text))


def _write(text: bytes, *, clean: bool) -> None:
    sys.stdout.buffer.write(shown(text) if clean else text)
    sys.stdout.buffer.flush()
