"""Clouds to measure: a lab of simulated hosts, a server on a database, each in processes and folders of its own."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import ssl
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import msgspec
from msgspec import Struct

from pileus.cli.contexts import Config, Context

PILEUS = (sys.executable, "-m", "pileus.cli.main")
STOP_TIMEOUT_S = 60.0
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class Api:
    """One kept-alive TLS connection. Answers are bytes; ``call`` decodes them. Raises: RuntimeError for a refusal."""

    def __init__(self, context: Context) -> None:
        where = urlsplit(context.server)
        tls = ssl.create_default_context(cadata=context.ca)
        self._connection = http.client.HTTPSConnection(where.hostname or "", where.port, context=tls, timeout=120)
        self._headers = {"Authorization": f"Bearer {context.key}", "Content-Type": "application/json"}

    def get(self, path: str, **query: object) -> bytes:
        """Return the answer's body."""
        return self._send("GET", f"{path}?{urlencode(query)}" if query else path, None)

    def call(self, method: str, path: str, body: object = None, **query: object) -> Any:
        """Return the answer, decoded."""
        target = f"{path}?{urlencode(query)}" if query else path
        return json.loads(self._send(method, target, None if body is None else msgspec.json.encode(body)))

    def _send(self, method: str, target: str, body: bytes | None) -> bytes:
        self._connection.request(method, target, body, self._headers)
        answer = self._connection.getresponse()
        text = answer.read()
        if answer.status >= 400:
            raise RuntimeError(f"{method} {target}: {answer.status} {text[:300]!r}")
        return text

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


class Lab(Struct, frozen=True):
    """A running lab: how to reach it, the processes of its server and hosts, and when its parts were up (seconds)."""

    context: Context
    server_pid: int
    hosts_pids: tuple[int, ...]
    answering_s: float
    ready_s: float


@contextlib.contextmanager
def folder(word: str) -> Iterator[Path]:
    """Give a folder for the block, with the contexts file of every command in it."""
    with tempfile.TemporaryDirectory(prefix=f"pileus-bench-{word}-", ignore_cleanup_errors=True) as name:
        os.environ["PILEUS_CONFIG"] = str(Path(name) / "config.json")
        yield Path(name)


def context_of(name: str) -> Context:
    """Return a context from the contexts file."""
    return msgspec.json.decode(Path(os.environ["PILEUS_CONFIG"]).read_bytes(), type=Config).contexts[name]


@contextlib.contextmanager
def lab(where: Path, hosts: int, *more: str) -> Iterator[Lab]:
    """Give a lab of simulated hosts for the block."""
    import time

    command = [*PILEUS, "lab", "--simulated", str(hosts), "--data", str(where / "lab"), "--port", "0", *more]
    began = time.monotonic()
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True)
    try:
        assert child.stdout is not None
        answering_s = 0.0
        for line in child.stdout:
            if line.startswith("server answers"):
                answering_s = time.monotonic() - began
            if line.startswith("the lab is ready"):
                break
        else:
            raise RuntimeError(f"the lab did not start; exit code {child.wait()}")
        ready_s = time.monotonic() - began
        server, *others = children(child.pid)
        yield Lab(context_of("lab"), server, tuple(others), answering_s, ready_s)
    finally:
        child.send_signal(signal.SIGTERM)
        assert child.stdout is not None
        child.stdout.close()
        child.wait(STOP_TIMEOUT_S)


@contextlib.contextmanager
def server(data: Path, database: str = "") -> Iterator[tuple[Context, int]]:
    """Give a server alone on ``data`` for the block: an operator's context, and its process."""
    command = [*PILEUS, "server", "--data", str(data), "--port", "0", *(["--database", database] if database else [])]
    log = (data / "log").open("w")
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, stderr=log, text=True)
    try:
        assert child.stdout is not None
        line = child.stdout.readline()
        if not line.startswith("server ready at "):
            raise RuntimeError((data / "log").read_text()[-2000:])
        url = line.removeprefix("server ready at ").strip()
        key = data / "operator-key"
        while not key.exists() or not key.read_text().endswith("\n"):
            if child.poll() is not None or not child.stdout.readline():
                raise RuntimeError("the server gave no operator's key")
        ca = (data / "tls" / "ca.crt").read_text()
        yield Context(server=url, ca=ca, key=key.read_text().strip()), child.pid
    finally:
        child.terminate()
        assert child.stdout is not None
        child.stdout.close()
        child.wait(STOP_TIMEOUT_S)
        log.close()


def children(pid: int) -> list[int]:
    """Return the child processes, oldest first."""
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def cpu_s(pid: int) -> float:
    """Return the CPU seconds that a process used so far (proc(5): utime and stime)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


def memory_mib(pid: int) -> float:
    """Return the resident memory of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
