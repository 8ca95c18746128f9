"""What a monitor's history gets, noted in the transactions that write states and actions."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec.structs import replace

from pileus.kernel.kind import Resource
from pileus.kernel.store.lists import Filter
from pileus.kernel.transaction import Transaction
from pileus.monitor.action.types import ActionAssigned
from pileus.monitor.history.types import history_space
from pileus.monitor.state.types import StateIo, StateObserved


async def note_state(tx: Transaction, row: Resource, before: StateObserved | None) -> None:
    """Note an appliance's row, if more than counters and times changed in it."""
    if _words(row.observed) == _words(before):
        return
    stream = await tx.holder(history_space(), row.assigned.monitor)
    if stream is not None:
        await tx.note(stream, "state", _text({**_about(row), "row": row.observed}))


async def note_gone(tx: Transaction, row: Resource) -> None:
    """Note that an appliance is not watched any more: its row is being deleted."""
    stream = await tx.holder(history_space(), row.assigned.monitor)
    if stream is not None:
        await tx.note(stream, "gone", _text(_about(row)))


async def note_action(tx: Transaction, action: Resource) -> None:
    """Note how an action is now: when it is written, and at each of its steps."""
    assigned: ActionAssigned = action.assigned
    streams = await _streams(tx, action)
    if not streams:
        return
    about = {"id": action.id, "vm": assigned.vm, "do": action.desired.do, "verdict": assigned.verdict}
    state = action.observed.state if action.observed is not None else "waiting"
    told = {**about, "why": assigned.why, "cause": assigned.cause, "steps": assigned.steps, "state": state}
    for stream in streams:
        await tx.note(stream, "action", _text(told))


async def _streams(tx: Transaction, action: Resource) -> list[str]:
    """Return the histories that get the action: its monitor's; of what a person does, all of the account."""
    monitor = action.assigned.cause.monitor
    if not monitor:
        histories = await tx.matching(Filter(kind="monitor.history", account_id=action.account_id))
        return [history.id for history in histories]
    stream = await tx.holder(history_space(), monitor)
    return [] if stream is None else [stream]


def _words(observed: StateObserved | None) -> StateObserved | None:
    if observed is None:
        return None
    execution = replace(observed.execution, heard_at=0.0, misses=0)
    return replace(observed, at=0.0, origin="", io=StateIo(), execution=execution)


def _about(row: Resource) -> dict[str, Any]:
    """Return which appliance it is, by id and name."""
    name = row.name.rpartition("-")[0]  # without the mark that tells it from other monitors' rows
    return {"vm": row.assigned.vm, "name": name}


def _text(body: dict[str, Any]) -> str:
    return msgspec.json.encode(body).decode()
