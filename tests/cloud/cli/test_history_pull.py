"""``pileus history pull``: whatever is killed in between, the file has everything once, in order, and nothing else."""

from __future__ import annotations

import asyncio
import json
import random
import resource
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pileus.cli import contexts
from pileus.cli.contexts import Context
from pileus.cli.failure import OK, REFUSED, UNREACHABLE, USAGE
from pileus.kernel.transaction import Transaction

if TYPE_CHECKING:
    from tests.cloud.cli.cli_world import Cloud
    from tests.cloud.cli.conftest import Run
else:
    Cloud = Run = Any

STATE = {"vm": "vm-1", "name": "web", "row": {"execution": {"state": "running"}, "applications": {"shop": {}}}}
ACTION = {
    "id": "action-1", "vm": "vm-1", "state": "done", "steps": [{"do": "restart"}],
    "cause": {"actor": "monitor watch", "cause": "it is down", "key": "p/vm-1//1"},
}  # fmt: skip


class Trial:
    """A history of form sqlite, into which a test notes."""

    def __init__(self, cloud: Cloud, pileus: Run, account: str, name: str = "trial") -> None:
        self.cloud, self.pileus, self.account, self.name = cloud, pileus, account, name
        self.noted = 0
        monitor = f"of-{name}"
        assert pileus("create", "monitor", monitor, "--account", account).code == OK
        made = pileus("create", "history", name, "--account", account, "--monitor", monitor, "--form", "sqlite")
        assert made.code == OK, made.err
        self.id = pileus("get", "history", name, "--account", account, "-o", "json").json["id"]

    def note(self, *bodies: dict[str, Any], kind: str = "state") -> None:
        """Note entries, as a watcher's transaction does."""

        async def work(tx: Transaction) -> None:
            for body in bodies:
                await tx.note(self.id, kind, json.dumps(body))

        store = self.cloud.started.parts.store
        asyncio.run_coroutine_threadsafe(store.write(work), self.cloud.loop).result(60)

    def number(self, count: int) -> None:
        """Note so many entries that carry their numbers."""
        self.note(*({**STATE, "number": self.noted + place, "said": "x" * 300} for place in range(count)))
        self.noted += count

    def pull(self, to: Path, *more: str) -> Any:
        """Run the command."""
        return self.pileus("history", "pull", self.name, "--account", self.account, "--to", str(to), *more)

    @property
    def waiting(self) -> int:
        """How much the cloud keeps still."""
        path = f"/v1/monitor.history/{self.id}/entries"
        found = self.cloud_get(path)
        return len(found["items"])

    def cloud_get(self, path: str) -> dict[str, Any]:
        """Ask the server as the operator."""
        from pileus.cli.client import Client

        with Client(self.cloud.operator) as client:
            return client.get(path, [("account", self.account)])


@pytest.fixture
def trial(cloud: Cloud, pileus: Run, account: str) -> Trial:
    """A history of form sqlite."""
    return Trial(cloud, pileus, account)


def rows(path: Path, statement: str) -> list[tuple[Any, ...]]:
    """Return what the user sees in the file."""
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        return connection.execute(statement).fetchall()
    finally:
        connection.close()


def numbers(path: Path) -> list[int]:
    """Return the entries' numbers in the order in which they were written."""
    return [number for (number,) in rows(path, "SELECT body ->> '$.number' FROM pileus_history ORDER BY rowid")]


def test_the_file_has_the_tables_and_views_that_a_postgresql_gets(trial: Trial, tmp_path: Path) -> None:
    file = tmp_path / "states.db"
    trial.note(STATE)
    trial.note(ACTION, kind="action")
    ran = trial.pull(file)
    assert (ran.code, ran.err) == (OK, "")
    assert ran.out == f"{file} has 2 more entries of history trial of account {trial.account}, 2 in all\n"
    assert file.stat().st_mode & 0o777 == 0o600, "what appliances say is nobody else's"
    told = rows(file, "SELECT stream, vm, name, state, details ->> '$.applications' FROM pileus_state")
    assert told == [(trial.id, "vm-1", "web", "running", '{"shop":{}}')]
    told = rows(file, "SELECT action, vm, state, actor, cause, idempotency_key, steps ->> '$[0].do' FROM pileus_action")
    assert told == [("action-1", "vm-1", "done", "monitor watch", "it is down", "p/vm-1//1", "restart")]
    assert trial.waiting == 0, "the cloud forgets what is kept"
    assert trial.pull(file).out.startswith(f"{file} has 0 more entries")


