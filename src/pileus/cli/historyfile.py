"""A file of the user's with a monitor's history: SQLite, with the tables and views that a PostgreSQL gets."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from pileus.cli.failure import REFUSED, USAGE, Failure

APPLICATION_ID = 0x50494C48
"""Marks the file as one of ours. Source: SQLite, PRAGMA application_id."""
PAGE = 1000
BUSY_S = 10.0
"""How long another program may have it locked."""

SCHEMA = """
CREATE TABLE pileus_history (
    stream TEXT NOT NULL,
    seq INTEGER NOT NULL,
    at TEXT NOT NULL,
    kind TEXT NOT NULL,
    body TEXT NOT NULL,
    PRIMARY KEY (stream, seq)
);
CREATE TABLE pileus_stream (
    stream TEXT PRIMARY KEY,
    history TEXT NOT NULL,
    account TEXT NOT NULL,
    monitor TEXT NOT NULL,
    dropped INTEGER NOT NULL,
    pulled_at TEXT NOT NULL
);
CREATE VIEW pileus_state AS
    SELECT stream, seq, at, json_extract(body, '$.vm') AS vm, json_extract(body, '$.name') AS name,
           json_extract(body, '$.row.execution.state') AS state, json_extract(body, '$.row') AS details
    FROM pileus_history WHERE kind = 'state';
CREATE VIEW pileus_action AS
    SELECT stream, seq, at, json_extract(body, '$.id') AS action, json_extract(body, '$.vm') AS vm,
           json_extract(body, '$.state') AS state, json_extract(body, '$.cause.actor') AS actor,
           json_extract(body, '$.cause.cause') AS cause, json_extract(body, '$.cause.key') AS idempotency_key,
           json_extract(body, '$.steps') AS steps
    FROM pileus_history WHERE kind = 'action';
