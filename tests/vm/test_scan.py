"""The scanner in the appliance image: a real node looks at itself when it is asked."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import pytest

from pileus.drivers.host.guest.base import GuestRequest
from pileus.scan import rules
from pileus.scan.rules import eicar

if TYPE_CHECKING:
    from tests.vm.appliance_rack import Rack, a_rack, ready
else:
    from appliance_rack import Rack, a_rack, ready

pytestmark = pytest.mark.anyio

MACHINE = "scanned-1"
TEST_FILE = "".join(rules._EICAR_PARTS)
HIDDEN = "what only memory has"
# The text is made by the shell: neither its command line nor its file has it.
KEEPS = "a='what only'; b='memory has'; c=\"$a $b\"; while :; do sleep 1000; done"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def rack() -> AsyncIterator[Rack]:
    async with a_rack() as made:
        yield made


def document(uploaded: str) -> dict[str, dict[str, Any]]:
    return {
        "applications": {
            "web": {"command": ["sh", "-c", KEEPS], "files": {"upload.com": uploaded}, "settle_s": 0, "stop_s": 1},
        }
    }


async def scanned(rack: Rack, sequence: int, source: str, **what: object) -> dict[str, Any]:
    """Return what a node says of itself."""
    payload = json.dumps({"do": "scan", "rules": source, "time_s": 200, **what}).encode()
    request = GuestRequest(id=f"r-{sequence}", sequence=sequence, deadline=time.time() + 3600, payload=payload)
    began = time.monotonic()
    answer = await rack.guest.request(MACHINE, request)
    assert answer.state == "applied", answer
    said: dict[str, Any] = json.loads(answer.answer)
    print(f"measured: {time.monotonic() - began:.1f} s for {said['scanned_bytes'] >> 20} MiB, {said['files']} files")
    return said


@pytest.mark.long
async def test_a_real_node_finds_what_lies_and_what_runs_in_it(rack: Rack) -> None:
    await rack.start(MACHINE, "serial", role="applications")
    await rack.guest.attach(MACHINE, "serial")
    await rack.until(MACHINE, ready)
    await rack.guest.configure(MACHINE, document("harmless"))
    await scanned(rack, 1, eicar(), paths=[], memory=False)
    said = await scanned(rack, 2, eicar())
    assert (said["state"], said["reason"], said["message"]) == ("clean", "", "")
    assert said["processes"] >= 3

    await rack.guest.configure(MACHINE, document(TEST_FILE))
    hidden = f'rule hidden {{ strings: $a = "{HIDDEN}" condition: $a }}'
    said = await scanned(rack, 3, eicar() + hidden)
    assert said["state"] == "found"
    found = {(one["rule"], one["where"], one["path"].rpartition("/")[2]) for one in said["findings"]}
    assert found == {("EICAR_Test_File", "file", "upload.com"), ("hidden", "memory", "busybox")}
