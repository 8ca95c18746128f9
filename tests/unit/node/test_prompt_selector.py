"""A preferred descriptor's reader is called without the event loop's turn, unless there is something for the loop."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Coroutine

from pileus.node.transport import PromptSelector

LIMIT_S = 10


def run(selector: PromptSelector, test: Coroutine[object, object, None]) -> None:
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selector)) as runner:
        runner.run(asyncio.wait_for(test, LIMIT_S))


def test_the_loop_has_its_turn_when_the_reader_leaves_it_something() -> None:
    selector = PromptSelector()
    near, far = os.pipe()
    heard: list[bytes] = []

    async def listen() -> None:
        loop = asyncio.get_running_loop()
        done = asyncio.Event()

        def take() -> bool:
            heard.append(os.read(near, 1))
            if heard[-1] == b"b":
                loop.call_soon(done.set)
            else:
                os.write(far, b"b")
            return heard[-1] == b"a"

        loop.add_reader(near, heard.clear)
        selector.prefer(near, take)
        os.write(far, b"a")
        await done.wait()
        assert heard == [b"a", b"b"]

    run(selector, listen())
    os.close(near)
    os.close(far)


def test_timers_and_other_descriptors_are_served_while_the_preferred_one_never_rests() -> None:
    selector = PromptSelector()
    (near, far), (other, other_end) = os.pipe(), os.pipe()
    heard: list[bytes] = []

    def take() -> bool:
        os.write(far, os.read(near, 1))
        return True

    async def listen() -> None:
        loop = asyncio.get_running_loop()
        loop.add_reader(near, take)
        selector.prefer(near, take)
        os.write(far, b"a")
        await asyncio.sleep(0.01)
        done = asyncio.Event()

        def take_other() -> None:
            heard.append(os.read(other, 9))
            done.set()

        loop.add_reader(other, take_other)
        os.write(other_end, b"other")
        await done.wait()
        assert heard == [b"other"]

    run(selector, listen())
    for descriptor in (near, far, other, other_end):
        os.close(descriptor)
