"""Traffic of VMs by the hour: what a port's counters grew by, added in the transaction that stores them."""

from __future__ import annotations

from typing import Annotated, NamedTuple

import msgspec
from msgspec import Meta, Struct

from pileus.compute.vm.types import is_free
from pileus.kernel import records
from pileus.kernel.clock import unix
from pileus.kernel.kind import Resource
from pileus.kernel.store import statements as sql
from pileus.kernel.transaction import Transaction
from pileus.metering.plan import HOUR_S

BYTES_PER_S_MAX = 1 << 37
"""More than a host carries: a terabit in a second."""
GROWTH_MAX = 1 << 56
"""Bytes between two samples, however long that was: an hour's sum stays in 64 bits, with all NICs that a VM may have."""

_Bytes = Annotated[int, Meta(ge=0)]


class _Counters(Struct, frozen=True):
    rx_bytes: _Bytes = 0
    tx_bytes: _Bytes = 0


class Sampled(NamedTuple):
    """A resource, when its stored counters came and what they are, and its owner."""

    resource: Resource
    stored: tuple[float, str] | None
    owner: Resource | None


async def find_sampled(tx: Transaction, id: str) -> Sampled | None:
    """Return what a sample is of, read at once; None: it is not there."""
    rows = await tx.statement(sql.SAMPLED, id=id)
    if not rows:
        return None
    width = len(sql.COLUMNS)
    own, (at, body), owner = rows[0][:width], rows[0][width:-width], rows[0][-width:]
    return Sampled(
        resource=records.decode(tx.registry, own),
        stored=(at, body) if body is not None else None,
        owner=records.decode(tx.registry, owner) if owner[0] is not None else None,
    )


async def note_traffic(tx: Transaction, sampled: Sampled, counters: str) -> None:
    """Add what passed since the sample that is stored to the VM's hour, before ``counters`` takes that one's place."""
    port, vm = sampled.resource, sampled.owner
    if port.kind != "network.port" or vm is None or vm.kind != "compute.vm" or not vm.account_id or is_free(vm):
        return
    at, stored = sampled.stored or (unix(port.created_at), "{}")
    before = _read(stored)
    after = _read(counters)
    if after.rx_bytes < before.rx_bytes or after.tx_bytes < before.tx_bytes:
        before = _Counters()  # the port was made anew, and counts from nothing
    received, sent = after.rx_bytes - before.rx_bytes, after.tx_bytes - before.tx_bytes
    if not received and not sent:
        return
    most = min(int(BYTES_PER_S_MAX * max(tx.now - at, 1.0)), GROWTH_MAX)
    await tx.change(
        tx.insert.traffic,
        id=vm.id,
        hour=tx.now // HOUR_S * HOUR_S,
        kind=vm.kind,
        name=vm.name,
        account_id=vm.account_id,
        account=vm.account,
        received_bytes=min(received, most),
        sent_bytes=min(sent, most),
    )


def _read(counters: str) -> _Counters:
    try:
        return msgspec.json.decode(counters, type=_Counters)
    except (msgspec.DecodeError, RecursionError):  # what no agent of ours says counts nothing
        return _Counters()
