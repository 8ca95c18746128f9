"""Makes what an OVF package becomes: all of it or nothing, and again where a run that was cut off had stopped."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterator
from itertools import chain
from typing import TYPE_CHECKING

import msgspec

from pileus.cli.client import Json, segment
from pileus.cli.commands.create import post
from pileus.cli.failure import NOT_FOUND, Failure, usage
from pileus.cli.sending import send
from pileus.cli.session import Session, noun, root
from pileus.cli.waiting import DELETED, READY, wait_for
from pileus.kernel.kind import Kind
from pileus.registry import KINDS

if TYPE_CHECKING:
    from pileus.ovf.contents import Content
    from pileus.ovf.package import StoredPackage

LABEL = "ovf-import"
"""On all that was made of a package: a hash of what it says, so that the same import again finds it."""
CLEARING_S = 120.0
IMAGE = KINDS["storage.image"]
_SENT = ("inspecting", "available")


def label_of(package: StoredPackage) -> str:
    """Return the label's value for what is made of a package."""
    digest = hashlib.sha256(msgspec.json.encode(package.envelope))
    digest.update(package.manifest.raw if package.manifest is not None else b"")
    return digest.hexdigest()[:32]


class Making:
    """What one import makes. Use it with ``with``: what is not ``kept`` at its end is removed again."""

    def __init__(self, session: Session, account: str, label: str, timeout_s: float) -> None:
        self._session = session
        self._account = account
        self._label = label
        self._timeout_s = timeout_s
        self._made: list[tuple[Kind, Json]] = []
        self._kept = False

    def __enter__(self) -> Making:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if not self._kept and self._made:
            self._remove()

    def keep(self) -> None:
        """Say that the import is whole."""
        self._kept = True

    def there(self, kind: Kind, name: str) -> Json | None:
        """Return what an earlier run of this import made under that name. Raises: Failure when others have the name."""
        try:
            found = self._session.client.get(f"{root(kind)}/{segment(name)}", [("account", self._account)])
        except Failure as failure:
            if failure.exit_code == NOT_FOUND:
                return None
            raise
        if found["account"] != self._account or found["name"] != name:
            return None  # the cloud's own of that name: an account may have another
        if found["labels"].get(LABEL) != self._label or found["deleting_at"]:
            message = f"{noun(kind, found)} is there already, and is not of this import"
            raise usage(message, "choose other names with --name, or delete it")
        return found

    def make(self, kind: Kind, name: str, desired: Json) -> Json:
        """Return the resource, made now or by an earlier run that was cut off."""
        found = self.there(kind, name)
        if found is None:
            said = {"name": name, "labels": [f"{LABEL}={self._label}"], "account": self._account, "dry_run": False}
            found = post(self._session, kind, desired, said)
        self._made.append((kind, found))
        return found

    def image(self, name: str, content: Content, more: Json, read: Callable[[int], object]) -> Json:
        """Return the image that a disk of the package became: its bytes go up as they are read and checked."""
        chunks = _counted(content, read)
        first = next(chunks, b"")
        image = self.make(IMAGE, name, {"format": format_of(content), **more})
        if (image["observed"] or {}).get("state") in _SENT:
            for _ in chunks:  # an earlier run sent it; its digest is checked nevertheless
                pass
            return image
        path = f"{root(IMAGE)}/{segment(image['id'])}/disk"
        sent = send(self._session.client, path, [("account", image["account"])], chain((first,), chunks))
        return (sent.answer.json() if sent.answer is not None else {}) or image

    def ready(self, kind: Kind, made: list[Json]) -> list[Json]:
        """Return the resources once all are ready. Raises: Failure."""
        return wait_for(self._session, kind, made, READY, self._timeout_s) if made else []

    def _remove(self) -> None:
        """Remove what was made, what uses others first; say what could not be removed."""
        kinds = list(dict.fromkeys(kind.name for kind, _ in reversed(self._made)))
        left: list[str] = []
        for name in kinds:
            kind = KINDS[name]
            doomed = [one for each, one in self._made if each is kind]
            try:
                for one in doomed:
                    self._delete(kind, one)
                wait_for(self._session, kind, doomed, DELETED, CLEARING_S)
            except Failure as failure:
                left += [f"{noun(kind, one)} ({failure.message})" for one in doomed]
        if left:
            sys.stderr.write(f"left behind, remove it yourself: {'; '.join(left)}\n")

    def _delete(self, kind: Kind, one: Json) -> None:
        try:
            self._session.client.delete(f"{root(kind)}/{segment(one['id'])}", [("account", one["account"])])
        except Failure as failure:
            if failure.exit_code != NOT_FOUND:
                raise


def format_of(content: Content) -> str:
    """Return the format of a disk whose first bytes were read."""
    found = content.head.format if content.head is not None else "unknown"
    if found != "unknown":
        return found
    # A VHD of fixed size is a raw disk with a footer.
    return "vhd" if content.disk is not None and content.disk.format == "vhd" else "raw"


def drain(content: Content, read: Callable[[int], object]) -> None:
    """Read what is not wanted to its end, so that its digest is checked."""
    for _ in _counted(content, read):
        pass


def _counted(content: Content, read: Callable[[int], object]) -> Iterator[bytes]:
    told = 0
    for chunk in content.plain():
        read(content.stored_bytes - told)
        told = content.stored_bytes
        yield chunk
