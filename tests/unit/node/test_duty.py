"""The role at work: what is reported of it belongs together."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pileus.node.document import Document, document_hash
from pileus.node.duty import Duty

DOCUMENT: Document = {"redundancy": {"pair": {"priority": 100}}}


class Part:
    """A role that has a part once its document gives it one."""

    def __init__(self) -> None:
        self.document: Document = {}

    def apply(self, document: Document) -> None:
        """Take the part."""
        self.document = document

    def request(self, id: str, payload: bytes, again: bool) -> bytes:
        """Nothing to do."""
        return b""

    def tick(self) -> None:
        """Nothing to mend."""

    def status(self) -> dict[str, Any]:
        """Say the part."""
        return {"redundancy": "fault"} if self.document else {}


class Broken(Part):
    """A role that cannot say how it is."""

    def status(self) -> dict[str, Any]:
        """Fail."""
        raise ZeroDivisionError("no part")


def reported(role: Part, file: Path, work: Callable[[Duty], Any]) -> tuple[str, dict[str, Any]]:
    """Return hash and status after ``work``, with nobody having looked since."""

    async def main() -> tuple[str, dict[str, Any]]:
        duty = Duty(role, file)
        await work(duty)
        duty.close()
        return duty.hash, duty.status

    return asyncio.run(main())


def test_the_status_is_of_the_document_whose_hash_is_reported(tmp_path: Path) -> None:
    wanted = document_hash(DOCUMENT)
    file = tmp_path / "document.json"
    assert reported(Part(), file, lambda duty: duty.configure("", DOCUMENT, wanted)) == (
        wanted,
        {"redundancy": "fault"},
    )


def test_what_is_kept_of_a_document_is_for_nobody_else(tmp_path: Path) -> None:
    file = tmp_path / "document.json"
    reported(Part(), file, lambda duty: duty.configure("", DOCUMENT, document_hash(DOCUMENT)))
    assert file.stat().st_mode & 0o077 == 0


def test_the_status_is_of_the_document_that_was_kept_over_a_boot(tmp_path: Path) -> None:
    file = tmp_path / "document.json"
    file.write_text(json.dumps(DOCUMENT))
    assert reported(Part(), file, lambda duty: duty.resume()) == (document_hash(DOCUMENT), {"redundancy": "fault"})


def test_a_role_that_cannot_say_how_it_is_runs_its_document_all_the_same(tmp_path: Path) -> None:
    wanted = document_hash(DOCUMENT)
    found = reported(Broken(), tmp_path / "document.json", lambda duty: duty.configure("", DOCUMENT, wanted))
    assert found == (wanted, {"failed": "ZeroDivisionError: no part"})