"""


class Entry(msgspec.Struct, frozen=True):
    """An entry of a history. ``at``: RFC 3339; ``body``: JSON."""

    seq: int
    at: str
    kind: str
    body: msgspec.Raw


class Stream(msgspec.Struct, frozen=True, kw_only=True):
    """Whose history a file has. ``id``: of the history; ``dropped``: entries that went in the cloud before they were pulled.

    ``pulled_at``: RFC 3339; up to then it has all that there was.
    """

    id: str
    history: str
    account: str
    monitor: str
    dropped: int = 0
    pulled_at: str = ""


class HistoryFile:
    """An open file. Raises: Failure from everything, with what is wrong with it."""

    def __init__(self, path: Path, connection: sqlite3.Connection, stream: Stream) -> None:
        self.path, self.stream = path, stream
        self._connection = connection

    @property
    def last(self) -> int:
        """The ``seq`` of the last entry; 0 without any."""
        with _telling(self.path):
            row = self._connection.execute("SELECT max(seq) FROM pileus_history WHERE stream = ?", (self.stream.id,))
            return int(row.fetchone()[0] or 0)

    @property
    def count(self) -> int:
        """How many entries it has."""
        with _telling(self.path):
            return int(self._connection.execute("SELECT count(*) FROM pileus_history").fetchone()[0])

    def append(self, entries: Sequence[Entry], dropped: int, pulled_at: str = "") -> None:
        """Keep the entries, all or none of them; they are on the disk then. One that is there already is passed over.

        ``pulled_at``: when these were the last ones; empty: they are not.
        """
        at = pulled_at or self.stream.pulled_at
        rows = [(self.stream.id, each.seq, each.at, each.kind, bytes(each.body).decode()) for each in entries]
        with _telling(self.path), _transaction(self._connection):
            self._connection.executemany("INSERT OR IGNORE INTO pileus_history VALUES (?, ?, ?, ?, ?)", rows)
            self._connection.execute("UPDATE pileus_stream SET dropped = ?, pulled_at = ?", (dropped, at))
        self.stream = msgspec.structs.replace(self.stream, dropped=dropped, pulled_at=at)

    def entries(self) -> Iterator[tuple[int, str, str, str]]:
        """Yield (seq, at, kind, body) of all entries, in order. Some at once: whoever pulls meanwhile is not held up."""
        after = 0
        statement = "SELECT seq, at, kind, body FROM pileus_history WHERE stream = ? AND seq > ? ORDER BY seq LIMIT ?"
        while True:
            with _telling(self.path):
                rows = self._connection.execute(statement, (self.stream.id, after, PAGE)).fetchall()
            if not rows:
                return
            yield from rows
            after = rows[-1][0]


@contextlib.contextmanager
def opened(path: Path, stream: Stream | None = None) -> Iterator[HistoryFile]:
    """Give the file for the block; made when there is none and it is said whose it becomes, else it has to be that one's.

    Raises: Failure.
    """
    if stream is None and not path.exists():
        raise Failure(f"there is no file {path}", exit_code=USAGE, hint="`pileus history pull` makes one")
    with _telling(path):
        if stream is not None:
            # For its user's eyes only: it has what appliances say of themselves.
            os.close(os.open(path, os.O_CREAT | os.O_RDONLY | os.O_CLOEXEC, 0o600))
        mode = "rw" if stream is not None else "ro"
        connection = sqlite3.connect(
            f"{path.absolute().as_uri()}?mode={mode}", uri=True, timeout=BUSY_S, isolation_level=None
        )
    with contextlib.closing(connection):
        with _telling(path):
            connection.execute("PRAGMA synchronous = FULL")
            if stream is not None:
                with _transaction(connection):
                    _begin(connection, stream)
            found = _found(connection, path)
        if stream is not None and found.id != stream.id:
            raise Failure(
                f"{path} has another history: {found.history} of account {found.account}, id {found.id}",
                exit_code=REFUSED,
                hint="each history has a file of its own: name another",
            )
        yield HistoryFile(path, connection, found)


def _begin(connection: sqlite3.Connection, stream: Stream) -> None:
    """Make an empty file that history's."""
    mark = connection.execute("PRAGMA application_id").fetchone()[0]
    if mark or connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
        return
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    for statement in filter(str.strip, SCHEMA.split(";")):
        connection.execute(statement)
    row = (stream.id, stream.history, stream.account, stream.monitor, 0, "")
    connection.execute("INSERT INTO pileus_stream VALUES (?, ?, ?, ?, ?, ?)", row)


def _found(connection: sqlite3.Connection, path: Path) -> Stream:
    """Return whose history it has. Raises: Failure."""
    if connection.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
        raise Failure(
            f"{path} has no history of a monitor: it is a database of something else, and stays as it is",
            exit_code=REFUSED,
            hint="name another file",
        )
    row = connection.execute(
        "SELECT stream, history, account, monitor, dropped, pulled_at FROM pileus_stream"
    ).fetchone()
    if row is None:
        raise _failure(path, "is damaged: it does not say whose history it has")
    return Stream(**dict(zip(Stream.__struct_fields__, row, strict=True)))


@contextlib.contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")


_WORDS = {
    "SQLITE_NOTADB": "is no SQLite database",
    "SQLITE_CORRUPT": "is damaged",
    "SQLITE_READONLY": "cannot be written: it, or its folder, is read-only",
    "SQLITE_CANTOPEN": "cannot be opened",
    "SQLITE_FULL": "cannot grow: the disk is full",
    "SQLITE_BUSY": f"is locked by another program for more than {BUSY_S:.0f} s",
}


@contextlib.contextmanager
def _telling(path: Path) -> Iterator[None]:
    """Turn what goes wrong with the file into words. Raises: Failure."""
    try:
        yield
    except OSError as error:
        raise _failure(path, f"cannot be opened: {error.strerror}") from None
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorname", "")
        word = next((words for known, words in _WORDS.items() if code.startswith(known)), f"cannot be used: {error}")
        raise _failure(path, word) from None


def _failure(path: Path, words: str) -> Failure:
    hint = "nothing is lost: what is not in the file waits in the cloud"
    return Failure(f"{path} {words}", exit_code=REFUSED, hint=hint)
