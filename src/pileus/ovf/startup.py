"""The order in which the VMs of a package are started, nested collections put in line."""

from __future__ import annotations

from pileus.ovf.model import Content, Startup, StartupItem, VirtualSystem

_LAST = 1 << 16
"""Order 0 means no order: such members start with the last, when nobody waits for them."""


def startups(content: Content) -> dict[str, Startup]:
    """Return when each VM is started, by its id; a VM outside collections is alone in stage 0."""
    placed = _placed(content, (), None)
    stages = {place: number for number, place in enumerate(sorted({place for _, place, _ in placed}))}
    return {system: _startup(stages[place], item) for system, place, item in placed}


def _startup(stage: int, item: StartupItem | None) -> Startup:
    if item is None:
        return Startup(stage=stage)
    return Startup(
        stage=stage,
        start_delay_s=item.start_delay_s,
        waiting_for_guest=item.waiting_for_guest,
        stop_delay_s=item.stop_delay_s,
        start_action=item.start_action,
        stop_action=item.stop_action,
    )


def _placed(
    part: Content, place: tuple[int, ...], item: StartupItem | None
) -> list[tuple[str, tuple[int, ...], StartupItem | None]]:
    if isinstance(part, VirtualSystem):
        return [(part.id, place, item)]
    items = {one.id: one for one in part.startup}
    found = []
    for member in part.members:
        own = items.get(member.id)
        order = own.order if own is not None and own.order else _LAST
        found += _placed(member, (*place, order), own if own is not None else item)
    return found
