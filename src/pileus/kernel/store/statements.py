"""Every statement of a transaction, built once per dialect. Names say what they do to which table."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import sqlalchemy as sa

from pileus.kernel.store.tables import (
    audit,
    budget,
    charge,
    claim,
    content,
    counter,
    credential,
    event,
    gone,
    idempotency,
    journal,
    label,
    lease,
    link,
    notice,
    presence,
    promise,
    resource,
    sample,
    setting,
    traffic,
    unindexed,
    usage,
    work,
)

COLUMNS = [column.name for column in resource.columns]

_p = sa.bindparam
ALL = sa.select(resource)

GET = ALL.where(resource.c.id == _p("id"))
AT_ONCE = 8
GET_ALL = ALL.where(resource.c.id.in_([_p(f"id{position}") for position in range(AT_ONCE)]))
FIND = ALL.where(
    resource.c.kind == _p("kind"), resource.c.account_id == _p("account_id"), resource.c.name == _p("name")
)
CHILDREN = (
    ALL.where(resource.c.owner == _p("owner"), resource.c.owner != sa.literal_column("''"))  # the partial index's words
    .order_by(resource.c.id)
    .limit(_p("n"))
)
CHANGES = (
    sa.select(resource.c.revision, resource.c.id, resource.c.kind, resource.c.account_id, resource.c.host)
    .where(resource.c.revision > _p("after"))
    .order_by(resource.c.revision)
    .limit(_p("n"))
)
CHANGED = (
    ALL.where(
        unindexed(resource.c.kind) == _p("kind"), resource.c.revision > _p("after"), resource.c.revision <= _p("until")
    )
    .order_by(resource.c.revision)
    .limit(_p("n"))
)
GONE_OF = (
    sa.select(gone)
    .where(gone.c.kind == _p("kind"), gone.c.revision > _p("after"), gone.c.revision <= _p("until"))
    .order_by(gone.c.revision)
    .limit(_p("n"))
)
# ``common``: the account whose rows are seen too: "" for the cluster's.
CHANGED_SEEN = CHANGED.where(unindexed(resource.c.account_id).in_([_p("account_id"), _p("common")]))
GONE_SEEN = GONE_OF.where(gone.c.account_id.in_([_p("account_id"), _p("common")]))
CHANGED_MANAGED = CHANGED.where(unindexed(resource.c.manager) == _p("manager"))
GONE_MANAGED = GONE_OF.where(gone.c.manager == _p("manager"))
GONE = sa.select(gone).where(gone.c.revision > _p("after")).order_by(gone.c.revision).limit(_p("n"))
NEWEST = sa.select(counter.c.value).where(counter.c.name == sa.literal_column("'revision'"))

UPDATE = (
    sa.update(resource)
    .where(resource.c.id == _p("b_id"), resource.c.revision == _p("b_revision"))
    .values(
        {c: _p(c) for c in COLUMNS if c not in ("id", "kind", "name", "account_id", "account", "owner", "created_at")}
    )
)
DELETE = sa.delete(resource).where(resource.c.id == _p("id"))

LABELS_DELETE = sa.delete(label).where(label.c.id == _p("id"))
LINKS_OF = sa.select(link.c.field, link.c.target).where(link.c.source == _p("source"))
SOURCES_OF = sa.select(link.c.source).where(link.c.target == _p("target")).order_by(link.c.source)
LINKS_DELETE = sa.delete(link).where(link.c.source == _p("source"))
LINKED_BY = (
    sa.select(resource)
    .select_from(link.join(resource, link.c.source == resource.c.id))
    .where(link.c.target == _p("target"), resource.c.owner != _p("target"))
    .limit(1)
)
DELETING_TARGETS = (
    sa.select(resource.c.id)
    .select_from(link.join(resource, link.c.target == resource.c.id))
    .where(link.c.source == _p("source"), resource.c.deleting_at.is_not(None))
)

DELETING = sa.select(resource.c.id).where(resource.c.id == _p("id"), resource.c.deleting_at.is_not(None))

ON_HOST = sa.select(resource.c.id).where(resource.c.host == _p("host"), resource.c.host != sa.literal_column("''"))
TENANTS_ON_HOST = (
    sa.select(resource.c.kind, resource.c.name)
    .where(
        resource.c.host == _p("host"),
        resource.c.host != sa.literal_column("''"),
        resource.c.account_id != sa.literal_column("''"),
    )
    .limit(1)
)

CLAIM_OWNER = sa.select(claim.c.owner).where(claim.c.space == _p("space"), claim.c.value == _p("value"))
CLAIMED = sa.select(claim.c.value, claim.c.number).where(claim.c.owner == _p("owner"), claim.c.space == _p("space"))
SPACES_OF = sa.select(claim.c.space).where(claim.c.owner == _p("owner"))
CLAIM_RELEASE = sa.delete(claim).where(claim.c.owner == _p("owner"))
CLAIM_RELEASE_SPACE = sa.delete(claim).where(claim.c.owner == _p("owner"), claim.c.space == _p("space"))
CLAIM_RELEASE_VALUE = sa.delete(claim).where(
    claim.c.owner == _p("owner"), claim.c.space == _p("space"), claim.c.value == _p("value")
)
CLAIM_LAST = sa.select(sa.func.max(claim.c.number)).where(claim.c.space == _p("space"), claim.c.number <= _p("high"))
_next = claim.alias("next")
CLAIM_GAP = sa.select(sa.func.min(claim.c.number)).where(
    claim.c.space == _p("space"),
    claim.c.number >= _p("low"),
    claim.c.number < _p("high"),
    ~sa.exists().where(_next.c.space == claim.c.space, _next.c.number == claim.c.number + 1),
)
CLAIM_NUMBER = sa.select(claim.c.owner).where(claim.c.space == _p("space"), claim.c.number == _p("number"))
QUEUE = (
    sa.select(claim.c.owner)
    .where(claim.c.space == _p("space"), claim.c.number.is_not(None))
    .order_by(claim.c.number)
    .limit(_p("n"))
)
QUEUE_LENGTH = sa.select(sa.func.count()).select_from(claim).where(claim.c.space == _p("space"))

CONTENT = sa.select(content.c.body).where(content.c.id == _p("id"), content.c.part == _p("part"))
CONTENT_BYTES = sa.select(sa.func.coalesce(sa.func.sum(content.c.size_bytes), 0)).where(
    content.c.account_id == _p("account_id")
)
CONTENT_DELETE = sa.delete(content).where(content.c.id == _p("id"))
CONTENT_PART_DELETE = CONTENT_DELETE.where(content.c.part == _p("part"))

BUDGET = sa.select(budget.c.capacity, budget.c.used).where(budget.c.space == _p("space"))
BUDGET_ADD = (
    sa.update(budget)
    .where(
        budget.c.space == _p("b_space"),
        sa.or_(_p("delta", type_=sa.BigInteger) <= 0, budget.c.used + _p("delta") <= budget.c.capacity),
    )
    .values(used=budget.c.used + _p("delta"))
)
BUDGET_DELETE = sa.delete(budget).where(budget.c.space == _p("space"))
_CHARGED = sa.and_(charge.c.space == _p("space"), charge.c.owner == _p("owner"))
CHARGE = sa.select(
    sa.func.coalesce(sa.select(charge.c.amount).where(_CHARGED).scalar_subquery(), 0),
    sa.func.coalesce(sa.select(charge.c.until).where(_CHARGED).scalar_subquery(), 0.0),
    sa.exists().where(promise.c.space == _p("space")),
)
"""How much is charged, until when, and whether anything of the space is promised; always one row."""
CHARGES_OF = sa.select(charge.c.space, charge.c.amount).where(charge.c.owner == _p("owner"))
CHARGE_DELETE = sa.delete(charge).where(_CHARGED)
CHARGES_TIMED = sa.select(charge.c.owner, charge.c.amount, charge.c.until).where(
    charge.c.space == _p("space"), charge.c.until != sa.literal_column("0")
)
PROMISES = sa.select(promise.c.owner, promise.c.amount, promise.c.start, promise.c.until).where(
    promise.c.space == _p("space")
)
PROMISES_OF = sa.select(promise.c.space).where(promise.c.owner == _p("owner"))
PROMISE_DELETE = sa.delete(promise).where(promise.c.space == _p("space"), promise.c.owner == _p("owner"))

WORK_DUE = (
    sa.select(work.c.id, work.c.token, work.c.attempts, work.c.seq)
    .where(work.c.due <= _p("now"), work.c.lease_until <= _p("now"))
    .order_by(work.c.due)
    .limit(_p("n"))
)
WORK_LEASE = (
    sa.update(work)
    .where(work.c.id == _p("b_id"))
    .values(lease_until=_p("until"), server=_p("server"), token=_p("token"))
)
WORK_RENEW = (
    sa.update(work)
    # A lease that was given back keeps its token: a renewal that comes later must not take it again.
    .where(work.c.id == _p("b_id"), work.c.token == _p("b_token"), work.c.lease_until > 0)
    .values(lease_until=_p("until"))
)
WORK_TOKEN = sa.select(work.c.token, work.c.seq).where(work.c.id == _p("id"))
WORK_AGAIN = (
    sa.update(work)
    .where(work.c.id == _p("b_id"), work.c.token == _p("b_token"))
    .values(
        lease_until=0.0,
        server="",
        due=sa.case((work.c.seq == _p("b_seq"), _p("due", type_=sa.Double)), else_=_p("now", type_=sa.Double)),
        attempts=_p("attempts"),
    )
)
WORK_DELETE = sa.delete(work).where(work.c.id == _p("id"))
WORK_NEXT = sa.select(sa.func.min(sa.case((work.c.lease_until > work.c.due, work.c.lease_until), else_=work.c.due)))
WORK_AHEAD = (
    sa.update(work)
    .where(sa.or_(work.c.due > _p("due_max"), work.c.lease_until > _p("lease_max")))
    .values(
        due=sa.case((work.c.due > _p("due_max"), _p("now", type_=sa.Double)), else_=work.c.due),
        lease_until=sa.case((work.c.lease_until > _p("lease_max"), 0.0), else_=work.c.lease_until),
    )
)
WORK_MISSING = (
    sa.select(resource.c.id)
    .where(resource.c.ready != "true", resource.c.id.not_in(sa.select(work.c.id)), resource.c.id > _p("after"))
    .order_by(resource.c.id)
    .limit(_p("n"))
)

# ``kinds``: their names, each between commas: ",compute.vm,network.port,".
_of_kinds = _p("kinds", type_=sa.Text).contains("," + event.c.kind + ",")
_events = sa.select(event).where(event.c.seq > _p("after"), _of_kinds).limit(_p("n"))
_scoped = {
    "": _events,
    "id": _events.where(event.c.id == _p("id")),
    "account_id": _events.where(event.c.account_id == _p("account_id")),
}
_managed = _events.where(event.c.manager == _p("manager"), event.c.manager != sa.literal_column("''"))
EVENTS_NEWEST = {scope: statement.order_by(event.c.seq.desc()) for scope, statement in _scoped.items()}
EVENTS_AFTER = {scope: statement.order_by(event.c.seq) for scope, statement in _scoped.items()}
EVENTS_MANAGED_AFTER = _managed.order_by(event.c.seq)
EVENTS_MANAGED_BEFORE = _managed.where(event.c.seq < _p("before")).order_by(event.c.seq.desc())
AUDIT = sa.select(audit).order_by(audit.c.at.desc()).limit(_p("n"))
AUDIT_ACCOUNT = AUDIT.where(audit.c.account_id == _p("account_id"))
AUDIT_LAST = sa.select(sa.func.max(audit.c.seq)).where(audit.c.server == _p("server"))
IDEMPOTENCY = sa.select(idempotency.c.digest, idempotency.c.status, idempotency.c.body).where(
    idempotency.c.principal == _p("principal"), idempotency.c.key == _p("key")
)
STANDING = sa.select(resource.c.account_id, resource.c.revision, resource.c.deleting_at).where(
    resource.c.manager == _p("manager"),
    resource.c.manager != sa.literal_column("''"),
    resource.c.kind == _p("kind"),
)
STANDING_GONE = sa.select(sa.func.max(gone.c.revision)).where(
    gone.c.manager == _p("manager"), gone.c.kind == _p("kind")
)
CREDENTIAL = sa.select(credential.c.purpose, credential.c.id, credential.c.expires_at).where(
    credential.c.hash == _p("hash")
)
CREDENTIAL_DELETE = sa.delete(credential).where(credential.c.hash == _p("hash"))
CREDENTIALS_DELETE = sa.delete(credential).where(credential.c.id == _p("id"))
PRESENCE = sa.select(presence.c.seen_at, presence.c.server).where(presence.c.host == _p("host"))
PRESENCE_DELETE = sa.delete(presence).where(presence.c.host == _p("host"))
SILENT = (
    sa.select(presence.c.host)
    .select_from(presence.join(resource, presence.c.host == resource.c.id))
    .where(presence.c.seen_at < _p("before"), resource.c.reason != "HostSilent")
)
_stream = journal.c.stream == _p("stream")
JOURNAL_NEXT = (
    sa.select(journal.c.seq, journal.c.at, journal.c.kind, journal.c.body)
    .where(_stream)
    .order_by(journal.c.seq)
    .limit(_p("n"))
)
JOURNAL_AFTER = (
    sa.select(journal.c.seq, journal.c.at, journal.c.kind, journal.c.body)
    .where(_stream, journal.c.seq > _p("after"))
    .order_by(journal.c.seq)
    .limit(_p("n"))
)
JOURNAL_LAST = sa.select(sa.func.max(journal.c.seq)).where(_stream, journal.c.seq <= _p("until"))
JOURNAL_WAITING = sa.select(sa.func.count(), sa.func.min(journal.c.at)).where(_stream)
JOURNAL_DELETE = sa.delete(journal).where(_stream, journal.c.seq <= _p("until"))
JOURNAL_END = sa.delete(journal).where(_stream)
LEASE = sa.select(lease.c.holder, lease.c.token, lease.c.until).where(lease.c.id == _p("id"))
LEASE_RENEW = (
    sa.update(lease)
    .where(lease.c.id == _p("b_id"), lease.c.token == _p("b_token"), lease.c.until > 0)
    .values(until=_p("until"))
)
LEASE_END = sa.update(lease).where(lease.c.id == _p("b_id"), lease.c.token == _p("b_token")).values(until=0.0)
LEASE_DELETE = sa.delete(lease).where(lease.c.id == _p("id"))
SAMPLE = sa.select(sample.c.at, sample.c.body).where(sample.c.id == _p("id"))
_owner = resource.alias("owned_by")
SAMPLED = (
    sa.select(resource, sample.c.at, sample.c.body, *_owner.c)
    .select_from(
        resource.outerjoin(sample, sample.c.id == resource.c.id).outerjoin(_owner, _owner.c.id == resource.c.owner)
    )
    .where(resource.c.id == _p("id"))
)
"""A resource, the time and body of its sample, and its owner, in one row: read for every sample that comes."""
SAMPLE_DELETE = sa.delete(sample).where(sample.c.id == _p("id"))
_newest = notice.c.keep == sa.literal_column("'newest'")
_notices = notice.c.manager == _p("manager")
NOTICE_SUBJECTS = (
    sa.select(notice.c.subject)
    .where(_notices)
    .group_by(notice.c.subject)
    .order_by(sa.func.min(notice.c.seq))
    .limit(_p("n"))
)
NOTICE_NEXT = (
    sa.select(notice.c.seq, notice.c.id, notice.c.account_id, notice.c.body)
    .where(_notices, notice.c.subject == _p("subject"))
    .order_by(notice.c.seq)
    .limit(1)
)
NOTICE_DELETE = sa.delete(notice).where(notice.c.seq == _p("seq"))
NOTICE_REPLACED = sa.delete(notice).where(_notices, notice.c.subject == _p("subject"), _newest)
NOTICES = sa.select(sa.func.count()).select_from(notice).where(_notices)
NOTICES_DELETE = sa.delete(notice).where(_notices)
NOTICES_DELETE_OF = NOTICES_DELETE.where(notice.c.account_id == _p("account_id"))
_first = sa.select(notice.c.seq).where(_notices).order_by(sa.case((_newest, 0), else_=1), notice.c.seq).limit(_p("n"))
NOTICES_TRIM = sa.delete(notice).where(notice.c.seq.in_(_first))
_run = sa.and_(usage.c.id == _p("id"), usage.c.since == _p("since"))
USAGE_LAST = (
    sa.select(usage.c.since, usage.c.until, usage.c.amounts, usage.c.host)
    .where(usage.c.id == _p("id"))
    .order_by(usage.c.since.desc())
    .limit(1)
)
USAGE_END = sa.update(usage).where(usage.c.id == _p("b_id"), usage.c.since == _p("b_since")).values(until=_p("until"))
USAGE_DROP = sa.delete(usage).where(_run)
USAGE_LEFT = (
    sa.select(usage.c.id, usage.c.since, sa.func.max(gone.c.at))
    .select_from(usage.outerjoin(gone, gone.c.id == usage.c.id))
    .where(usage.c.until == sa.literal_column("0"), ~sa.exists().where(resource.c.id == usage.c.id))
    .group_by(usage.c.id, usage.c.since)
)
_used = sa.and_(usage.c.since < _p("until"), sa.or_(usage.c.until == 0, usage.c.until > _p("since")))
# Pages in the order of an index, each from where the last ended: the first words are what an index is searched by.
_after = sa.and_(usage.c.id >= _p("after"), sa.or_(usage.c.id > _p("after"), usage.c.since > _p("after_at")))
USAGE = (
    sa.select(usage, presence.c.seen_at)
    .select_from(usage.outerjoin(presence, presence.c.host == usage.c.host))
    .where(_used, _after, usage.c.id <= _p("last"))
    .order_by(usage.c.id, usage.c.since)
    .limit(_p("n"))
)
USAGE_ACCOUNT = USAGE.where(usage.c.account_id == _p("account_id"))
# Where a stretch of so many runs ends: one statement reads no more, however few of them are of the time that is asked for.
USAGE_FAR = sa.select(usage.c.id).where(usage.c.id > _p("after")).order_by(usage.c.id, usage.c.since).limit(1)
USAGE_FAR = USAGE_FAR.offset(_p("n"))
USAGE_FAR_ACCOUNT = USAGE_FAR.where(usage.c.account_id == _p("account_id"))
TRAFFIC = (
    sa.select(traffic)
    .where(
        traffic.c.hour >= _p("after_at"),
        traffic.c.hour < _p("until"),
        sa.or_(traffic.c.hour > _p("after_at"), traffic.c.id > _p("after")),
    )
    .order_by(traffic.c.hour, traffic.c.id)
    .limit(_p("n"))
)
TRAFFIC_ACCOUNT = TRAFFIC.where(traffic.c.account_id == _p("account_id"))
SETTING = sa.select(setting.c.value).where(setting.c.name == _p("name"))
GONE_LAST = sa.select(sa.func.max(gone.c.revision)).where(gone.c.at < _p("before"))
FORGOTTEN = "gone-forgotten"
"""The setting with the newest revision whose deletion is forgotten."""
_oldest = sa.select(event.c.seq, event.c.at).order_by(event.c.seq).limit(_p("n")).subquery()
PRUNE_EVENTS = sa.delete(event).where(event.c.seq.in_(sa.select(_oldest.c.seq).where(_oldest.c.at < _p("before"))))
PRUNE = (
    sa.delete(gone).where(gone.c.at < _p("before")),
    sa.delete(idempotency).where(idempotency.c.at < _p("before")),
    sa.delete(credential).where(credential.c.expires_at > 0, credential.c.expires_at < _p("before")),
)


class Statements:
    """The inserts, whose ON CONFLICT is spelled by the dialect."""

    def __init__(self, insert: Callable[[sa.Table], Any]) -> None:
        def of(table: sa.Table) -> Any:
            return insert(table).values({column.name: _p(column.name) for column in table.columns})

        def upsert(table: sa.Table, *, only: tuple[str, ...] = ()) -> Any:
            statement = of(table)
            keys = [column.name for column in table.primary_key]
            names = only or tuple(column.name for column in table.columns if column.name not in keys)
            return statement.on_conflict_do_update(
                index_elements=keys, set_={name: statement.excluded[name] for name in names}
            )

        self.resource = of(resource)
        self.gone = of(gone)
        self.label = of(label)
        self.link = upsert(link)
        self.claim = of(claim).on_conflict_do_nothing()
        self.capacity = insert(budget).values(space=_p("space"), capacity=_p("capacity"), used=0)
        self.capacity = self.capacity.on_conflict_do_update(
            index_elements=["space"], set_={"capacity": self.capacity.excluded.capacity}
        )
        self.charge = upsert(charge)
        self.promise = upsert(promise)
        enqueue = insert(work).values(
            id=_p("id"), due=_p("due"), lease_until=0.0, server="", token=0, attempts=0, seq=1
        )
        self.enqueue = enqueue.on_conflict_do_update(
            index_elements=["id"],
            set_={
                "due": sa.case((enqueue.excluded.due < work.c.due, enqueue.excluded.due), else_=work.c.due),
                "seq": work.c.seq + 1,
            },
        )
        self.event = of(event)
        self.audit = of(audit)
        self.idempotency = of(idempotency)
        self.credential = of(credential)
        self.presence = upsert(presence)
        self.journal = of(journal)
        self.lease = upsert(lease)
        self.sample = upsert(sample)
        self.content = upsert(content)
        self.notice = of(notice)
        self.usage = upsert(usage)
        added = of(traffic)
        self.traffic = added.on_conflict_do_update(
            index_elements=["id", "hour"],
            set_={word: traffic.c[word] + added.excluded[word] for word in ("received_bytes", "sent_bytes")},
        )
        self.setting = upsert(setting)
