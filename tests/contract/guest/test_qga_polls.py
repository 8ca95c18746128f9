"""A poll of a machine that has only QEMU's guest agent."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pileus.drivers.host.errors import DriverError

if TYPE_CHECKING:
    from tests.contract.guest import qga_rigs
    from tests.contract.guest.test_qga import Host, ready
else:
    import qga_rigs
    from test_qga import Host, ready

pytestmark = pytest.mark.anyio


@pytest.fixture
async def host() -> AsyncIterator[Host]:
    # Not pytest's folder: socket paths have a limit of 107 characters.
    made = Host(Path(tempfile.mkdtemp(prefix="pileus-q-")))
    yield made
    await made.die()
    shutil.rmtree(made.folder)


async def test_a_poll_is_a_sign_of_life_and_a_slow_answer_is_no_reason_to_hang_up(host: Host) -> None:
    answers = True
    asked: list[str] = []

    def answer(call: dict[str, Any]) -> bytes:
        asked.append(call["execute"])
        return qga_rigs.honest(call) if answers else b""

    false = qga_rigs.FalseAgent(host.folder, answer)
    await false.start()
    try:
        channel = host.attach()
        assert channel.heard_at == 0.0
        await host.until(ready)
        before = channel.heard_at
        assert before > 0.0
        assert await channel.poll(qga_rigs.LIMIT_S) == channel.fact
        assert channel.heard_at > before
        answers = False
        asked.clear()
        for _ in range(3):
            with pytest.raises(DriverError) as caught:
                await channel.poll(0.1)
            assert caught.value.reason == "NodeSilent"
        assert asked == ["guest-ping"], "one at a time"
        assert channel.fact.state == "ready"
    finally:
        await false.stop()
