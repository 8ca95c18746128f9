"""The session that ``mirror watch`` and ``mirror flows`` look at: one made of a VM, or one that is there."""

from __future__ import annotations

import contextlib
import secrets
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn, TypeVar

import click
from click.shell_completion import CompletionItem

from pileus.cli.client import Json, segment
from pileus.cli.completing import complete_names
from pileus.cli.failure import NOT_FOUND, Failure
from pileus.cli.progress import Progress
from pileus.cli.session import Session, account_option, noun, root
from pileus.cli.target import VM, split
from pileus.cli.waiting import DEFAULT_TIMEOUT_S, READY, Timeout, wait_for
from pileus.kernel.kind import Kind
from pileus.registry import KINDS

F = TypeVar("F", bound=Callable[..., Any])
MIRROR: Kind = KINDS["mirror.session"]
NAME_MAX = 40
LOOK_S = 0.3
WORDS = ("session", "mirror.session")


class Duration(Timeout):
    """Seconds of --duration: a number, or one with s, m or h."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return whole seconds. Raises: UsageError."""
        try:
            seconds = super().convert(value, param, ctx)
        except click.UsageError:
            raise click.UsageError(f"--duration takes a time such as 90s, 10m or 1h, not {value!r}", ctx) from None
        if seconds < 1:
            raise click.UsageError("--duration takes at least one second", ctx)
        return round(seconds)


def session_options(function: F) -> F:
    """Add the argument, and the flags of the session that is made."""
    options = (
        click.argument("words", metavar="VM|session/NAME", nargs=-1, required=True, shell_complete=_complete),
        click.option("--nic", type=click.IntRange(0), default=0, metavar="N", help="Which NIC of the VM.  [default: 0]"),
        click.option(
            "--filter", "expression", default="", metavar="TEXT",
            help="Only these packets, in tcpdump's words: 'tcp port 443 and not host 10.1.1.9'.",
        ),
        click.option(
            "--direction", type=click.Choice(["ingress", "egress", "both"]), default="both", show_default=True,
            help="As the VM sees it: ingress is what it receives.",
        ),
        click.option("--snap", type=click.IntRange(0), default=0, metavar="BYTES", help="Keep so much of each packet; 0: all."),
        click.option("--sample", type=click.IntRange(1), default=1, metavar="N", help="Take one packet of N."),
        click.option(
            "--duration", type=Duration(), default=None, metavar="TIME", help="End after this time: 10m.  [default: 1h]"
        ),
        click.option("--keep", is_flag=True, help="Leave the session; `watch session/NAME` goes on with it."),
        account_option,
    )  # fmt: skip
    for option in reversed(options):
        function = option(function)
    return function


