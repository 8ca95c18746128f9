"""What the platform keeps of mirror sessions, over a WebSocket: who may read it, what is refused, and what ends it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.cloud.server.server_rig import Rig, refusal_of, running
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from pileus.fleet.node.types import NodeAssigned, NodeDesired
from pileus.kernel.flow import WINDOW_BYTES
from pileus.kernel.kind import Resource
from pileus.mirror.session.types import SessionAssigned, SessionDesired, SessionObserved
from pileus.node.mirror import CAPTURE_PORT, TOO_MANY, TOO_MANY_OF_SESSION

pytestmark = pytest.mark.anyio

PLACE: dict[str, Any] = {"zone": "z", "vdc": "v"}
RUNNING = SessionObserved(state="running")


class Decapsulator:
    """Says what a test puts into ``says``; ``heard``: what it was asked."""

    def __init__(self) -> None:
        self.heard = b""
        self.done = False
        self.closed = asyncio.Event()
        self.says: asyncio.Queue[bytes] = asyncio.Queue()

    async def read(self) -> bytes:
        return await self.says.get()

    async def write(self, content: bytes, /) -> None:
        self.heard += content

    async def finish(self) -> None:
        self.done = True

    async def close(self) -> None:
        self.closed.set()


class Site:
    """A server with an account, and one session by state; ``says``: what decapsulators begin with."""

    def __init__(self, rig: Rig, keys: dict[str, str]) -> None:
        self.rig, self.keys = rig, keys
        self.sessions: dict[str, str] = {}
        self.asked: list[Decapsulator] = []
        self.says: tuple[bytes, ...] = (b"0123456789",)
        rig.agents.listening["127.0.0.1", CAPTURE_PORT] = self._accept

    def _accept(self) -> Decapsulator:
        self.asked.append(Decapsulator())
        for piece in self.says:
            self.asked[-1].says.put_nowait(piece)
        return self.asked[-1]

    def connect(self, query: str = "", *, who: str = "owner", session: str = "kept") -> connect:
        place = "&account=acme" if who == "operator" else ""
        return connect(
            f"wss://127.0.0.1:{self.rig.started.port}/v1/mirror.session/{session}/packets?{query}{place}",
            ssl=self.rig.trust(),
            additional_headers={"authorization": f"Bearer {self.keys[who]}"},
            proxy=None,
        )

    async def refusal(self, *arguments: Any, **named: Any) -> tuple[int, str, str]:
        """Return status, code and message of a connection that is not made."""
        return await refusal_of(self.connect(*arguments, **named))

    async def change(self, name: str, **sections: Any) -> None:
        async def write(tx: Any) -> None:
            await tx.update(await tx.get(self.sessions[name]), **sections)

        await self.rig.started.parts.store.write(write)


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with running(tmp_path) as rig:
        keys = {"operator": rig.key}
        for account in ("acme", "rival"):
            await rig("POST", "/v1/tenancy.account", {"name": account})
        for name, role, account in (
            ("owner", "owner", "acme"),
            ("member", "member", "acme"),
            ("reader", "reader", "acme"),
            ("other", "owner", "rival"),
        ):
            user = {"name": name, "account": account, "desired": {"role": role}}
            assert (await rig("POST", "/v1/tenancy.user", user)).status == 201
            key = {"name": name, "account": account, "desired": {"user": name}}
            keys[name] = (await rig("POST", "/v1/tenancy.key", key)).json["secret"]
        made = Site(rig, keys)
        await _furnish(made)
        yield made


async def _furnish(site: Site) -> None:
    host = await site.rig.host("h1")

    async def write(tx: Any) -> None:
        account = await tx.find("tenancy.account", "", "acme")

        async def make(kind: str, name: str, **sections: Any) -> Any:
            return await tx.create(
                Resource(
                    id="", kind=kind, name=name, account_id=account.id, account="acme", owner=account.id, **sections
                )
            )

        node = await make(
            "fleet.node",
            "node",
            desired=NodeDesired(manager="mirrors", vdc="v"),
            assigned=NodeAssigned(**PLACE, vm="appliance", host=host),
        )
        for name, node_id, sniffer, observed in (
            ("kept", node.id, "", RUNNING),
            ("sniffed", node.id, "s", RUNNING),
            ("waiting", "", "", SessionObserved(state="waiting", message="the VM is stopped")),
            ("ended", node.id, "", SessionObserved(state="ended")),
            ("orphan", "none", "", RUNNING),
        ):
            made = await make(
                "mirror.session",
                name,
                desired=SessionDesired(vm="web"),
                assigned=SessionAssigned(**PLACE, vm="web", node=node_id, sniffer=sniffer, key="1"),
                observed=observed,
            )
            site.sessions[name] = made.id

    await site.rig.started.parts.store.write(write)


async def _all(socket: ClientConnection) -> None:
    async with asyncio.timeout(5):
        while True:
            await socket.recv()


async def test_what_is_kept_comes_to_its_end_and_it_is_on_record(site: Site) -> None:
    async with site.connect("want=flows&from=now&follow=1") as socket:
        assert await socket.recv() == str(WINDOW_BYTES)
        await socket.send(str(WINDOW_BYTES))
        assert await socket.recv() == b"0123456789"
        site.asked[0].says.put_nowait(b"more")
        assert await socket.recv() == b"more"
        site.asked[0].says.put_nowait(b"")
        assert await socket.recv() == b""
        await socket.send(b"")
        with pytest.raises(ConnectionClosed):
            await socket.recv()
        assert socket.close_code == 1000
    async with asyncio.timeout(5):
        await site.asked[0].closed.wait()
    assert msgspec.json.decode(site.asked[0].heard) == {
        "session": site.sessions["kept"], "want": "flows", "from": "now", "follow": True
    }  # fmt: skip
    entries = (await site.rig("GET", "/v1/audit?account=acme")).json["items"]
    assert any((entry["verb"], entry["actor"], entry["name"]) == ("packets", "owner", "kept") for entry in entries)


async def test_nothing_that_a_caller_says_reaches_the_decapsulator(site: Site) -> None:
    async with site.connect() as socket:
        await socket.send(b'{"session":"other"}\n')
        with pytest.raises(ConnectionClosed):
            await _all(socket)
        assert socket.close_code == 1011
    assert site.asked[0].heard.count(b"\n") == 1
    assert b"other" not in site.asked[0].heard


async def test_only_who_may_use_consoles_of_the_account_sees_its_packets(site: Site) -> None:
    assert (await site.refusal(who="other"))[0] == 404
    status, code, message = await site.refusal(who="reader")
    assert (status, code) == (403, "denied")
    assert "console" in message
    for who in ("operator", "member"):
        async with site.connect(who=who):
            pass
    wish = {"name": "mine", "desired": {"vm": "none"}}
    made = {
        who: await site.rig("POST", "/v1/mirror.session", wish, {"authorization": f"Bearer {site.keys[who]}"})
        for who in ("member", "reader")
    }
    assert (made["reader"].status, made["member"].status) == (403, 400), "a member may, but has no such VM"
    assert (await site.refusal(session=site.sessions["kept"], who="other"))[0] == 404


@pytest.mark.parametrize(
    ("session", "query", "refusal"),
    [
        ("sniffed", "", (
            409, "has-sniffer",
            "the packets of session sniffed go to its sniffer, and nothing of them is kept; look there, or watch the VM itself",
        )),
        ("waiting", "", (503, "not-running", "session waiting does not run yet: the VM is stopped")),
        ("ended", "", (409, "ended", "session ended has ended, and its packets are gone with it; watch the VM anew")),
        ("orphan", "", (503, "not-running", "the decapsulator of session orphan is starting; try again")),
        ("kept", "want=all", (400, "invalid", "want must be packets or flows, not 'all'")),
        ("kept", "from=then", (400, "invalid", "from must be start or now, not 'then'")),
        ("kept", "follow=maybe", (400, "invalid", "follow must be 1 or 0, not 'maybe'")),
        ("kept", "session=x", (400, "unknown-parameter", "there is no parameter 'session'; this path takes …")),
    ],
)  # fmt: skip
async def test_what_cannot_be_read_is_refused_before_it_opens(
    site: Site, session: str, query: str, refusal: tuple[int, str, str]
) -> None:
    status, code, message = await site.refusal(query, session=session)
    assert (status, code, message.partition("…")[0][: len(refusal[2].rstrip("…"))]) == (
        *refusal[:2],
        refusal[2].rstrip("…"),
    )
    assert site.asked == []


@pytest.mark.parametrize("says", [(b'{"error":"no session with this id is kept here"}\n', b""), (b"",)])
async def test_a_decapsulator_that_does_not_have_it_yet_is_asked_again_later(
    site: Site, says: tuple[bytes, ...]
) -> None:
    site.says = says
    assert await site.refusal() == (
        503, "not-running", "the decapsulator of session kept does not have it yet; try again"
    )  # fmt: skip
    assert site.asked[0].closed.is_set()
    del site.rig.agents.listening["127.0.0.1", CAPTURE_PORT]
    assert await site.refusal() == (
        503, "not-running", "the decapsulator of session kept does not answer; try again"
    )  # fmt: skip


@pytest.mark.parametrize(
    ("code", "refusal"),
    [
        (TOO_MANY_OF_SESSION, (409, "too-many-readers", "session kept has as many readers as it can; end one of them first")),
        (TOO_MANY, (
            503, "too-many-readers", "the decapsulator of session kept has as many readers as it can; try again later",
        )),
    ],
)  # fmt: skip
async def test_a_reader_too_many_is_told_so(site: Site, code: str, refusal: tuple[int, str, str]) -> None:
    said = b'{"error":"so many read already","code":"%s"}\n' % code.encode()
    site.says = (said[:12], said[12:30], said[30:])
    assert await site.refusal() == refusal


@pytest.mark.parametrize("becomes", ["moved", "gone"])
async def test_it_ends_when_the_session_goes_elsewhere(site: Site, becomes: str) -> None:
    async with site.connect() as socket:
        assert await socket.recv() == str(WINDOW_BYTES)
        if becomes == "moved":
            await site.change("kept", assigned=SessionAssigned(**PLACE, vm="web", node="other", key="2"))
        else:
            store = site.rig.started.parts.store
            await store.write(lambda tx: _remove(tx, site.sessions["kept"]))
        with pytest.raises(ConnectionClosed):
            async with asyncio.timeout(10):
                await socket.recv()
        assert socket.close_code == 1011
    async with asyncio.timeout(5):
        await site.asked[0].closed.wait()


async def _remove(tx: Any, id: str) -> None:
    await tx.purge(await tx.mark_deleting(await tx.get(id)))


async def test_it_ends_when_the_user_loses_the_right(site: Site) -> None:
    async with site.connect() as socket:
        assert await socket.recv() == str(WINDOW_BYTES)
        await site.rig("PATCH", "/v1/tenancy.user/owner?account=acme", {"desired": {"role": "reader"}})
        with pytest.raises(ConnectionClosed):
            async with asyncio.timeout(5):
                await socket.recv()
        assert socket.close_code == 1008
