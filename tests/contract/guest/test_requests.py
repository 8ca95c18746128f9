"""What every node promises of requests, simulated or real: once, in order, never late, whatever ends in between."""

from __future__ import annotations

import secrets
import time
from typing import TYPE_CHECKING

import pytest

from pileus.drivers.host.errors import DriverError
from pileus.drivers.host.guest.base import ANSWER_BYTES_MAX, PAYLOAD_BYTES_MAX, GuestAnswer, GuestRequest

if TYPE_CHECKING:
    from tests.contract.guest.node_rigs import MACHINE, FakeRig, NicRig, Rig, rig
    from tests.contract.guest.test_backchannel import DOCUMENT, ready, until_ready
else:
    from node_rigs import MACHINE, FakeRig, NicRig, Rig, rig
    from test_backchannel import DOCUMENT, ready, until_ready

__all__ = ["rig"]

pytestmark = pytest.mark.anyio


def asked(sequence: int, payload: bytes = b"", *, in_s: float = 60.0, withdrawn: bool = False) -> GuestRequest:
    return GuestRequest(
        id=f"r-{sequence}", sequence=sequence, deadline=time.time() + in_s, payload=payload, withdrawn=withdrawn
    )


async def test_requests_are_done_in_order_and_answered(rig: Rig) -> None:
    guest = await ready(rig)
    for sequence in range(1, 6):
        answer = await guest.request(MACHINE, asked(sequence, b"\n%d\n" % sequence))
        assert answer == GuestAnswer(state="applied", answer=b"\n%d\n" % sequence)
    assert rig.did() == ["r-1", "r-2", "r-3", "r-4", "r-5"]
    await guest.detach(MACHINE)


async def test_what_is_asked_twice_is_done_once_also_by_another_agent_and_after_a_reboot(rig: Rig) -> None:
    first = await ready(rig)
    wanted = await first.request(MACHINE, asked(1, b"one"))
    assert await first.request(MACHINE, asked(1, b"one")) == wanted
    await first.detach(MACHINE)
    await rig.stop()
    await rig.start()
    second = rig.guest()
    await rig.attach(second)
    await until_ready(second)
    assert await second.request(MACHINE, asked(1, b"one")) == wanted
    assert rig.did() == ["r-1"]
    await second.detach(MACHINE)


async def test_a_request_past_its_deadline_is_never_begun(rig: Rig) -> None:
    guest = await ready(rig)
    assert await guest.request(MACHINE, asked(1, in_s=-0.001)) == GuestAnswer(state="expired")
    assert await guest.request(MACHINE, asked(1)) == GuestAnswer(state="expired")
    assert rig.did() == []
    await guest.detach(MACHINE)


async def test_what_is_withdrawn_is_never_begun_and_what_was_applied_says_so(rig: Rig) -> None:
    guest = await ready(rig)
    await guest.request(MACHINE, asked(1, b"one"))
    assert await guest.request(MACHINE, asked(1, withdrawn=True)) == GuestAnswer(state="applied", answer=b"one")
    assert await guest.request(MACHINE, asked(2, withdrawn=True)) == GuestAnswer(state="withdrawn")
    assert await guest.request(MACHINE, asked(2)) == GuestAnswer(state="withdrawn")
    assert await guest.request(MACHINE, asked(3, in_s=-1, withdrawn=True)) == GuestAnswer(state="expired")
    assert rig.did() == ["r-1"]
    await guest.detach(MACHINE)


async def test_what_was_forgotten_or_came_too_late_is_unknown(rig: Rig) -> None:
    guest = await ready(rig)
    for sequence in range(2, 30):
        await guest.request(MACHINE, asked(sequence))
    assert (await guest.request(MACHINE, asked(29))).state == "applied"
    assert (await guest.request(MACHINE, asked(14))).state == "applied"
    assert (await guest.request(MACHINE, asked(13))).state == "unknown"
    assert (await guest.request(MACHINE, asked(1))).state == "unknown"
    assert rig.did() == [f"r-{sequence}" for sequence in range(2, 30)]
    await guest.detach(MACHINE)


async def test_a_refusal_comes_with_the_roles_words(rig: Rig) -> None:
    guest = await ready(rig)
    rig.refuse("there is no table 7")
    assert await guest.request(MACHINE, asked(1)) == GuestAnswer(state="refused", answer=b"there is no table 7")
    assert rig.did() == []
    await guest.detach(MACHINE)


async def test_a_silent_node_is_said_to_be(rig: Rig) -> None:
    guest = await ready(rig)
    await guest.detach(MACHINE)
    with pytest.raises(DriverError) as caught:
        await guest.request(MACHINE, asked(1))
    assert caught.value.reason == "NodeSilent"


async def test_payloads_are_long_and_answers_are_not(rig: Rig) -> None:
    guest = await ready(rig)
    payload = secrets.token_bytes(1 << 20 if isinstance(rig, NicRig) else PAYLOAD_BYTES_MAX)
    if not isinstance(rig, FakeRig):
        answer = await guest.request(MACHINE, asked(1, payload))
        assert answer == GuestAnswer(state="applied", answer=payload[:ANSWER_BYTES_MAX])
    with pytest.raises(DriverError) as caught:
        await guest.request(MACHINE, asked(2, bytes(PAYLOAD_BYTES_MAX + 1)))
    assert caught.value.reason == "BadRequest"
    await guest.configure(MACHINE, DOCUMENT)
    await guest.detach(MACHINE)
