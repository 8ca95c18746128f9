"""What can be asked of a guest that has only QEMU's guest agent: its configuration, and requests. Nothing else."""

from __future__ import annotations

import hashlib
import json
import math
import re

import msgspec

from pileus.drivers.host.errors import DriverError
from pileus.drivers.host.guest.base import Document, GuestAnswer, GuestRequest
from pileus.drivers.host.guest.qga import GuestAgent
from pileus.drivers.host.guest.qga_allowed import Allowed
from pileus.drivers.host.guest.qga_carry import carry_out
from pileus.drivers.host.guest.qga_ledger import Ledger, Record
from pileus.drivers.host.guest.qga_notes import AgentNotes
from pileus.drivers.host.guest.qga_request import Order, answer, read_request, run_step, write_step
from pileus.drivers.host.guest.untrusted import readable
from pileus.kernel.clock import Clock, system_clock
from pileus.node.document import document_hash

_HASH = re.compile(r"[0-9a-f]{32}")


async def perform(
    agent: GuestAgent, allowed: Allowed, request: GuestRequest, clock: Clock = system_clock
) -> GuestAnswer:
    """Return how the request ended, whose steps are done once, however often it is asked.

    Raises: DriverError (NodeSilent, NodeHostile, NodeBusy: ask again; NotesLost, NodeFailed: mend the guest first).
    """
    notes = AgentNotes(agent, f"{allowed.state}/requests")
    try:
        order = read_request(request, allowed)
    except DriverError as error:
        return _told(await notes.load(), request) or GuestAnswer(state="refused", answer=error.message.encode())
    return await carry_out(notes, order, clock)


def _told(ledger: Ledger, request: GuestRequest) -> GuestAnswer | None:
    """Return how a request ended that the package allowed when it was begun, and does not any more; None: never begun."""
    record = next((one for one in ledger if (one.sequence, one.id) == (request.sequence, request.id)), None)
    if record is None:
        return None
    if len(record.results) == record.steps:
        return answer(record.results)
    return GuestAnswer(state="unknown", answer=b"it was begun, and the package does not allow it any more")


async def configured(agent: GuestAgent, allowed: Allowed) -> str:
    """Return the hash of the document that the guest runs as this package has it, empty when that is not certain."""
    if not allowed.document:
        return ""
    ledger = await AgentNotes(agent, f"{allowed.state}/configuration").load()
    if not ledger or not _is_done(ledger[-1]):
        return ""
    hash = ledger[-1].digest.partition(" ")[0]
    return hash if _HASH.fullmatch(hash) and ledger[-1].digest == _mark(allowed, hash) else ""


async def configure(agent: GuestAgent, allowed: Allowed, document: Document) -> None:
    """Write the document and run the package's command, unless the guest runs it already.

    Raises: DriverError (NodeRefused with the command's words; otherwise as ``perform``).
    """
    if not allowed.document:
        raise DriverError("NodeRefused", "its package has no file for a document")
    notes = AgentNotes(agent, f"{allowed.state}/configuration")
    ledger, wanted = await notes.load(), _mark(allowed, document_hash(document))
    last = ledger[-1] if ledger else None
    if last is not None and last.digest == wanted and _is_done(last):
        return
    content = json.dumps(document, sort_keys=True, indent=1).encode() + b"\n"
    apply = msgspec.structs.replace(allowed.command(allowed.apply), repeatable=True)
    # One that began with this document goes on; one that failed, or had another document, is over.
    goes_on = last is not None and last.digest == wanted and all(one.result == "done" for one in last.results)
    order = Order(
        id="document",
        sequence=0 if last is None else last.sequence + (not goes_on),
        digest=wanted,
        deadline=math.inf,
        steps=(write_step(allowed.document, content), run_step(apply, {})),
    )
    await carry_out(notes, order, system_clock)
    for one in (await notes.load())[-1].results:
        if one.result != "done":
            code = "" if one.exit_code is None else f" with exit code {one.exit_code}"
            said = readable(one.error_output or one.output)
            raise DriverError("NodeRefused", f"{one.step} {one.result}{code}: {said or 'it says nothing'}")


def _mark(allowed: Allowed, hash: str) -> str:
    """Return what is noted of a document: another package may want it in another file, or applied otherwise."""
    apply = allowed.command(allowed.apply)
    how = msgspec.json.encode((allowed.document, apply.path, apply.arguments))
    return f"{hash} {hashlib.sha256(how).hexdigest()[:32]}"


def _is_done(record: Record) -> bool:
    return len(record.results) == record.steps and all(one.result == "done" for one in record.results)
