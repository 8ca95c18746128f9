"""What a server makes of a host's answer about vitals: of the VMs that it asked about, and of no others."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Sequence

import msgspec

from pileus.fleet.vitals import VMS_MAX, Vitals
from pileus.kernel.errors import Transient

WAY_S = 1.0
"""What the way to the host and back may take, besides the time that its VMs are given."""
VM_BYTES_MAX = 96 * 1024
"""Of one VM's vitals: the status of its node has at most 64 KiB."""


def batches(vms: Sequence[str]) -> list[Sequence[str]]:
    """Return the VMs in as few messages as may be."""
    return [vms[start : start + VMS_MAX] for start in range(0, len(vms), VMS_MAX)]


async def collect(answer: AsyncIterator[bytes], asked: Collection[str], timeout_s: float) -> dict[str, Vitals]:
    """Return the vitals by VM. Raises: Transient (no-answer; bad-answer for what no agent of ours says)."""
    found: dict[str, Vitals] = {}
    wanted = frozenset(asked)
    left = len(wanted) * VM_BYTES_MAX
    try:
        async with asyncio.timeout(timeout_s + WAY_S):
            async for part in answer:
                left -= len(part)
                if left < 0:
                    raise Transient("its host says more of its VMs than it may", code="bad-answer")
                found.update((each.vm, each) for each in _read(part) if each.vm in wanted)
    except TimeoutError:
        raise Transient("the host did not answer in time", code="no-answer") from None
    return found


def _read(part: bytes) -> list[Vitals]:
    try:
        return msgspec.json.decode(part, type=list[Vitals])
    except (msgspec.DecodeError, RecursionError) as error:
        raise Transient(f"its host says nonsense about its VMs: {error}", code="bad-answer") from error
