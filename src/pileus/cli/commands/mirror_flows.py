"""``pileus mirror flows vm/web``: who talked to whom, and how much, without a sniffer."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
from collections.abc import Iterable
from typing import Any, NamedTuple

import click
import msgspec

from pileus.cli.client import Json
from pileus.cli.commands.mirror_session import session_options, watched
from pileus.cli.commands.mirror_stream import Following
from pileus.cli.failure import REFUSED, Failure
from pileus.cli.progress import Progress, lively
from pileus.cli.session import Session
from pileus.cli.table import coloured, plain
from pileus.cli.units import human_bytes
from pileus.node.mirror.flows import FLOWS_MAX

HEADERS = ("PROTOCOL", "A", "B", "FLOWS", "PACKETS A→B", "B→A", "BYTES A→B", "B→A", "FIRST", "DURATION")
LINE_BYTES_MAX = 1 << 20
PAGE_LINES = 20
"""Flows that a terminal shows anew with --follow, where its height is not known."""


@click.command("flows", no_args_is_help=True)
@click.option("--follow", "-f", is_flag=True, help="Show the table anew as packets come, until ctrl-C.")
@click.option(
    "--top", type=click.IntRange(0), default=0, metavar="N", help="Only the N flows with the most bytes; 0: all."
)
@click.option("--sum", "is_summed", is_flag=True, help="Add up what has the same addresses and the same port of B.")
@click.option("-o", "--output", "form", type=click.Choice(["table", "json"]), default="table", help="How to show it.")
@session_options
@click.pass_obj
def command(session: Session, /, words: tuple[str, ...], **options: Any) -> None:
    """Show who talked to whom: of a session that is there, or of a VM from now on until ctrl-C or --duration."""
    shown = Table(options["form"], options["top"], is_live=options["follow"], is_summed=options["is_summed"])
    with watched(session, words, options) as found:
        is_new = words[0].partition("/")[0] not in ("session", "mirror.session")
        following = Following(found, "flows", shown.begin, shown.take, follow=options["follow"] or is_new)
        if is_new and not options["follow"]:
            sys.stderr.write("listening; ctrl-C shows the table\n")
        asyncio.run(following.run())
        shown.finish()


class Key(NamedTuple):
    """What a flow is known by."""

    protocol: str
    a: str
    a_port: int
    b: str
    b_port: int


class Flow(msgspec.Struct, frozen=True):
    """A flow as a decapsulator tells it."""

    protocol: str
    a: str
    a_port: int
    b: str
    b_port: int
    first: float
    last: float
    packets: tuple[int, int]
    bytes: tuple[int, int]
    flows: int = 1
    """How many were added up."""


class Totals(msgspec.Struct, frozen=True):
    """Of how much the flows are."""

    flows: int
    gone: dict[str, int]
    received: int
    lost: int
    dropped: int


class Known(NamedTuple):
    """What is known of a flow."""

    told: Flow
    """Its newest record."""
    before: Flow | None = None
    """The sum of the records that ended: their decapsulator is gone, or forgot the flow while it was idle."""

    @property
    def whole(self) -> Flow:
        """All of it."""
        return self.told if self.before is None else added(self.before, self.told)


class Table:
    """Flows, all that was ever told of each; shown at the end, or anew with every round.

    At most FLOWS_MAX at the end of a round, and twice as many within it: those that were idle longest go.
    """

    def __init__(self, form: str, top: int, *, is_live: bool, is_summed: bool) -> None:
        self._form = form
        self._top = top
        self._is_live = is_live
        self._is_summed = is_summed
        self._unread = b""
        self._flows: dict[Key, Known] = {}
        self._totals: Totals | None = None
        self._told: Totals | None = None
        self._before: Totals | None = None
        """Of the decapsulators that are gone."""
        self._progress = Progress()

    def begin(self) -> None:
        """A connection begins: all flows are told again, by the same decapsulator or by another one."""
        self._unread = b""

    async def take(self, piece: bytes) -> None:
        """Take lines of JSON. Raises: Failure for what is none."""
        *lines, self._unread = (self._unread + piece).split(b"\n")
        if len(self._unread) > LINE_BYTES_MAX:
            raise _unreadable()
        is_round = False
        for line in lines:
            is_round |= self._line(line)
        if is_round and self._is_live:
            self._show()
        elif is_round and self._totals is not None and lively():
            self._progress.say(f"{self._totals.received} packets, {len(self._flows)} flows; ctrl-C shows them")

    def finish(self) -> None:
        """Show the table, if that was not done all the time."""
        self._progress.erase()
        if not self._is_live:
            self._show()

    def _line(self, line: bytes) -> bool:
        """Take one line; return whether it ends a round."""
        try:
            if b'"flows"' in line[:10]:
                self._sum_up(msgspec.json.decode(line, type=Totals))
                return True
            flow = msgspec.json.decode(line, type=Flow)
        except msgspec.MsgspecError:
            raise _unreadable() from None
        self._add(flow)
        return False

    def _add(self, flow: Flow) -> None:
        key = Key(flow.protocol, flow.a, flow.a_port, flow.b, flow.b_port)
        known = self._flows.get(key)
        if known is None:
            self._flows[key] = Known(flow)
        elif _is_anew(flow, known.told):
            self._flows[key] = Known(flow, known.whole)
        else:
            self._flows[key] = known._replace(told=flow)
        if len(self._flows) >= 2 * FLOWS_MAX:
            self._forget()

    def _sum_up(self, totals: Totals) -> None:
        """End a round."""
        if self._told is not None and totals.received < self._told.received:
            self._before = self._totals
        self._told = totals
        self._totals = totals if self._before is None else _both(self._before, totals)
        self._forget()

    def _forget(self) -> None:
        """Have no more than FLOWS_MAX."""
        if len(self._flows) > FLOWS_MAX:
            newest = sorted(self._flows.items(), key=lambda item: -item[1].told.last)
            self._flows = dict(newest[:FLOWS_MAX])

    def _show(self) -> None:
        known = [each.whole for each in self._flows.values()]
        flows = sorted(summed(known) if self._is_summed else known, key=lambda flow: -sum(flow.bytes))
        on_screen = self._is_live and self._form == "table" and coloured()
        top = self._top or (_height() if on_screen else 0) or len(flows)
        if self._form == "json":
            text = _json(flows[:top], self._totals, is_live=self._is_live)
        else:
            text = "\n".join(_lines(flows, top, self._totals))
        sys.stdout.write(f"\x1b[H\x1b[J{text}\n" if on_screen else f"{text}\n")
        sys.stdout.flush()


def summed(flows: Iterable[Flow]) -> list[Flow]:
    """Return one flow for all that have the same addresses and the same port of ``b``; its port of ``a`` is 0."""
    found: dict[Key, Flow] = {}
    for flow in flows:
        key = Key(flow.protocol, flow.a, 0, flow.b, flow.b_port)
        sum_ = found.get(key)
        if sum_ is None:
            found[key] = msgspec.structs.replace(flow, a_port=0)
            continue
        found[key] = msgspec.structs.replace(added(sum_, flow), flows=sum_.flows + 1)
    return list(found.values())


def added(one: Flow, other: Flow) -> Flow:
    """Return the first flow with the other one's packets, bytes and time added."""
    return msgspec.structs.replace(
        one,
        first=min(one.first, other.first),
        last=max(one.last, other.last),
        packets=(one.packets[0] + other.packets[0], one.packets[1] + other.packets[1]),
        bytes=(one.bytes[0] + other.bytes[0], one.bytes[1] + other.bytes[1]),
    )


