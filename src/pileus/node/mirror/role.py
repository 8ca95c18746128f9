"""Makes an appliance a decapsulator: NICs, data path, sessions and captures become what the document says, by differences.

A session whose key is new is a new session: nothing of the old one, wherever it waits, is ever taken for the new one's. A
step that fails or must wait does not keep the others: it is said in the status, and done again by ``tick``.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import astuple
from pathlib import Path as File
from typing import Any

from pileus.node.document import Document
from pileus.node.hostclock import HostClock
from pileus.node.mirror import CAPTURE_PORT
from pileus.node.mirror.captures import Captures
from pileus.node.mirror.model import LINKS, Config, Wanted, read
from pileus.node.mirror.noted import FILE, Noted, key_text
from pileus.node.mirror.paths import Way, open_way
from pileus.node.mirror.sessions import Counts
from pileus.node.mirror.shelves import Room, Shelves, fit
from pileus.node.mirror.store import Session
from pileus.node.nics import find
from pileus.node.role import RoleRefused
from pileus.node.router import system
from pileus.node.router.system import CommandFailed

MTU = 2000
"""Of both NICs: a frame of 1,500 bytes and its headers, or its label, with room for tags."""

RETRY_S = 5.0
"""After it, what failed is tried again; a device that appears is seen at once."""

SYS = File("/sys/class/net")


class Running:
    """A session in force. ``ended``: its time was over; what was counted until then stays."""

    def __init__(self, wanted: Wanted, room: Room) -> None:
        self.wanted = wanted
        self.room = room
        self.ended: list[Any] | None = None


class Decapsulator:
    """The role ``decapsulator``."""

    def __init__(self, port: int = CAPTURE_PORT, can_xdp: bool = True, counts: File = FILE) -> None:
        """``port``: of captures, ``counts``: where they are noted, others for tests; ``can_xdp``: False is slower."""
        self._config: Config | None = None
        self._failed: dict[str, str] = {}
        self._waiting: list[str] = []
        self._mark: object = None
        self._converged = 0.0
        self._clock = HostClock()
        self._moment = self._clock.moment(time.time())
        self._can_xdp = can_xdp
        self._path: Way | None = None
        self._nics: tuple[int, ...] = ()
        self._running: dict[str, Running] = {}
        self._noted = Noted(counts)
        self._captures = Captures()
        self._shelves = Shelves(self._captures)
        self._port = port

    def apply(self, document: Document) -> None:
        """Become what the document says. Raises RoleRefused."""
        self._config = read(document)
        self._converge(self._config)

    def request(self, id: str, payload: bytes, again: bool) -> bytes:
        """A decapsulator has its document and nothing else. Raises RoleRefused."""
        raise RoleRefused("a decapsulator takes no requests; it is configured")

    def tick(self) -> None:
        """Do what was waiting or failed, and what a device that came or went asks for; end what is over."""
        if self._config is None:
            return
        is_late = (self._waiting or self._failed) and time.monotonic() - self._converged >= RETRY_S
        if is_late or system.links_mark() != self._mark:
            self._converge(self._config)
        else:
            self._step("sessions", lambda: self._end_late(self._now()))

    def status(self) -> dict[str, Any]:
        """Return what waits and what failed, the path, and each session's counts; the same while no packet comes."""
        said: dict[str, Any] = {"role": "decapsulator", "path": self._path.kind if self._path else ""}
        said |= {"waiting": list(self._waiting), "failed": dict(self._failed)}
        said["mode"] = self._path.mode if self._path else ""
        if self._captures.failure:
            said["failed"]["readers"] = self._captures.failure
        said["refused"] = self._path.refused() if self._path else {}
        dropped = self._shelves.drops()
        said["sessions"] = {
            id: running.ended or self._told(running, dropped.get(id, 0)) for id, running in self._running.items()
        }
        self._noted.write(said["sessions"])
        return said

    def close(self) -> None:
        """Let go of everything; only tests end a role."""
        for id in list(self._running):
            self._stop(id)
        self._close_path()
        self._captures.close()

    def _converge(self, config: Config) -> None:
        self._failed, self._waiting = {}, []
        self._step("captures", lambda: self._captures.call(lambda: self._captures.listen(port=self._port)))
        self._step("links", lambda: self._do_path(config))
        self._step("sessions", lambda: self._do_sessions(config))
        self._mark = system.links_mark()
        self._converged = time.monotonic()

    def _step(self, name: str, step: Callable[[], None]) -> None:
        try:
            step()
        except (CommandFailed, OSError) as failed:
            self._failed[name] = str(failed)[:1000]

    def _do_path(self, config: Config) -> None:
        """Set up the NICs, and open the data path between them: anew when one of them is another."""
        names = {}
        for link in LINKS:
            name = find(config.links[link], SYS) if link in config.links else ""
            if name:
                names[link] = name
            else:
                self._waiting.append(f"link {link}: no NIC has the MAC {config.links.get(link, '(none is named)')}")
        numbers = tuple(system.device_number(names[link]) for link in LINKS) if len(names) == len(LINKS) else ()
        if numbers == self._nics and (self._path is not None or not numbers):
            return
        self._stop_all()
        self._close_path()
        self._nics = ()
        if numbers:
            for name in names.values():
                set_up(name)
            self._path = open_way(names["tunnel"], names["sniffers"], self._captures, self._can_xdp)
            self._nics = numbers

    def _do_sessions(self, config: Config) -> None:
        now = self._now()
        for id, running in list(self._running.items()):
            wanted = config.sessions.get(id)
            if wanted is None or wanted.way != running.wanted.way or (running.ended and not _is_over(wanted, now)):
                self._stop(id)
                self._noted.forget(id)
        if self._path is None:
            return
        rooms = self._shelves.rooms(config.sessions)
        self._fit(config, rooms)
        failures = []
        for id, wanted in config.sessions.items():
            if id not in self._running and not _is_over(wanted, now):
                try:
                    self._start(self._path, wanted, rooms.get(id, Room()))
                except OSError as failed:
                    failures.append(f"{id}: {failed}")
        self._end_late(now)
        if failures:
            raise CommandFailed(f"{len(failures)} sessions cannot be, such as {failures[0]}")

    def _fit(self, config: Config, rooms: dict[str, Room]) -> None:
        """Have the sessions in force be as they are wanted now; what would make them others is the same."""
        changes = []
        for id, running in self._running.items():
            wanted, room = config.sessions[id], rooms.get(id, Room())
            if (wanted.name, room) != (running.wanted.name, running.room):
                changes.append((id, _name(wanted), room))
            running.wanted, running.room = wanted, room
        if changes:
            self._shelves.change(changes)

    def _start(self, path: Way, wanted: Wanted, room: Room) -> None:
        self._running[wanted.id] = Running(wanted, room)
        try:
            if wanted.to == "store":
                session = Session(_name(wanted), room.store_bytes, wanted.foreign is not None)
                session.before = self._noted.counts(wanted, Counts()).received
                queue = path.queue(wanted, session.take)
                fit(session, queue, room)
                self._shelves.put(wanted.id, session, lambda: self._noted.counts(wanted, path.counts(wanted)), queue)
            path.put(wanted)
        except OSError:
            self._stop(wanted.id)
            raise

    def _end_late(self, now: float) -> None:
        """End the sessions whose time is over, whether or not anybody can reach this machine."""
        for id, running in self._running.items():
            if running.ended is None and _is_over(running.wanted, now) and self._path is not None:
                self._shelves.end(id)
                running.ended = self._told(running, self._shelves.drops().get(id, 0))
                self._path.remove(running.wanted)

    def _stop(self, id: str) -> None:
        running = self._running.pop(id)
        self._shelves.end(id)
        if self._path is not None and running.ended is None:
            self._path.remove(running.wanted)
        self._shelves.remove(id)

    def _stop_all(self) -> None:
        """Stop them to start them anew, with the counts that they have."""
        entries = self.status()["sessions"] if self._running else {}
        for id in list(self._running):
            self._stop(id)
            self._noted.restart(id, entries[id])

    def _close_path(self) -> None:
        if self._path is not None:
            self._path.close()
            self._path = None

    def _told(self, running: Running, dropped: int) -> list[Any]:
        wanted = running.wanted
        counts = self._noted.counts(wanted, self._path.counts(wanted) if self._path is not None else Counts())
        dropped += self._noted.dropped(wanted)
        if wanted.to == "sniffers":
            dropped = counts.received - counts.forwarded
        return [key_text(wanted.key), *astuple(counts), dropped]

    def _now(self) -> float:
        return self._clock.now(self._moment)


def set_up(name: str) -> None:
    """Have the NIC take and send frames, and nothing of its own. Raises: CommandFailed, OSError."""
    with contextlib.suppress(FileNotFoundError):  # a kernel without IPv6
        File(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6").write_text("1")
    system.run(["ip", "address", "flush", "dev", name])
    system.run(["ip", "link", "set", "dev", name, "mtu", str(MTU), "arp", "off", "multicast", "off", "up"])


def _is_over(wanted: Wanted, now: float) -> bool:
    return 0 < wanted.ends_at <= now


def _name(wanted: Wanted) -> str:
    return wanted.name or wanted.id
