"""``pileus mirror watch vm/web``: a VM's packets, live as lines or as pcapng for other programs."""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
import sys
from collections.abc import Iterator
from typing import Any

import click

from pileus.cli.client import Json
from pileus.cli.commands.mirror_session import Watched, session_options, watched
from pileus.cli.commands.mirror_stream import FAREWELL_S, Following
from pileus.cli.failure import REFUSED, Failure, usage
from pileus.cli.packets import line
from pileus.cli.progress import Progress, clean, lively
from pileus.cli.session import Session
from pileus.cli.units import human_bytes
from pileus.node.mirror import pcapng

NOWHERE, OUTPUT = -1, -2
"""Instead of a file's descriptor."""
COUNTS_S = 20.0
"""How long the last counts are waited for: decapsulators say theirs every ten seconds."""


@click.command("watch", no_args_is_help=True)
@click.option("--count", type=click.IntRange(1), default=None, metavar="N", help="End after N packets.")
@click.option(
    "--write", "file", default="", metavar="FILE",
    help="Write pcapng to this file; - for standard output, which is the default where that is no terminal.",
)  # fmt: skip
@click.option("--lines", is_flag=True, help="Print lines also where standard output is no terminal, or beside --write.")
@session_options
@click.pass_obj
def command(session: Session, /, words: tuple[str, ...], **options: Any) -> None:
    """Show the packets of a VM live, one on a line; or write them: `pileus mirror watch vm/web | wireshark -k -i -`.

    A mirror session is made, and deleted at the end. Ctrl-C ends it, and then it is said how complete this was.
    """
    to_output = options["file"] == "-" or not (options["file"] or options["lines"] or sys.stdout.isatty())
    if to_output and sys.stdout.isatty():
        raise usage("a terminal cannot show pcapng; name a file, or pipe it: `| wireshark -k -i -`")
    if to_output and options["lines"]:
        raise usage("lines and pcapng cannot both go to standard output; name a file: --write FILE")
    is_to_file = bool(options["file"]) and not to_output
    lines = not to_output and (options["lines"] or not is_to_file)
    with (
        watched(session, words, options) as found,
        # Only now: a file is emptied when there are packets for it.
        View(options["count"] or 0, lines=lines, target=_target(options["file"], is_to_file, to_output)) as view,
    ):
        following = Following(found, "packets", view.begin, view.take)
        view.on_full = following.stop
        asyncio.run(following.run())
        _say(view, found, following)


def _target(file: str, is_to_file: bool, to_output: bool) -> int:
    """Return where pcapng goes: a descriptor, OUTPUT or NOWHERE. Raises: Failure."""
    if not is_to_file:
        return OUTPUT if to_output else NOWHERE
    try:
        target = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise _unwritable(file, error) from None
    try:
        if stat.S_ISREG(os.fstat(target).st_mode):
            # Others have no business in what was said over a network, nor in a file that was there.
            os.fchmod(target, 0o600)
            os.ftruncate(target, 0)
    except OSError as error:
        os.close(target)
        raise _unwritable(file, error) from None
    return target


def _unwritable(file: str, error: OSError) -> Failure:
    return Failure(f"cannot write {file}: {error.strerror}", exit_code=REFUSED)


