"""Makes an appliance a monitor: it gives an engine to whoever connects through its host, one at a time.

Lines of JSON both ways; each question has one answer. An engine lives as long as its connection: all it must know comes
with its document, so that any other engine can go on::

    {"configure": document}                     {} or {"error": words}
    {"amend": {"appliances": {...}, "gone": [...]}}    the same
    {"inventory": true}                         {"inventory": what the disk kept (see there), or null}
    {"heard": [...], "missed": [...], "now": s} {"polls": [...], "states": [...], "actions": [...], "next_at": s or null}
"""

from __future__ import annotations

import json
import math
import socket
from pathlib import Path
from queue import Queue
from threading import Lock, Thread
from typing import Any

from pileus.node.document import Document
from pileus.node.monitor.engine import Engine
from pileus.node.monitor.inventory import INVENTORY, Inventory
from pileus.node.role import RoleRefused

PORT = 4754
"""Of the appliance itself, 127.0.0.1: nobody but its host can connect there."""

LINE_BYTES_MAX = 32 << 20
"""A document with 10,000 appliances takes some 10 MB."""


class Monitor:
    """The role ``monitor``."""

    def __init__(self, port: int = PORT, inventory: Path = INVENTORY) -> None:
        """``port``: another one for tests; 0: any, see ``address``."""
        self._inventory = Inventory(inventory)
        self._server = socket.create_server(("127.0.0.1", port))
        self.address: tuple[str, int] = self._server.getsockname()
        self._served: socket.socket | None = None
        self._lock = Lock()
        self._texts: Queue[bytes] = Queue(maxsize=1)
        Thread(target=self._accept, name="engine", daemon=True).start()
        Thread(target=self._keep, name="inventory", daemon=True).start()

    def apply(self, document: Document) -> None:
        """What is watched comes by the connection; a document says nothing. Raises: RoleRefused."""
        if document:
            raise RoleRefused("a monitor takes no document; its cloud tells it what to watch")

    def request(self, id: str, payload: bytes, again: bool) -> bytes:
        """A monitor takes no requests. Raises: RoleRefused."""
        raise RoleRefused("a monitor takes no requests")

    def tick(self) -> None:
        """Do nothing: the engine works when it is asked."""

    def status(self) -> dict[str, Any]:
        """Return whether somebody lets it work, and what keeps its inventory from being kept."""
        status = {"role": "monitor", "served": "yes" if self._served is not None else "no"}
        return {**status, "inventory": self._inventory.problem} if self._inventory.problem else status

    def close(self) -> None:
        """End the connections, and take no more."""
        self._server.close()
        self._replace(None)

    def _accept(self) -> None:
        while True:
            try:
                wire, _ = self._server.accept()
            except OSError:
                return
            # Whoever connects last has the lease; the one before may be gone without a word.
            self._replace(wire)
            Thread(target=self._serve, args=(wire,), name="engine", daemon=True).start()

    def _keep(self) -> None:
        """Write the inventory down; a disk may take seconds for that, and the engine does not wait for it."""
        while True:
            self._inventory.write(self._texts.get())

    def _replace(self, wire: socket.socket | None) -> None:
        with self._lock:
            before, self._served = self._served, wire
        if before is not None:
            _shut(before)

    def _serve(self, wire: socket.socket) -> None:
        engine = Engine()
        try:
            with wire, wire.makefile("rb") as lines:
                while line := lines.readline(LINE_BYTES_MAX + 1):
                    if len(line) > LINE_BYTES_MAX:
                        wire.sendall(_line({"error": f"a line takes at most {LINE_BYTES_MAX} bytes"}))
                        return
                    wire.sendall(_line(answer(engine, self._inventory, line)))
                    if not self._texts.full() and (text := self._inventory.due()) is not None:
                        self._texts.put(text)
        except OSError:
            return
        finally:
            with self._lock:
                if self._served is wire:
                    self._served = None


def answer(engine: Engine, inventory: Inventory, line: bytes) -> dict[str, Any]:
    """Return what the engine says to one question; the inventory hears of it, and is kept by the caller."""
    try:
        asked = json.loads(line)
        if "inventory" in asked:
            return {"inventory": inventory.kept()}
        if "configure" in asked:
            engine.configure(asked["configure"])
            inventory.configured(asked["configure"])
            return {}
        if "amend" in asked:
            engine.amend(asked["amend"])
            inventory.amended(asked["amend"])
            return {}
        now = float(asked["now"])
        for report in asked["heard"]:
            engine.hear(report, now)
        for vm in asked["missed"]:
            engine.miss(str(vm), now)
    except (ValueError, TypeError, KeyError, RecursionError) as wrong:
        return {"error": f"{type(wrong).__name__}: {wrong}"[:500]}
    work = engine.work(now)
    inventory.told(work.states, now)
    next_at = work.next_at if math.isfinite(work.next_at) else None
    return {"polls": work.polls, "states": work.states, "actions": work.actions, "next_at": next_at}


def _line(message: dict[str, Any]) -> bytes:
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"


def _shut(wire: socket.socket) -> None:
    try:
        wire.shutdown(socket.SHUT_RDWR)
    except OSError:
        return
