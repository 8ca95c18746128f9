"""Debian's PostgreSQL 15 for tests: one cluster per run on loopback, one fresh database per test."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest

BIN = Path("/usr/lib/postgresql/15/bin")
USER = "postgres"
START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 30.0
FAST = ("fsync=off", "synchronous_commit=off", "full_page_writes=off", "shared_buffers=32MB", "max_connections=60")
"""What a crash of the machine would do to test data is of no interest."""


class Postgres:
    """A running cluster."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._password = secrets.token_hex(16)
        self._port = 0
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Make the cluster and wait until it answers."""
        key = self._folder / "password"
        key.write_text(self._password)
        if os.geteuid() == 0:
            for path in (self._folder, key):
                shutil.chown(path, USER)
        self._run("initdb", "--no-sync", "--auth=scram-sha-256", f"--pwfile={key}", "-U", USER, "-D", "data")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        options = [part for option in FAST for part in ("-c", option)]
        arguments = ["-D", "data", "-p", str(self._port), "-h", "127.0.0.1", "-k", str(self._folder), *options]
        with (self._folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [BIN / "postgres", *arguments], cwd=self._folder, user=_user(), stdout=log, stderr=log
            )
        asyncio.run(self._answers())

    def stop(self) -> None:
        """End it at once; the folder's owner removes the files."""
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)  # fast shutdown: open sessions are ended
            self._process.wait(STOP_TIMEOUT_S)

    def url(self, database: str) -> str:
        """Return the URL of a database of the cluster."""
        return f"postgresql://{USER}:{self._password}@127.0.0.1:{self._port}/{database}"

    async def _answers(self) -> None:
        async with asyncio.timeout(START_TIMEOUT_S):
            while True:
                try:
                    connection = await asyncpg.connect(self.url("postgres"))
                except (OSError, asyncpg.PostgresError):
                    await asyncio.sleep(0.05)
                    continue
                await connection.close()
                return

    async def execute(self, statement: str) -> None:
        """Run one statement in the cluster's own database."""
        connection = await asyncpg.connect(self.url("postgres"))
        try:
            await connection.execute(statement)
        finally:
            await connection.close()

    def _run(self, program: str, *arguments: str) -> None:
        subprocess.run([BIN / program, *arguments], cwd=self._folder, user=_user(), check=True, capture_output=True)


def _user() -> str | None:
    return USER if os.geteuid() == 0 else None


_running: list[Postgres] = []
_users: list[object] = []


@contextlib.contextmanager
def running() -> Iterator[Postgres]:
    """Give the run's one cluster; whoever leaves last stops it."""
    if not _running:
        folder = Path(tempfile.mkdtemp(prefix="pileus-pg-", dir="/dev/shm"))
        _running.append(Postgres(folder))
        _running[0].start()
    cluster, user = _running[0], object()
    _users.append(user)
    try:
        yield cluster
    finally:
        _users.remove(user)
        if not _users:
            _running.clear()
            cluster.stop()
            shutil.rmtree(cluster._folder, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """The run's cluster; skips where PostgreSQL 15 is not installed."""
    if not (BIN / "postgres").exists():
        pytest.skip("PostgreSQL 15 is not installed: apt-get install postgresql-15")
    with running() as cluster:
        yield cluster


@contextlib.contextmanager
def database(cluster: Postgres) -> Iterator[str]:
    """Give the URL of a fresh database until the block ends."""
    name = f"t{uuid.uuid4().hex}"
    asyncio.run(cluster.execute(f"CREATE DATABASE {name}"))
    try:
        yield cluster.url(name)
    finally:
        asyncio.run(cluster.execute(f"DROP DATABASE {name} WITH (FORCE)"))


@pytest.fixture
def postgres_url(postgres: Postgres) -> Iterator[str]:
    """The URL of a fresh database."""
    with database(postgres) as url:
        yield url