def _is_anew(flow: Flow, known: Flow) -> bool:
    """Tell whether a record counts from zero again; of one that goes on no count falls, and its begin moves back at most."""
    return flow.first > known.first or any(new < old for new, old in zip(flow.packets, known.packets, strict=True))


def _both(before: Totals, totals: Totals) -> Totals:
    gone = {word: before.gone.get(word, 0) + totals.gone.get(word, 0) for word in before.gone | totals.gone}
    return Totals(
        totals.flows,
        gone,
        before.received + totals.received,
        before.lost + totals.lost,
        before.dropped + totals.dropped,
    )


def _json(flows: list[Flow], totals: Totals | None, *, is_live: bool) -> str:
    answer: Json = {"flows": flows, "totals": totals}
    encoded = msgspec.json.encode(answer)
    return (encoded if is_live else msgspec.json.format(encoded, indent=2)).decode()


def _lines(flows: list[Flow], top: int, totals: Totals | None) -> list[str]:
    rows = [
        (
            flow.protocol, _end(flow.a, flow.a_port), _end(flow.b, flow.b_port), str(flow.flows), *map(str, flow.packets),
            *map(human_bytes, flow.bytes), _moment(flow.first),
            f"{max(0.0, flow.last - flow.first):.1f}s",
        )
        for flow in flows[:top]
    ]  # fmt: skip
    lines = plain(HEADERS, rows).splitlines()
    if len(flows) > top:
        lines.append(f"and {len(flows) - top} more")
    if totals is not None:
        told = f"{sum(flow.flows for flow in flows)} flows of {totals.received} packets"
        lost = f", {totals.lost} lost on the way, {totals.dropped} not kept" if totals.lost or totals.dropped else ""
        gone = f"; {totals.gone['flows']} idle flows went to make room" if totals.gone.get("flows") else ""
        lines.append(f"{told}{lost}{gone}")
    return lines


def _end(address: str, port: int) -> str:
    if not port:
        return address
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _moment(at: float) -> str:
    with contextlib.suppress(OverflowError, OSError, ValueError):
        return time.strftime("%H:%M:%S", time.localtime(at))
    return "-"


def _height() -> int:
    try:
        return max(5, os.get_terminal_size(sys.stdout.fileno()).lines - 4)
    except OSError:
        return PAGE_LINES


def _unreadable() -> Failure:
    return Failure("what the server sends are no flows", exit_code=REFUSED)
