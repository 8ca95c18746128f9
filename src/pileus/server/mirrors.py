"""The packets and flows of mirror sessions that the platform keeps, carried from the decapsulator to who may see them."""

from __future__ import annotations

import asyncio
from typing import NoReturn

import msgspec
from msgspec import Struct
from starlette.websockets import WebSocket

from pileus.fleet.node.types import NodeAssigned
from pileus.kernel.errors import Conflict, Invalid, NotFound, Transient
from pileus.kernel.hub import Hub
from pileus.kernel.kind import Resource
from pileus.kernel.store.store import Store
from pileus.mirror.session.types import SessionAssigned, SessionObserved
from pileus.node.mirror import CAPTURE_PORT, TOO_MANY, TOO_MANY_OF_SESSION
from pileus.server import streams, tunnel
from pileus.server.content import VM, farewell, note
from pileus.server.links import Connection
from pileus.server.parts import Parts
from pileus.server.query import COMMON, Query, call, ident

SESSION = "mirror.session"
ADDRESS = "127.0.0.1"
"""Of the appliance itself: nobody but its host can connect there."""
FIRST_S = 10.0
"""What a decapsulator has, it says at once."""
LOOK_S = 2.0
REFUSED = b'{"error"'
WANTS, STARTS = ("packets", "flows"), ("start", "now")


class Place(Struct, frozen=True, kw_only=True):
    """The decapsulator's VM, and where it is."""

    host: str
    appliance: str


class _Refusal(Struct, frozen=True):
    """The line of a decapsulator that has no answer."""

    code: str = ""


class Mirrors:
    """Routes below ``/v1/mirror.session/{ident}``."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    async def packets(self, websocket: WebSocket) -> None:
        """``GET /v1/mirror.session/{ident}/packets``: a WebSocket of pcapng, or of lines of JSON, see ``tunnel``.

        ``want``: packets or flows; ``from``: start or now; ``follow``: go on until the session ends.
        """
        principal = await self._parts.principal(websocket)
        query = Query(websocket, (*COMMON, "want", "from", "follow"))
        asked = call(websocket, query)
        session = await self._parts.surface.row(asked, SESSION, ident(websocket))
        principal.require("console", VM)  # its packets say as much as its console
        wish = _wish(session, query)
        at = await place(self._parts.store, session)
        with self._parts.streams.one_of(principal.user_id):
            connection = await self._connect(at, session)
            try:
                capture = await _begun(connection, wish, session)
                await self._parts.store.write(lambda tx: note(tx, asked, "packets", session))
                await websocket.accept()
                await streams.first_of(
                    tunnel.serve(websocket, capture),
                    self._parts.auth.until_changed(websocket.headers["authorization"], principal),
                    until_elsewhere(self._parts.store, self._parts.hub, session),
                    self._parts.streams.closed(),
                )
                code, reason = farewell(connection)
            finally:
                await connection.close()
        await streams.close(websocket, code, reason)

    async def _connect(self, at: Place, session: Resource) -> Connection:
        try:
            return await self._parts.agents.connect(at.host, at.appliance, ADDRESS, CAPTURE_PORT)
        except (Conflict, Transient):
            # What the host says names the appliance, which is none of the tenant's business.
            raise Transient(f"the decapsulator of {session} does not answer; try again", code="not-running") from None


class Capture:
    """What a decapsulator says, to be read only. ``first``: what was read of it already."""

    def __init__(self, connection: Connection, first: bytes) -> None:
        self._connection = connection
        self._first = first

    async def read(self) -> bytes:
        """Return the next bytes; empty at the end."""
        first, self._first = self._first, b""
        return first or await self._connection.read()

    async def write(self, content: bytes, /) -> NoReturn:
        """Raises: Transient; what it was asked is all that it takes."""
        raise Transient("a capture takes nothing", code="overrun")

    async def finish(self) -> None:
        """End our direction."""
        await self._connection.finish()


def _wish(session: Resource, query: Query) -> bytes:
    """Return the line that a decapsulator is asked with; the session in it is never the caller's word. Raises: Invalid."""
    want, start = query.text("want") or WANTS[0], query.text("from") or STARTS[0]
    for name, word, known in (("want", want, WANTS), ("from", start, STARTS)):
        if word not in known:
            raise Invalid(f"{name} must be {' or '.join(known)}, not {word!r}", field=name)
    asked = {"session": session.id, "want": want, "from": start, "follow": query.flag("follow")}
    return msgspec.json.encode(asked) + b"\n"


async def place(store: Store, session: Resource) -> Place:
    """Return where the session's packets are kept.

    Raises: Conflict (has-sniffer, ended), Transient (not-running).
    """
    assigned: SessionAssigned | None = session.assigned
    observed: SessionObserved | None = session.observed
    if assigned is not None and assigned.sniffer:
        raise Conflict(
            f"the packets of {session} go to its sniffer, and nothing of them is kept; look there, or watch the VM itself",
            code="has-sniffer",
        )
    if observed is not None and observed.state == "ended":
        raise Conflict(f"{session} has ended, and its packets are gone with it; watch the VM anew", code="ended")
    why = observed.message if observed is not None and observed.message else "it waits for its decapsulator"
    if assigned is None or not assigned.node:
        raise Transient(f"{session} does not run yet: {why}", code="not-running")
    try:
        node: NodeAssigned | None = (await store.get(assigned.node)).assigned
    except NotFound:
        node = None
    if node is None or not node.vm or not node.host:
        raise Transient(f"the decapsulator of {session} is starting; try again", code="not-running")
    return Place(host=node.host, appliance=node.vm)


async def _begun(connection: Connection, wish: bytes, session: Resource) -> Capture:
    """Ask, and return the answer once it has begun. Raises: Transient, Conflict when there is none."""
    await connection.write(wish)
    first = b""
    try:
        async with asyncio.timeout(FIRST_S):
            while not _is_begun(first) and (part := await connection.read()):
                first += part
    except TimeoutError:
        raise Transient(f"the decapsulator of {session} says nothing; try again", code="not-running") from None
    if not first or first.startswith(REFUSED):
        _refuse(first, session)
    return Capture(connection, first)


def _is_begun(first: bytes) -> bool:
    """Return whether it is known what the answer is: a refusal is a whole line."""
    return len(first) >= len(REFUSED) and (not first.startswith(REFUSED) or first.endswith(b"\n"))


def _refuse(first: bytes, session: Resource) -> NoReturn:
    """Raises: Conflict (too-many-readers), Transient (too-many-readers, not-running)."""
    try:
        code = msgspec.json.decode(first, type=_Refusal).code
    except msgspec.DecodeError:
        code = ""
    if code == TOO_MANY_OF_SESSION:
        raise Conflict(f"{session} has as many readers as it can; end one of them first", code="too-many-readers")
    if code == TOO_MANY:
        words = f"the decapsulator of {session} has as many readers as it can; try again later"
        raise Transient(words, code="too-many-readers")
    raise Transient(f"the decapsulator of {session} does not have it yet; try again", code="not-running")


async def until_elsewhere(store: Store, hub: Hub, session: Resource) -> None:
    """Return never; Raises: Transient when the session is gone, or at another decapsulator."""
    began: SessionAssigned = session.assigned
    with hub.watch(("kind", SESSION)) as changes:
        while True:
            try:
                now: SessionAssigned = (await store.get(session.id)).assigned
            except NotFound:
                raise Transient(f"{session} was deleted", code="ended") from None
            if (now.node, now.key) != (began.node, began.key):
                raise Transient(f"{session} goes through another decapsulator now", code="moved")
            await asyncio.sleep(LOOK_S)
            await changes.wait(60.0)