class View:
    """What is done with packets: lines on standard output, pcapng into ``target``, or both."""

    def __init__(self, count: int, *, lines: bool, target: int) -> None:
        self._count = count
        self._lines = lines
        self._target = target
        self._reader = pcapng.Reader()
        self._is_headed = False
        self._newest_ns = self._seen_ns = -1
        self._progress = Progress()
        self.shown = 0
        self.written_bytes = 0
        self.statistics: pcapng.Statistics | None = None
        self.on_full = lambda: None

    def __enter__(self) -> View:
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.erase()
        if self._target not in (NOWHERE, OUTPUT):
            os.close(self._target)

    @property
    def is_full(self) -> bool:
        """Whether --count was reached."""
        return bool(self._count) and self.shown >= self._count

    def begin(self) -> None:
        """A connection begins: it tells again all that is kept."""
        self._reader = pcapng.Reader()
        self._seen_ns = self._newest_ns

    async def take(self, piece: bytes) -> None:
        """Show a piece of a capture. Raises: Failure for what is none."""
        lines: list[str] = []
        parts: list[bytes] = []
        try:
            for block in self._reader.blocks(piece):
                self._block(block, lines, parts)
        except pcapng.Damaged as damaged:
            raise Failure(f"what the server sends is no capture: {clean(str(damaged))}", exit_code=REFUSED) from None
        if lines:
            sys.stdout.write("\n".join((*lines, "")))
            sys.stdout.flush()
        if parts:
            await self._write(b"".join(parts))

    def _block(self, block: pcapng.Block, lines: list[str], parts: list[bytes]) -> None:
        is_written = self._target != NOWHERE
        if isinstance(block, pcapng.Packet):
            if block.at_ns <= self._seen_ns or self.is_full:
                return
            self._newest_ns = max(self._newest_ns, block.at_ns)
            self.shown += 1
            if self._lines:
                lines.append(line(block.at_ns, block.data, block.original, block.direction))
            if is_written:
                parts.append(pcapng.packet(block.at_ns, block.data, block.original, block.direction))
            if self.is_full:
                self.on_full()
        elif isinstance(block, pcapng.Statistics):
            self.statistics = block
            if is_written and self._is_headed:
                parts.append(pcapng.statistics(block._replace(delivered=self.shown)))
        elif is_written and not self._is_headed:
            self._is_headed = True
            parts += [
                pcapng.section("pileus mirror watch"),
                pcapng.interface(block.name, block.description, block.snap),
            ]

    async def _write(self, content: bytes) -> None:
        from pileus.cli.tunnel import StandardStreams

        self.written_bytes += len(content)
        if self._target == OUTPUT:
            await StandardStreams().write(content)
            return
        rest = memoryview(content)
        try:
            while rest:
                rest = rest[os.write(self._target, rest) :]
        except OSError as error:
            raise Failure(f"the capture cannot be written: {error.strerror}", exit_code=REFUSED) from None
        if not self._lines and lively():
            self._progress.say(f"{self.shown} packets, {human_bytes(self.written_bytes)}; ctrl-C ends it")


def _say(view: View, found: Watched, following: Following) -> None:
    counts: Json = {}
    with contextlib.suppress(KeyboardInterrupt):  # who is in a hurry gets what is known
        counts = found.last_counts(COUNTS_S if following.is_whole else FAREWELL_S)
    is_all = following.is_whole and not view.is_full and found.is_ours
    for text in summary(view.shown, counts, view.statistics, is_all=is_all):
        sys.stderr.write(f"{text}\n")
    if following.breaks:
        times = "once" if following.breaks == 1 else f"{following.breaks} times"
        sys.stderr.write(f"the connection broke {times}; some packets may be missing\n")


def summary(shown: int, counts: Json, said: pcapng.Statistics | None, *, is_all: bool) -> Iterator[str]:
    """Yield lines that say how complete it was. ``is_all``: the session was followed from its begin to its end."""
    yield f"{shown} {'packet' if shown == 1 else 'packets'}"
    if counts:
        words = (
            ("seen", "seen at the port"), ("matched", "matched"), ("sampled", "sampled"),
            ("limited", "over the rate limit"), ("failed", "could not be copied"), ("sent", "copied"),
        )  # fmt: skip
        told = [f"{counts[word]} {text}" for word, text in words if _is_telling(counts, word)]
        yield f"{', '.join(told)}"
    if said is None:
        return
    yield f"{said.received} received, {said.lost} lost on the way, {said.missed} gone before they were read"
    missing = max(counts.get("matched", 0), counts.get("sent", 0), said.received + said.lost) - shown
    if is_all and counts and counts.get("sampled") == counts.get("matched"):
        yield "complete: every packet that matched" if missing <= 0 else f"incomplete: {missing} packets are missing"


def _is_telling(counts: Json, word: str) -> bool:
    """Tell whether a count says something that the others do not."""
    if word == "sampled":
        return bool(counts[word] != counts["matched"])
    return word not in ("limited", "failed") or bool(counts[word])
