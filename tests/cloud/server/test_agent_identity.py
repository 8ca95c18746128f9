"""An agent's own side of joining and renewing, against a server with real TLS."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from cryptography import x509
from tests.cloud.server.server_rig import Rig, running

from pileus.agent import identity
from pileus.agent.connection import Connector
from pileus.kernel.clock import system_clock
from pileus.kernel.errors import Unauthenticated

pytestmark = pytest.mark.anyio


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    """A server with real TLS."""
    async with running(tmp_path) as it:
        yield it


async def joined(rig: Rig, folder: Path) -> identity.Identity:
    host = await rig.host("h1")
    token = (await rig("POST", f"/v1/infra.host/{host}/join-token")).json["token"]
    return await identity.join(rig.started.url, token, folder)


def serial(folder: Path) -> int:
    return x509.load_pem_x509_certificate((folder / "agent.pem").read_bytes()).serial_number


async def test_an_agent_renews_when_two_thirds_of_the_life_are_over(
    rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "agent"
    who = await joined(rig, folder)
    first, due = serial(folder), identity.renewal_due(folder)
    assert 50 * 86_400 < due - system_clock() < 70 * 86_400
    monkeypatch.setattr(identity, "system_clock", lambda: due + 1.0 if serial(folder) == first else system_clock())
    context = identity.client_context(folder)
    renewing = asyncio.create_task(identity.renew_in_time(who, folder, context))
    async with asyncio.timeout(20):
        while serial(folder) == first:  # noqa: ASYNC110 - a file says it
            await asyncio.sleep(0.02)
    renewing.cancel()
    for shown in (context, identity.client_context(folder)):
        channel = await Connector(rig.started.url, shown).open()
        await channel.close()


async def test_an_agent_gives_its_token_to_the_cluster_it_is_for_and_to_no_other(rig: Rig, tmp_path: Path) -> None:
    host = await rig.host("h1")
    token = (await rig("POST", f"/v1/infra.host/{host}/join-token")).json["token"]
    inside = json.loads(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
    forged = base64.urlsafe_b64encode(json.dumps({**inside, "ca_sha256": "0" * 64}).encode()).decode().rstrip("=")
    with pytest.raises(Unauthenticated, match="not the server that the token is for"):
        await identity.join(rig.started.url, forged, tmp_path / "agent")
    assert identity.Identity.load(tmp_path / "agent") is None
    assert (await identity.join(rig.started.url, token, tmp_path / "agent")).host == host
