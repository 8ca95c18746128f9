"""A file that says that it has a history, and does not."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from pileus.cli.failure import Failure
from pileus.cli.historyfile import APPLICATION_ID, Stream, opened


def test_a_file_of_nobodys_history_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "states.db"
    with opened(path, Stream(id="s", history="h", account="a", monitor="m")):
        pass
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("DELETE FROM pileus_stream")
        assert connection.execute("PRAGMA application_id").fetchone()[0] == APPLICATION_ID
    with pytest.raises(Failure, match="does not say whose history"), opened(path):
        pass