class Watched:
    """A session, and whether it is ours to end."""

    def __init__(self, session: Session, resource: Json, *, is_ours: bool) -> None:
        self.session = session
        self.resource = resource
        self.is_ours = is_ours
        """Made for this command, and not to be kept."""

    @property
    def path(self) -> str:
        """Where the session is."""
        return f"{root(MIRROR)}/{segment(self.resource['id'])}"

    @property
    def query(self) -> list[tuple[str, str]]:
        """Which account is meant."""
        return [("account", self.resource["account"])]

    def look(self) -> Json:
        """Return the session as it is now. Raises: Failure."""
        self.resource = self.session.client.get(self.path, self.query)
        return self.resource

    def until_ready(self, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        """Wait until it runs, saying why it does not. Raises: Failure."""
        self.resource = wait_for(self.session, MIRROR, [self.resource], READY, timeout_s)[0]

    def end(self) -> None:
        """Let it copy nothing more; its counts stay. Not ours: nothing."""
        if self.is_ours:
            with contextlib.suppress(Failure):
                self.session.client.send("PATCH", self.path, self.query, {"desired": {"duration_s": 1}})

    def last_counts(self, patience_s: float) -> Json:
        """Return its counts when all hosts said their last, or after ``patience_s``."""
        until = time.monotonic() + patience_s
        with contextlib.suppress(Failure), Progress() as progress:
            while not is_over(self.look()) and self.is_ours and time.monotonic() < until:
                progress.say("waits for the last counts; ctrl-C goes on without them")
                time.sleep(LOOK_S)
        return dict((self.resource["observed"] or {}).get("counts", {}))

    def delete(self) -> None:
        """Delete it. Gone already: nothing. A server that is away is told of, as the session ends by itself."""
        try:
            self.session.client.delete(self.path, self.query)
        except Failure as failure:
            if failure.exit_code != NOT_FOUND:
                name = self.resource["name"]
                sys.stderr.write(f"{noun(MIRROR, self.resource)} is still there: {failure.message}\n")
                sys.stderr.write(f"hint: `pileus delete session {name}` removes it\n")


def is_over(resource: Json) -> bool:
    """Tell whether the session has ended, and all its counts are in."""
    return bool((resource["observed"] or {}).get("state") == "ended")


@contextlib.contextmanager
def watched(session: Session, words: Sequence[str], options: Json) -> Iterator[Watched]:
    """Give the session that is there, or one made for the block, running; gone at its end unless --keep."""
    name = _session_name(words)
    if name:
        _refuse_flags(options)
        found = Watched(session, session.get(MIRROR, name, options["account"]), is_ours=False)
        found.until_ready()
        yield found
        return
    made = _make(session, words, options)
    signal.signal(signal.SIGTERM, _terminated)  # until the end of this command
    try:
        made.until_ready()
        yield made
    finally:
        if options["keep"]:
            sys.stderr.write(
                f"{noun(MIRROR, made.resource)} stays; `pileus delete session {made.resource['name']}` ends it\n"
            )
        else:
            made.delete()


def _terminated(number: int, _frame: object) -> NoReturn:
    """Raises: SystemExit, so that what was made is deleted first."""
    raise SystemExit(128 + number)


def _session_name(words: Sequence[str]) -> str:
    """Return the name of the session that is meant; empty: a VM is. Raises: UsageError."""
    word, slash, name = words[0].partition("/")
    if word not in WORDS:
        return ""
    rest = [name, *words[1:]] if slash else list(words[1:])
    if len(rest) != 1 or not rest[0]:
        raise click.UsageError("name one session, such as session/web-1")
    return rest[0]


def _refuse_flags(options: Json) -> None:
    """Raises: UsageError for what only a session that is made could do."""
    context = click.get_current_context()
    for name, flag in (("nic", "--nic"), ("expression", "--filter"), ("direction", "--direction"), ("snap", "--snap"),
                       ("sample", "--sample"), ("duration", "--duration"), ("keep", "--keep")):  # fmt: skip
        if context.get_parameter_source(name) is not click.core.ParameterSource.DEFAULT:
            raise click.UsageError(
                f"{flag} is for a session that is made; this one is there: `pileus patch session` changes it"
            )


def _make(session: Session, words: Sequence[str], options: Json) -> Watched:
    from pileus.mirror.filter.language import FilterError, parse

    name, rest = split(words, "packets")
    if rest:
        raise click.UsageError(f"\"{rest[0]}\" is one word too many; a filter is given as --filter 'tcp port 443'")
    try:
        parse(options["expression"])
    except FilterError as error:
        for line in error.picture.splitlines():
            sys.stderr.write(f"  {click.unstyle(line)}\n")
        raise click.UsageError(error.message, click.get_current_context()) from None
    vm = session.get(VM, name, options["account"])
    desired: Json = {"vm": vm["id"]}
    given = {
        "nic": options["nic"], "expression": options["expression"], "direction": options["direction"],
        "snap_bytes": options["snap"], "sample_one_in": options["sample"], "duration_s": options["duration"],
    }  # fmt: skip
    desired.update((field, value) for field, value in given.items() if value not in (None, ""))
    body = {
        "name": f"watch-{vm['name'][:NAME_MAX]}-{secrets.token_hex(3)}", "account": vm["account"], "desired": desired
    }  # fmt: skip
    return Watched(session, session.client.send("POST", root(MIRROR), (), body), is_ours=not options["keep"])


def _complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    word, slash, start = incomplete.partition("/")
    if slash and word in WORDS:
        return [CompletionItem(f"{word}/{item.value}") for item in complete_names(ctx, MIRROR.name, start)]
    prefix = f"{VM.short}/" if slash and word == VM.short else ""
    return [
        CompletionItem(f"{prefix}{item.value}")
        for item in complete_names(ctx, VM.name, incomplete.removeprefix(prefix))
    ]
