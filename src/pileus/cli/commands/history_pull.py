"""``pileus history pull``: what waits of a history goes into a file, and only then the cloud is told that it is kept.

Whatever ends the command in between, the next one goes on: entries that come twice are passed over, and what the cloud was
not told of is there again.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import click
import msgspec
from click.shell_completion import CompletionItem

from pileus.cli.client import segment
from pileus.cli.completing import complete_names
from pileus.cli.failure import BUG, UNREACHABLE, Failure
from pileus.cli.historyfile import Entry, HistoryFile, Stream, opened
from pileus.cli.progress import Progress
from pileus.cli.session import Session, account_option, noun, root
from pileus.kernel.clock import unix
from pileus.kernel.kind import Kind
from pileus.registry import KINDS

HISTORY: Kind = KINDS["monitor.history"]
LOOK_S = 2.0
"""How late ``--follow`` has what is new, and how soon it tries again."""

SAY_S = 5.0
"""Between two notes in the file that it had everything."""


class Page(msgspec.Struct, frozen=True):
    """The oldest entries that wait. ``taken``: the last that somebody keeps; ``dropped``: how many went for want of room."""

    stream: str
    at: str
    items: tuple[Entry, ...]
    taken: int
    dropped: int


def _names(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    return complete_names(ctx, HISTORY.name, incomplete)


@click.command("pull", no_args_is_help=True)
@click.argument("name", shell_complete=_names)
@click.option(
    "--to", metavar="FILE", required=True, type=click.Path(path_type=Path), help="An SQLite file; made if new."
)
@account_option
@click.option("-f", "--follow", is_flag=True, help="Go on with what comes until ctrl-C.")
@click.option("--keep", is_flag=True, help="Leave it in the cloud, too: for those who may only read.")
@click.pass_obj
def command(session: Session, /, name: str, to: Path, account: str, *, follow: bool, keep: bool) -> None:
    """Fetch a history of form sqlite into a file: `pileus history pull trial --to states.db`."""
    history = session.get(HISTORY, name, account)
    monitor = history["desired"]["monitor"]
    stream = Stream(id=history["id"], history=history["name"], account=history["account"], monitor=monitor)
    path = f"{root(HISTORY)}/{segment(history['id'])}/entries"
    with opened(to, stream) as file:
        pulling = Pulling(session, path, file, history["account"], keep=keep)
        if follow:
            _follow(pulling)
            return
        new = pulling.all()
        click.echo(f"{to} has {new} more {_entries(new)} of {noun(HISTORY, history)}, {file.count} in all")


def _entries(count: int) -> str:
    return "entry" if count == 1 else "entries"


def _follow(pulling: Pulling) -> None:
    with Progress() as progress:
        while True:
            try:
                if new := pulling.all():
                    progress.erase()
                    click.echo(f"{pulling.file.path} has {new} more {_entries(new)}")
            except Failure as failure:
                if failure.exit_code != UNREACHABLE:
                    raise
                progress.say(failure.message)
            time.sleep(LOOK_S)


class Pulling:
    """Brings a file to what the cloud has."""

    def __init__(self, session: Session, path: str, file: HistoryFile, account: str, *, keep: bool) -> None:
        self._session, self._path, self.file = session, path, file
        self._query = [("account", account)]
        self._keep = keep

    def all(self) -> int:
        """Return how many entries were new; none waits then. Raises: Failure."""
        new, last = 0, self.file.last
        while True:
            page = self._page(last)
            self._warn(page, last)
            if page.items:
                self.file.append(page.items, page.dropped)
            elif page.dropped != self.file.stream.dropped or self._is_late(page.at):
                self.file.append((), page.dropped, page.at)
            new, last = new + len(page.items), page.items[-1].seq if page.items else last
            if last > page.taken and not self._keep:
                self._forget(last)
            if not page.items:
                return new

    def _page(self, after: int) -> Page:
        answer = self._session.client.request("GET", self._path, [*self._query, ("after", str(after))])
        try:
            page = msgspec.json.decode(answer.body, type=Page)
        except msgspec.MsgspecError:
            raise Failure("the server's answer is no page of a history", exit_code=BUG) from None
        numbers = [after, *(each.seq for each in page.items)]
        if page.stream != self.file.stream.id or numbers != sorted(set(numbers)):
            raise Failure("the server's answer is of another history, or not in order", exit_code=BUG)
        return page

    def _is_late(self, at: str) -> bool:
        """Tell whether the file should say again that it has everything: at the end of a pull, now and then of a long one."""
        known = self.file.stream.pulled_at
        return not known or unix(at) - unix(known) >= SAY_S

    def _forget(self, until: int) -> None:
        try:
            self._session.client.delete(self._path, [*self._query, ("until", str(until))])
        except Failure as failure:
            if failure.code == "denied":
                failure.hint = "what was fetched is in the file; with --keep the cloud is not asked to forget it"
            raise

    def _warn(self, page: Page, last: int) -> None:
        """Say what the file will never have."""
        dropped = page.dropped - self.file.stream.dropped
        if dropped > 0:
            sys.stderr.write(f"warning: {dropped} entries went in the cloud: more waited than its waiting_max\n")
        if page.taken > last:
            sys.stderr.write(
                f"warning: entries up to number {page.taken} were pulled elsewhere; they are not in this file\n"
            )
