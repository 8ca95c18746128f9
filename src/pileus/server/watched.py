"""One appliance of a watcher: its rows as they were read last, and what they say of it."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from pileus.compute.vm.types import VmObserved, is_hung
from pileus.fleet.node.types import NodeObserved
from pileus.fleet.vitals import Vitals
from pileus.kernel.kind import Resource
from pileus.kernel.store.store import Store
from pileus.monitor.state.types import StateConfiguration, StateIo, StateObserved
from pileus.node.monitor.contents import read_status
from pileus.node.monitor.standing import Standing

COUNTED_S = 30.0
"""Agents report counters every ten seconds; what is older says nothing of now."""
ROW_BYTES_MAX = 256 << 10
"""Far more than an honest engine's row takes."""


class Appliance(Struct, kw_only=True):
    """One that is watched: its row, its VM, and the node that the VM is, as they were read last."""

    row: Resource
    vm: Resource | None = None
    node: Resource | None = None
    heard: Vitals | None = None
    """What was heard of it last."""
    said: NodeObserved | None = None
    """What its node's row said when it was heard."""
    polled_at: float = 0.0
    written_at: float = 0.0
    findings: dict[str, dict[str, Any]] = {}
    """By signature: how its last scan ended, which the engine reads as ``other.findings``."""


def described_by(vm: Resource | None) -> tuple[object, ...]:
    """Return what of a VM stands in the engine's document."""
    return (vm.name, dict(vm.labels)) if vm is not None else ()


def described(appliance: Appliance) -> dict[str, Any]:
    """Return an appliance as the engine's document says it."""
    row = appliance.row
    observed: StateObserved | None = row.observed
    vm = appliance.vm
    return {
        "name": vm.name if vm is not None else "",
        "node": appliance.node.name if appliance.node is not None else "",
        "labels": dict(vm.labels) if vm is not None else {},
        "epoch": row.assigned.epoch,
        "resume": {**msgspec.to_builtins(observed), "vm": row.assigned.vm} if observed is not None else {},
    }


def as_remembered(appliance: Appliance, vitals: Vitals) -> Vitals:
    """Return the vitals with what the node said last, while its host has not heard it: an agent that begins anew knows
    nothing of before, and nothing follows from that. After another start of the VM the old words are worth nothing."""
    if vitals.node != "silent" or vitals.status or vitals.boot_id:
        return vitals
    heard, row = appliance.heard, appliance.row.observed
    if heard is not None and heard.boots == vitals.boots:
        return replace(vitals, **{word: getattr(heard, word) for word in ("boot_id", "hash", "version", "status")})
    if heard is None and row is not None and row.kept_by:
        told: NodeObserved | None = appliance.node.observed if appliance.node is not None else None
        last = told.last if told is not None else None
        return replace(vitals, boot_id=last.boot_id, status=last.status) if last is not None else vitals
    if heard is None and row is not None and row.execution.boots == vitals.boots:
        return replace(
            vitals,
            boot_id=row.execution.boot_id,
            hash=row.configuration.hash,
            version=row.configuration.version,
            status={**row.other, "applications": row.applications},
        )
    return vitals


def bounded(observed: StateObserved) -> StateObserved | None:
    """Return a row as an honest engine would have made it, None for one that none makes: a customer's VM said it."""
    content = read_status({**observed.other, "applications": observed.applications})
    ignored = observed.other.get("ignored")
    count = ignored if type(ignored) is int and 0 <= ignored < 1 << 53 else 0
    other = {**content.other, "ignored": count + content.left_out}
    standing = Standing(observed.standing).copied()
    kept = replace(observed, applications=content.applications, other=other, standing=standing)
    return kept if len(msgspec.json.encode(kept)) <= ROW_BYTES_MAX else None


def to_store(observed: StateObserved) -> StateObserved:
    """Return what is stored of a row of a table in memory: whether it runs, and what was acted on; none of its words."""
    return replace(observed, configuration=StateConfiguration(), io=StateIo(), applications={}, other={})


def is_stored(stored: StateObserved | None, observed: StateObserved) -> bool:
    """Tell whether what is stored of a row of a table in memory says all that it has to say."""
    return stored is not None and _core(to_store(observed)) == _core(stored)


def _core(observed: StateObserved) -> StateObserved:
    """Return the row without what changes all the time: a clause that begins to hold is no incident yet."""
    execution = replace(observed.execution, heard_at=0.0, misses=0, since=0.0)
    standing = {
        key: {word: entry.get(word) for word in ("incident", "acted")} | {"stands": entry.get("since") is not None}
        for key, entry in observed.standing.items()
        if isinstance(entry, dict) and (entry.get("incident") or entry.get("since") is not None)
    }
    return replace(observed, at=0.0, origin="", execution=execution, standing=standing)


def is_other(appliance: Appliance) -> bool:
    """Tell whether its node's row says other words of applications than the watcher before wrote."""
    row: StateObserved | None = appliance.row.observed
    said: NodeObserved | None = appliance.node.observed if appliance.node is not None else None
    return row is not None and said is not None and read_status(said.status).applications != row.applications


def from_rows(vm: Resource, node: Resource | None, is_node_new: bool) -> Vitals:
    """Return what the rows of an appliance say; its counters are not known from there."""
    power: VmObserved | None = vm.observed
    told: NodeObserved | None = node.observed if node is not None else None
    is_silent = vm.ready is not None and vm.ready.status == "unknown"
    process = power.power if power is not None and not is_silent else "unknown"
    return Vitals(
        vm=vm.id,
        process="hung" if is_hung(vm) else "stopped" if process == "absent" else process,
        boots=power.boots if power is not None else 0,
        node=told.state if told is not None else "absent",
        heard_s=0.0 if is_node_new and told is not None and told.state == "ready" else -1.0,
        boot_id=told.boot_id if told is not None else "",
        hash=told.hash if told is not None else "",
        version=told.version if told is not None else "",
        status=told.status if told is not None else {},
    )


class _Disk(Struct, frozen=True):
    disk_read_bytes: int = 0
    disk_write_bytes: int = 0


class _Port(Struct, frozen=True):
    tx_bytes: int = 0


async def counted(store: Store, vm: Resource, vitals: Vitals) -> Vitals | None:
    """Return the vitals with the counters that the VM's host reported lately; None when it reported none."""
    sample = await store.sample(vm.id)
    if sample is None or not 0 <= store.clock() - sample[0] <= COUNTED_S:
        return None
    disk = msgspec.json.decode(sample[1], type=_Disk)
    ports = [await store.sample(port) for port in vm.assigned.ports]
    sent = sum(msgspec.json.decode(port[1], type=_Port).tx_bytes for port in ports if port is not None)
    return replace(vitals, disk_bytes=disk.disk_read_bytes + disk.disk_write_bytes, net_bytes=sent)