def test_a_history_that_goes_to_a_postgresql_is_not_pulled(pileus: Run, account: str, tmp_path: Path) -> None:
    assert pileus("create", "monitor", "watch", "--account", account).code == OK
    place = ("--host", "db.example.com", "--database", "d", "--user", "u")
    ran = pileus("create", "history", "h", "--account", account, "--monitor", "watch")
    assert "a PostgreSQL needs host, database, user" in ran.err
    ran = pileus("create", "history", "h", "--account", account, "--monitor", "watch", "--form", "sqlite", *place)
    assert "leave out host, database, user" in ran.err
    assert pileus("create", "history", "h", "--account", account, "--monitor", "watch", *place).code == OK
    ran = pileus("history", "pull", "h", "--account", account, "--to", str(tmp_path / "states.db"))
    assert ran.code == REFUSED
    assert "only one of form=sqlite is pulled" in ran.err


def test_of_two_who_pull_the_one_that_comes_late_learns_what_it_lacks(trial: Trial, tmp_path: Path) -> None:
    trial.number(700)
    copied = trial.pull(tmp_path / "copy.db", "--keep")
    assert (copied.code, copied.err) == (OK, "")
    assert trial.waiting == 500, "all are there still, of which so many are said at once"
    assert trial.pull(tmp_path / "one.db").code == OK
    trial.number(10)
    assert trial.pull(tmp_path / "one.db").code == OK
    late = trial.pull(tmp_path / "copy.db")
    assert "warning: entries up to number" in late.err
    assert "pulled elsewhere" in late.err
    assert numbers(tmp_path / "one.db") == list(range(710))
    assert numbers(tmp_path / "copy.db") == list(range(700))


