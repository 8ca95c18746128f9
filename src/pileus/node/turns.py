"""A thread of its own for what may take long: one thing after another, each told when it is over."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from queue import SimpleQueue
from threading import Thread
from typing import Any


class Turns:
    """One thread; what is posted runs there in order. A pool of one does the same in three times the time."""

    def __init__(self, name: str) -> None:
        self._loop = asyncio.get_running_loop()
        self._work: SimpleQueue[tuple[Callable[[], Any], Callable[[Any], None]] | None] = SimpleQueue()
        Thread(target=self._run, name=name, daemon=True).start()

    def post(self, work: Callable[[], Any], done: Callable[[Any], None]) -> None:
        """Let the thread do ``work``; ``done`` is called on the loop with what it returned, or raised."""
        self._work.put((work, done))

    def close(self) -> None:
        """Do what was posted, and no more."""
        self._work.put(None)

    def _run(self) -> None:
        while (turn := self._work.get()) is not None:
            work, done = turn
            with Mishap() as mishap:
                mishap.result = work()
            # The loop may have ended meanwhile: then there is nobody to tell.
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(done, mishap.result)
            del turn, work, done, mishap


class Mishap:
    """Keeps what its block raises as ``result``: what breaks on a thread is no reason for the thread to."""

    def __init__(self, kinds: type[BaseException] = BaseException) -> None:
        self.result: Any = None
        self._kinds = kinds

    def __enter__(self) -> Mishap:
        return self

    def __exit__(self, kind: object, failure: BaseException | None, trace: object) -> bool:
        if isinstance(failure, self._kinds):
            self.result = failure
            return True
        return False
