"""A preferred descriptor's reader is called before the event loop's turn, and the loop does not call it again."""

from __future__ import annotations

import asyncio
import os

from pileus.node.transport import PromptSelector

LIMIT_S = 10


def test_a_preferred_reader_is_called_once_per_event_and_others_as_ever() -> None:
    selector = PromptSelector()
    (preferred, preferred_end), (other, other_end) = os.pipe(), os.pipe()
    heard: list[bytes] = []

    async def listen() -> None:
        loop = asyncio.get_running_loop()
        done = loop.create_future()
        loop.add_reader(preferred, lambda: heard.append(b"by the loop"))
        loop.add_reader(other, lambda: done.set_result(os.read(other, 9)))
        selector.prefer(preferred, lambda: heard.append(os.read(preferred, 9)))
        os.write(preferred_end, b"first")
        os.write(other_end, b"last")
        async with asyncio.timeout(LIMIT_S):
            assert await done == b"last"
        assert heard == [b"first"]

    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selector)) as runner:
        runner.run(listen())
    for descriptor in (preferred, preferred_end, other, other_end):
        os.close(descriptor)