def test_whoever_may_only_read_gets_it_and_takes_nothing_away(
    trial: Trial, pileus: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial.number(3)
    assert pileus("create", "user", "ann", "--account", trial.account, "--role", "reader").code == OK
    made = pileus("create", "key", "ann-key", "--account", trial.account, "--user", "ann", "-o", "json")
    key = made.json["secret"]
    operator = trial.cloud.operator
    contexts.put("ann", Context(server=operator.server, ca=operator.ca, key=key, account=trial.account))
    file = tmp_path / "states.db"
    ran = pileus("--context", "ann", "history", "pull", "trial", "--to", str(file), "--keep")
    assert (ran.code, ran.err) == (OK, "")
    ran = pileus("--context", "ann", "history", "pull", "trial", "--to", str(file))
    assert ran.code == REFUSED
    assert "user ann (role reader) may not update monitor.history" in ran.err
    assert "with --keep the cloud is not asked to forget it" in ran.err
    assert trial.waiting == 3
    assert numbers(file) == [0, 1, 2]


def test_wrong_files_are_refused_in_words_and_stay_as_they_are(
    trial: Trial, cloud: Cloud, pileus: Run, account: str, tmp_path: Path
) -> None:
    trial.number(3)
    other = Trial(cloud, pileus, account, "other")
    assert other.pull(tmp_path / "other.db").code == OK
    (tmp_path / "text.db").write_text("this is no database, " * 100)
    foreign = sqlite3.connect(tmp_path / "foreign.db")
    foreign.execute("CREATE TABLE bookmarks (url TEXT)")
    foreign.close()
    (tmp_path / "folder.db").mkdir()
    (tmp_path / "damaged.db").write_bytes((tmp_path / "other.db").read_bytes()[:5000] + b"\xff" * 20_000)
    wrong = {
        "text.db": "is no SQLite database",
        "foreign.db": "is a database of something else, and stays as it is",
        "other.db": f"has another history: other of account {account}",
        "folder.db": "cannot be opened: Is a directory",
        "missing/states.db": "cannot be opened: No such file or directory",
        "damaged.db": "is damaged",
    }
    for name, words in wrong.items():
        path = tmp_path / name
        before = path.read_bytes() if path.is_file() else b""
        ran = trial.pull(path)
        assert (ran.code, words in ran.err) == (REFUSED, True), (name, ran.err)
        assert not path.is_file() or path.read_bytes() == before
    assert trial.waiting == 3
    assert trial.pileus("history", "pull", "trial", "--account", account).code == USAGE


def test_a_file_that_another_program_holds_is_left_alone(
    trial: Trial, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pileus.cli.historyfile.BUSY_S", 0.2)
    trial.number(3)
    file = tmp_path / "states.db"
    assert trial.pull(file).code == OK
    holder = sqlite3.connect(file, isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    trial.number(2)
    ran = trial.pull(file)
    assert (ran.code, "is locked by another program" in ran.err) == (REFUSED, True), ran.err
    holder.close()
    assert trial.pull(file).code == OK
    assert numbers(file) == list(range(5))


def command(trial: Trial, file: Path, *more: str) -> list[str]:
    """Return the command as a process of its own."""
    account = ("--account", trial.account)
    return [sys.executable, "-m", "pileus.cli.main", "history", "pull", trial.name, *account, "--to", str(file), *more]


def test_a_full_disk_loses_nothing(trial: Trial, tmp_path: Path) -> None:
    file = tmp_path / "states.db"
    trial.number(2000)

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))

    full = subprocess.run(
        command(trial, file), preexec_fn=limit, capture_output=True, text=True, timeout=60, check=False
    )
    assert full.returncode == REFUSED, full.stderr
    assert "nothing is lost: what is not in the file waits in the cloud" in full.stderr
    assert trial.pull(file).code == OK
    assert numbers(file) == list(range(2000))


@contextmanager
def following(trial: Trial, file: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Let the command follow for the block; it is killed at the end if it was not before."""
    process = subprocess.Popen(command(trial, file, "--follow"), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_a_command_that_is_killed_anywhere_leaves_all_of_it_once_and_in_order(trial: Trial, tmp_path: Path) -> None:
    seed = int(time.time())
    print(f"seed {seed}")
    chance = random.Random(seed)
    file = tmp_path / "states.db"
    killed = 0
    for _ in range(8):
        trial.number(chance.randint(1, 1500))
        process = subprocess.Popen(command(trial, file), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            process.wait(chance.uniform(0.25, 1.2))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            killed += 1
        process.wait()
    assert trial.pull(file).code == OK
    assert numbers(file) == list(range(trial.noted))
    assert trial.waiting == 0
    print(f"{killed} of 8 were killed, {trial.noted} entries")


def test_an_answer_that_is_lost_after_the_file_has_it_makes_nothing_twice(
    trial: Trial, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pileus.cli.client import Client
    from pileus.cli.failure import Failure

    file = tmp_path / "states.db"
    trial.number(1200)
    real = Client.delete
    lost = iter((True, False, True, False))

    def delete(client: Client, path: str, query: Any) -> Any:
        answer = real(client, path, query) if not (is_lost := next(lost, False)) else {}
        if is_lost:
            raise Failure("the answer was lost", exit_code=UNREACHABLE)
        return answer

    monkeypatch.setattr(Client, "delete", delete)
    assert trial.pull(file).code == UNREACHABLE
    assert trial.waiting == 500
    assert trial.pull(file).code == UNREACHABLE
    trial.number(5)
    assert trial.pull(file).code == OK
    assert numbers(file) == list(range(1205))
    assert trial.waiting == 0


@pytest.mark.long
def test_following_has_what_comes_and_ends_with_ctrl_c(trial: Trial, tmp_path: Path) -> None:
    file = tmp_path / "states.db"
    trial.number(1)
    with following(trial, file) as process:
        assert process.stdout is not None
        assert b"has 1 more entry" in process.stdout.readline()
        for _ in range(3):
            trial.number(2)
            while len(numbers(file)) < trial.noted:
                assert b" more entr" in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 130
    assert numbers(file) == list(range(trial.noted))
