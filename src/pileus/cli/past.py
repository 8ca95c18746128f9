"""The past of a monitor's appliances, from a file that was pulled or from the customer's PostgreSQL."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from pileus.cli.client import Json
from pileus.cli.failure import REFUSED, USAGE, Failure, usage
from pileus.cli.historyfile import opened
from pileus.kernel.clock import unix
from pileus.monitor.simulation import Moment
from pileus.monitor.state.types import StateObserved

PAGE = 1000
TIMEOUT_S = 60.0
SCHEMES = ("postgresql://", "postgres://")
SELECT = (
    "SELECT seq, at, kind, body::text FROM pileus_history"
    " WHERE stream = $1 AND seq > $2 AND kind IN ('state', 'gone') ORDER BY seq LIMIT $3"
)

Row = tuple[int, float, str, str]
"""Number, Unix seconds, kind, JSON."""


class Past(msgspec.Struct, frozen=True):
    """``moments``: in their order; ``until``: Unix seconds up to which nothing else was, 0: not known."""

    moments: Iterator[Moment]
    until: float


class _Body(msgspec.Struct, frozen=True):
    vm: str
    name: str = ""
    row: StateObserved | None = None


@contextlib.contextmanager
def past(source: str, monitor: Json, histories: Iterable[Json]) -> Iterator[Past]:
    """Give what ``source`` knows of the monitor for the block. ``histories``: of the monitor's account. Raises: Failure."""
    if source.startswith(SCHEMES):
        with _of_database(source, _stream(monitor, histories)) as found:
            yield found
        return
    with opened(Path(source)) as file:
        stream = file.stream
        if stream.account != monitor["account"] or stream.monitor not in (monitor["name"], monitor["id"]):
            raise Failure(
                f"{source} has the past of monitor {stream.monitor} of account {stream.account}, and the policy is of "
                f"{monitor['name']} of account {monitor['account']}",
                exit_code=REFUSED,
            )
        until = unix(stream.pulled_at) if stream.pulled_at else 0.0
        yield Past(read_moments(((seq, unix(at), kind, body) for seq, at, kind, body in file.entries()), source), until)


def _stream(monitor: Json, histories: Iterable[Json]) -> str:
    """Return the id of the monitor's history. Raises: Failure."""
    names = (monitor["name"], monitor["id"])
    found = next((each["id"] for each in histories if each["desired"]["monitor"] in names), "")
    if not found:
        raise usage(f"monitor {monitor['name']} has no history, so no rows of a database are known to be its own")
    return str(found)


def read_moments(rows: Iterable[Row], source: str) -> Iterator[Moment]:
    """Yield what entries say of appliances. Raises: Failure."""
    for seq, at, kind, text in rows:
        if kind not in ("state", "gone"):
            continue
        try:
            body = msgspec.json.decode(text, type=_Body)
        except msgspec.MsgspecError as error:
            raise Failure(f"{source}: entry {seq} is no {kind} of an appliance: {error}", exit_code=REFUSED) from None
        yield Moment(at, body.vm, body.name, body.row if kind == "state" else None)


@contextlib.contextmanager
def _of_database(url: str, stream: str) -> Iterator[Past]:
    import asyncpg

    failures = (OSError, ValueError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError)
    shown = url.rpartition("@")[2]

    def failure(error: BaseException) -> Failure:
        return Failure(f"cannot read {shown}: {str(error) or type(error).__name__}", exit_code=USAGE)

    with asyncio.Runner() as runner:
        try:
            connection = runner.run(asyncpg.connect(url, timeout=TIMEOUT_S, command_timeout=TIMEOUT_S))
        except failures as error:
            raise failure(error) from None

        async def page(after: int) -> list[Any]:
            rows: list[Any] = await connection.fetch(SELECT, stream, after, PAGE)
            return rows

        def rows() -> Iterator[Row]:
            after = 0
            while found := runner.run(page(after)):
                yield from ((each[0], each[1].timestamp(), each[2], each[3]) for each in found)
                after = found[-1][0]

        try:
            yield Past(read_moments(rows(), shown), 0.0)
        except failures as error:
            raise failure(error) from None
        finally:
            connection.terminate()
