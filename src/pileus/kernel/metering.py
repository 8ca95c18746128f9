"""The meter: runs of use, each written in the transaction that makes it true, so that none is lost or counted twice."""

from __future__ import annotations

import msgspec

from pileus.kernel.clock import unix
from pileus.kernel.kind import Registry, Resource
from pileus.kernel.store import statements as sql
from pileus.kernel.store.engine import Session
from pileus.kernel.usage import Run, Use, bounded, follow


async def note_change(
    session: Session, now: float, registry: Registry, old: Resource | None, new: Resource | None
) -> None:
    """Note what a write means for the use of a resource: made (``old`` None), changed, or gone (``new`` None)."""
    resource = new or old
    meter = registry[resource.kind].meter if resource is not None and resource.account_id else None
    if meter is None or resource is None:
        return
    before = meter(old) if old is not None else Use()
    after = meter(new) if new is not None else Use()
    if after is None or after == before:
        return
    if before is not None and after.since == before.since:
        after = msgspec.structs.replace(after, since="")  # it started or ended before: this is another change
    await note(session, now, resource, after, is_heard=new is not None)


async def note_now(session: Session, now: float, registry: Registry, resource: Resource) -> None:
    """Note what a resource uses from now on; what it used unmetered is not made up."""
    meter = registry[resource.kind].meter
    use = meter(resource) if meter is not None and resource.account_id else None
    if use is not None:
        await note(session, now, resource, Use(use.amounts, host=use.host))


async def note(session: Session, now: float, resource: Resource, use: Use, *, is_heard: bool = True) -> None:
    """Note that the resource uses this; noted already: nothing.

    Not ``is_heard``: nobody looked, and what only a host could know is counted until that host was heard last.
    """
    last = await _last(session, resource)
    if use.ran is not None and _is_news(use.ran, last, until=_moment(use.since)):
        await note(session, now, resource, use.ran)
        last = await _last(session, resource)
    if last is not None and last.host and not is_heard:
        seen = await session.all(sql.PRESENCE, host=last.host)
        now = min(now, seen[0][0]) if seen else now
    since = _moment(use.since)
    if last is not None and not last.until and last.host and last.host == use.host and since <= last.since:
        since = 0.0  # that start is known: what changed, changed later
    wish = Run(since, 0.0, bounded(use.amounts), use.host)
    ended, begun = follow(last, wish, now, unix(resource.created_at))
    if ended is not None and ended.until > ended.since:
        await session.run(sql.USAGE_END, b_id=resource.id, b_since=ended.since, until=ended.until)
    elif ended is not None:
        await session.run(sql.USAGE_DROP, id=resource.id, since=ended.since)
    if begun is not None:
        whose = {"account_id": resource.account_id, "account": resource.account}
        what = {"id": resource.id, "kind": resource.kind, "name": resource.name}
        amounts = msgspec.json.encode(begun.amounts).decode()
        run = {"since": begun.since, "until": 0.0, "host": begun.host, "amounts": amounts}
        await session.run(session.statements.usage, **whose, **what, **run)


def _moment(text: str) -> float:
    """Return Unix seconds; 0 for what is no time: a host may say what it likes, and then the write is the moment."""
    try:
        return max(unix(text), 0.0) if text else 0.0
    except (ValueError, OverflowError):
        return 0.0


async def _last(session: Session, resource: Resource) -> Run | None:
    rows = await session.all(sql.USAGE_LAST, id=resource.id)
    if not rows:
        return None
    since, until, amounts, host = rows[0]
    return Run(since, until, msgspec.json.decode(amounts, type=dict[str, int]), host)


def _is_news(ran: Use, last: Run | None, until: float) -> bool:
    """Tell whether something began after what is known, and ended: what is known may have been told by it."""
    known_until = (last.until or last.since) if last is not None else 0.0
    return known_until < _moment(ran.since) < until
