"""The role at work: its document, kept over restarts; every call of it in one thread, whatever it does there."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from pileus.node.document import Difference, Document, document_hash, merged
from pileus.node.hostclock import HostClock, Moment
from pileus.node.ledger import ANSWER_BYTES_MAX, End, Ledger, Request
from pileus.node.role import Role, RoleRefused, Talkative, Wakeful
from pileus.node.turns import Mishap, Turns

WORDS_MAX = 2000
"""Characters of a refusal."""

REST_S_MIN = 0.05
"""Between two looks, so that a role that always wants one does not take the whole machine."""


class Stale(Exception):
    """A difference is to another document than the one that runs."""


class Duty:
    """Keeps ``role`` at what the document in ``file`` says. ``hash``: of the document it runs, "" for none.

    A role that breaks is no role any more, but the rest goes on: ``refused`` says what happened. ``status`` is never
    older than ``hash``: the host decides by both.
    """

    def __init__(self, role: Role, file: Path, clock: HostClock | None = None) -> None:
        """``clock``: the host's time; requests are noted in the file ``requests`` beside ``file``."""
        self.hash = ""
        self.refused = ""
        self.status: dict[str, Any] = {}
        self._role = role
        self._file = file
        self._ledger: Ledger | None = None
        self._clock = clock or HostClock()
        self._document: Document = {}
        self._turn = asyncio.Lock()
        self._turns = Turns("role")
        self._waiting: list[list[Request]] = []
        self._looked_at = 0.0
        self.on_news: Callable[[], None] = _nobody
        """Called when the role said how it is of its own accord."""
        if isinstance(role, Talkative):
            role.on_news(partial(_soon, asyncio.get_running_loop(), self._take_news))

    async def resume(self) -> None:
        """Run what was kept, if anything was."""
        document = await self._call(self._kept)
        if isinstance(document, dict):
            await self._run(document, keep=False)

    async def configure(self, base: str, sections: Difference, wanted: str) -> None:
        """Run ``sections`` as a whole document, or as a difference to the document with the hash ``base``.

        Afterwards ``hash`` is ``wanted``, or ``refused`` says why not. Raises: Stale.
        """
        async with self._turn:
            if base and base != self.hash:
                raise Stale
            document = merged(self._document if base else {}, sections)
            if document_hash(document) != wanted:
                self.refused = "the document does not have the hash that was said; this is a defect"
            else:
                await self._run(document, keep=True)

    def moment(self, host: float) -> Moment:
        """Return what this very moment is, the host's time being ``host``."""
        return self._clock.moment(host)

    def request(self, request: Request, moment: Moment, done: Callable[[End | BaseException | None], None]) -> None:
        """Let the role do ``request`` once, in its turn; ``done`` is told how that ended.

        ``done`` gets an OSError when it cannot be noted: nothing is lost then; None when it was forgotten before its turn.
        """
        waiting = [request]
        self._waiting = [*filter(None, self._waiting), waiting]
        self._turns.post(lambda: self._do(waiting, moment), done)

    def forget(self) -> None:
        """Forget the requests whose turn has not come: who asked is gone, and will ask again."""
        for waiting in self._waiting:
            waiting.clear()

    async def look(self) -> None:
        """Let the role mend itself, and ask it how it is."""
        async with self._turn:
            failure = await self._call(self._role.tick)
            status = await self._asked()
            self.status = {"failed": _words(failure)} if isinstance(failure, BaseException) else status
            self._looked_at = asyncio.get_running_loop().time()

    async def rest(self, timeout_s: float) -> None:
        """Return when the role wants to be looked at, or after a while; looks are not closer than ``REST_S_MIN``."""
        fd = self._role.wake_fd() if isinstance(self._role, Wakeful) else -1
        if fd < 0:
            await asyncio.sleep(timeout_s)
            return
        loop = asyncio.get_running_loop()
        woken = loop.create_future()
        loop.add_reader(fd, _wake, loop, fd, woken)
        try:
            await asyncio.wait([woken], timeout=timeout_s)
        finally:
            loop.remove_reader(fd)
        if (early_s := self._looked_at + REST_S_MIN - loop.time()) > 0:
            await asyncio.sleep(early_s)

    def close(self) -> None:
        """Call the role no more."""
        self._turns.close()

    async def _run(self, document: Document, keep: bool) -> None:
        failure = await self._call(self._apply, document)
        if failure is None and keep:
            failure = await self._call(self._keep, document)
        if failure is None:
            status = await self._asked()
            self.hash, self.refused, self.status, self._document = document_hash(document), "", status, document
            return
        self.refused = failure.message if isinstance(failure, RoleRefused) else f"the role failed: {_words(failure)}"
        if not isinstance(failure, RoleRefused):
            # Nobody knows what it runs now; so the host sends all of it next time.
            self.hash = ""

    def _take_news(self, status: dict[str, Any]) -> None:
        self.status = status
        self.on_news()

    async def _asked(self) -> dict[str, Any]:
        """Return how the role says it is."""
        status = await self._call(self._role.status)
        return status if isinstance(status, dict) else {"failed": _words(status)}

    def _do(self, waiting: list[Request], moment: Moment) -> End | None:
        try:
            request = waiting.pop()
        except IndexError:
            return None
        if self._ledger is None:
            self._ledger = Ledger(self._file.with_name("requests"))
        ledger = self._ledger
        verdict = ledger.book.decide(request, self._clock.now(moment))
        end = verdict.end
        if verdict.step == "answer" and end is not None:
            return end
        if end is None:
            ledger.begin(request.sequence, request.id)
            end = self._ask(request, verdict.again)
        ledger.end(request.sequence, end)
        return end

    def _ask(self, request: Request, again: bool) -> End:
        """Return how the role ended the request."""
        with Mishap(Exception) as mishap:
            answer = self._role.request(request.id, request.payload, again)
            return End(request.id, "applied", answer[:ANSWER_BYTES_MAX])
        failure = mishap.result
        if isinstance(failure, RoleRefused):
            return End(request.id, "refused", failure.message[:WORDS_MAX].encode(errors="replace"))
        return End(request.id, "unknown", f"the role failed: {_words(failure)}".encode(errors="replace"))

    def _apply(self, document: Document) -> None:
        self._role.apply(document)

    def _keep(self, document: Document) -> None:
        """Write the document so that a power cut leaves the old one or the new one."""
        self._file.parent.mkdir(parents=True, exist_ok=True)
        draft = self._file.with_suffix(".new")
        # What a document says may be secret, and programs of other users may run beside us.
        draft.unlink(missing_ok=True)
        with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "w") as out:
            json.dump(document, out, separators=(",", ":"))
            out.flush()
            os.fsync(out.fileno())
        draft.replace(self._file)
        folder = os.open(self._file.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def _kept(self) -> Document | None:
        try:
            document = json.loads(self._file.read_bytes())
        except (OSError, ValueError):
            return None
        return document if isinstance(document, dict) else None

    async def _call(self, work: Callable[..., Any], *arguments: Any) -> Any:
        """Return what ``work`` returned, or what it raised."""
        done: asyncio.Queue[Any] = asyncio.Queue()
        self._turns.post(lambda: work(*arguments), done.put_nowait)
        return await done.get()


def _words(failure: object) -> str:
    return f"{type(failure).__name__}: {failure}"[:WORDS_MAX]


def _wake(loop: asyncio.AbstractEventLoop, fd: int, woken: asyncio.Future[None]) -> None:
    # It stays readable until the role was called.
    loop.remove_reader(fd)
    if not woken.done():
        woken.set_result(None)


def _soon(loop: asyncio.AbstractEventLoop, work: Callable[[dict[str, Any]], None], status: dict[str, Any]) -> None:
    # The loop may have ended meanwhile: then there is nobody to tell.
    with suppress(RuntimeError):
        loop.call_soon_threadsafe(work, status)


def _nobody() -> None:
    """Nobody wants to know."""
