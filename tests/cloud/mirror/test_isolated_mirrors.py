"""What a VM that is isolated tries to send is in no mirror, and nothing is delivered to a sniffer that is isolated."""

from __future__ import annotations

import pytest
from tests.cloud.mirror.mirror_world import mirror_cloud
from tests.virtual_time import run

FRAME = bytes.fromhex("0250000000020250000000010800450000281234400040060000") + bytes([10, 1, 1, 11, 10, 1, 1, 10])


@pytest.mark.parametrize("which", ["web", "watcher"])
def test_a_session_stops_with_the_isolation_of_either_end_and_goes_on_after_it(which: str) -> None:
    async def scene() -> None:
        async with mirror_cloud() as made:
            web, watcher = await made.vm("web", "a1"), await made.vm("watcher", "b1")
            await made.world.create("mirror.sniffer", "probe", "acme", vm="watcher")
            await made.session("tap", vm="web", sniffer="probe")
            source, sink = made.host_of(web).mirror, made.host_of(watcher).mirror
            source.pass_frame(web, FRAME + b"before", "egress")
            assert sink.delivered[watcher] == [FRAME + b"before"]

            await made.world.patch("compute.vm", which, "acme", isolated="yes")
            await made.world.until(lambda: made.world.is_ready("compute.vm", which, "acme"), 2.0)
            source.pass_frame(web, FRAME + b"at once", "egress")
            assert sink.delivered[watcher] == [FRAME + b"before"], "the host sees to it, before any server does"

            async def said() -> bool:
                session = await made.world.get("mirror.session", "tap", "acme")
                return bool(session["conditions"][0]["reason"] in ("Isolated", "SnifferNotReady"))

            await made.world.until(said, 30.0)
            source.pass_frame(web, FRAME + b"during", "egress")
            await made.world.patch("compute.vm", which, "acme", isolated="no")
            await made.world.until(lambda: made.runs("tap"), 60.0)
            source.pass_frame(web, FRAME + b"after", "egress")
            assert sink.delivered[watcher] == [FRAME + b"before", FRAME + b"after"]

    run(scene)
