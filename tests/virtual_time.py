"""An event loop whose time jumps to the next timer when nothing is ready: hours of waiting take no time.

Only for code without sockets and threads; SQLite commits inline here. What must use a socket (PostgreSQL) does so inside
``real_time``: as long as anybody is in it, time stands still and the loop waits for the socket.
"""

from __future__ import annotations

import asyncio
import contextlib
import selectors
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")

REAL_WAIT_S = 0.05
"""How long the loop sleeps in real time for a socket before it looks at its own timers again."""

START_S = 1_900_000_000.0
"""Wall-clock time at the start of every simulation."""


class _Selector(selectors.SelectSelector):
    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.outside = 0
        """How many wait for something outside the simulation."""

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(REAL_WAIT_S if self.outside and timeout != 0 else 0)
        if self.outside:
            return ready
        if ready or timeout == 0:
            return ready
        if timeout is None:
            raise RuntimeError("nothing is left that could ever happen")
        self.now += max(timeout, 0.0)
        return []


class _Inline(ThreadPoolExecutor):
    """Does at once what was meant for a thread: time stands still meanwhile."""

    def submit(self, work: Callable[..., Any], /, *arguments: Any, **named: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(work(*arguments, **named))
        except Exception as error:  # noqa: BLE001 - handed to whoever waits
            future.set_exception(error)
        return future


class VirtualLoop(asyncio.SelectorEventLoop):
    """A selector loop on virtual time."""

    def __init__(self) -> None:
        self.selector = _Selector()
        super().__init__(self.selector)
        self.set_default_executor(_Inline())

    def time(self) -> float:
        return self.selector.now

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:
        """There are no threads to wait for."""


@contextlib.contextmanager
def real_time() -> Iterator[None]:
    """Let virtual time stand still for the block: what is awaited in it comes from outside the simulation."""
    selector = asyncio.get_running_loop().selector  # type: ignore[attr-defined]
    selector.outside += 1
    try:
        yield
    finally:
        selector.outside -= 1


def clock() -> float:
    """Return the wall-clock time of the running simulation."""
    return START_S + asyncio.get_running_loop().time()


def run(main: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run a simulation to its end."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main())
