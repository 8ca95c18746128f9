"""What an appliance's role promises: it makes the machine be as a document says, and says how things are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

from pileus.node.document import Document


class RoleRefused(Exception):
    """The role cannot do what the document says; ``message`` is for the person who wrote it."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class Role(Protocol):
    """All calls come from one thread, one after another, and may take long: the backchannel goes on meanwhile."""

    def apply(self, document: Document) -> None:
        """Make the machine be as ``document`` says, changing only what differs. Raises RoleRefused.

        A document that is refused changes nothing. What cannot be done yet (a NIC that is not there) is no refusal:
        it is done by ``tick``, and said in ``status``.
        """

    def request(self, id: str, payload: bytes, again: bool) -> bytes:
        """Do what ``payload`` asks and return the answer; it is cut at 256 KiB. Raises RoleRefused: it changed nothing.

        Requests come in order, each once; but when the machine ended in the middle of one, the same ``id`` comes again,
        with ``again``: the role then does what is left of it, and answers as if it had done it at once. Whatever else it
        raises leaves nobody knowing what it did; that is said, and the request does not come again.
        """

    def tick(self) -> None:
        """Do what was waiting, start again what died; called about once a second, from before the first document."""

    def status(self) -> dict[str, Any]:
        """Return what the role says of itself: JSON, at most 64 KiB."""


@runtime_checkable
class Wakeful(Protocol):
    """A role that can want to be looked at before a second is over."""

    def wake_fd(self) -> int:
        """Return a descriptor, always the same, that is readable as long as the role wants ``tick`` to be called now."""


@runtime_checkable
class Talkative(Protocol):
    """A role that can say how it is in the middle of something that takes long."""

    def on_news(self, tell: Callable[[dict[str, Any]], None]) -> None:
        """Take what to call, on the thread of the role, with a status that shall be told before the call is over."""
