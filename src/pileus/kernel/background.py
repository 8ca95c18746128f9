"""Tasks that live as long as their server: a failure in one is told, and it goes on."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from pileus.kernel.errors import Transient

log = structlog.get_logger()

PAUSE_S = 1.0
"""After a failure: long enough not to flood a database that comes back, short enough for the hosts' presence."""


def for_ever(work: Callable[[], Awaitable[None]], name: str) -> asyncio.Task[None]:
    """Return a task that does ``work`` again and again until it is cancelled, whatever ``work`` raises."""
    return asyncio.create_task(_repeat(work, name), name=name)


async def _repeat(work: Callable[[], Awaitable[None]], name: str) -> None:
    while True:
        try:
            await work()
        except Transient as error:
            log.warning("a task in the background failed and is tried again", task=name, error=error.message)
            await asyncio.sleep(PAUSE_S)
        except Exception:  # a defect must not end silently what the whole server rests on
            log.exception("defect in a task in the background", task=name)
            await asyncio.sleep(PAUSE_S)
