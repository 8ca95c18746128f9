"""What can be asked of a guest that has only QEMU's guest agent: its configuration, and requests. Nothing else."""

from __future__ import annotations

import json
import math

from pileus.drivers.host.errors import DriverError
from pileus.drivers.host.guest.base import Document
from pileus.drivers.host.guest.qga import GuestAgent
from pileus.drivers.host.guest.qga_allowed import Allowed
from pileus.drivers.host.guest.qga_carry import carry_out
from pileus.drivers.host.guest.qga_ledger import Record
from pileus.drivers.host.guest.qga_notes import AgentNotes
from pileus.drivers.host.guest.qga_request import Request, answer, run_step, write_step
from pileus.drivers.host.guest.untrusted import readable
from pileus.kernel.clock import Clock, system_clock
from pileus.node.document import document_hash

_CONFIGURATION_STEPS = 2


async def perform(agent: GuestAgent, allowed: Allowed, request: Request, clock: Clock = system_clock) -> bytes:
    """Return the answer to the request, whose steps are done once, however often it is asked.

    Raises: DriverError (RequestRefused, NotesLost, NodeFailed; NodeSilent and NodeHostile: ask again).
    """
    return answer(await carry_out(AgentNotes(agent, f"{allowed.state}/requests"), request, clock))


async def configured(agent: GuestAgent, allowed: Allowed) -> str:
    """Return the hash of the document that the guest runs, empty when that is not certain."""
    record = await AgentNotes(agent, f"{allowed.state}/configuration").load()
    return record.digest if record is not None and _is_done(record) else ""


async def configure(agent: GuestAgent, allowed: Allowed, document: Document) -> None:
    """Write the document and run the package's command, unless the guest runs it already.

    Raises: DriverError (NodeRefused with the command's words; NodeSilent and NodeHostile: ask again).
    """
    place = allowed.configuration
    if place is None:
        raise DriverError("NodeRefused", "the package says nothing of a configuration; send requests")
    notes = AgentNotes(agent, f"{allowed.state}/configuration")
    record, wanted = await notes.load(), document_hash(document)
    if record is not None and record.digest == wanted and _is_done(record):
        return
    content = json.dumps(document, sort_keys=True, indent=1).encode() + b"\n"
    # One that began with this document goes on; one that failed, or had another document, is over.
    goes_on = record is not None and record.digest == wanted and all(one.result == "done" for one in record.results)
    sequence = 0 if record is None else record.sequence + (not goes_on)
    request = Request(
        id="configuration",
        sequence=sequence,
        digest=wanted,
        steps=(write_step(place.path, place.mode, content), run_step(allowed.command(place.apply), {})),
        deadline=math.inf,
    )
    for one in await carry_out(notes, request, system_clock):
        if one.result != "done":
            said = readable(one.error_output or one.output)
            code = "" if one.exit_code is None else f" with exit code {one.exit_code}"
            raise DriverError("NodeRefused", f"{one.step} {one.result}{code}: {said or 'it says nothing'}")


def _is_done(record: Record) -> bool:
    return len(record.results) == _CONFIGURATION_STEPS and all(one.result == "done" for one in record.results)
