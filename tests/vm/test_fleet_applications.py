"""Applications of a managed node, from the cloud's side: the server knows of an end, and a request mends it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.vm import realcloud
    from tests.vm.applications_rig import Appliances
    from tests.vm.realcloud import SplitCloud
else:
    import realcloud
    from applications_rig import Appliances

pytestmark = pytest.mark.long

WEB = {"command": ["sh", "-c", "echo $$ > /run/web.pid; exec sleep 100000"], "version": "1", "stop_s": 1}
SNIPER = {"command": ["sh", "-c", "cd; [ -e armed ] || { touch armed; exit 0; }; kill -9 $(cat /run/web.pid)"]}
TOLD_S = 5.0


@pytest.fixture
def cloud() -> Iterator[SplitCloud]:
    with realcloud.split() as running:
        running.pileus("patch", "zone", "one", "--router", "none")
        yield running


def test_the_server_knows_of_an_end_and_a_request_mends_it(cloud: SplitCloud) -> None:
    appliances = Appliances(cloud)
    document = {"applications": {"web": WEB, "sniper": SNIPER}}
    (node,) = appliances.make(["shop"], document)
    appliances.until(node, "web", state="running", exits=0)
    appliances.until(node, "sniper", state="stopped", code="exit 0")
    assert appliances.ask(node, do="start", application="sniper")[0] == "applied"
    began = time.monotonic()
    appliances.until(node, "web", state="failed", code="signal 9", exits=1)
    known_s = time.monotonic() - began
    print(f"measured: the server knows {known_s * 1000:.0f} ms after the request that killed it was answered")
    assert known_s < TOLD_S
    assert appliances.ask(node, do="restart", application="web") == ("applied", {"state": "running"})
    appliances.until(node, "web", state="running", exits=1)
    state, said = appliances.ask(node, do="update", application="web", version="2", command=["false"])
    assert (state, "version 2: exit 1" in said["words"]) == ("refused", True)
    assert appliances.ask(node, do="update", application="web", version="2")[0] == "applied"
    appliances.until(node, "web", state="running", version="2")
