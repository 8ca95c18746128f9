"""The database: one generic table for resources, and one each where uniqueness or appending matters.

Only a schema and statement compiler: SQLAlchemy Core builds, sqlite3 and asyncpg execute. JSON is TEXT on both engines
(measured: JSONB costs 3.7 times the CPU per page, and nothing here looks into it).
"""

from __future__ import annotations

from collections.abc import Collection

import sqlalchemy as sa
from sqlalchemy.engine.interfaces import Dialect
from sqlalchemy.schema import CreateColumn

metadata = sa.MetaData()


def _text(name: str, *, default: str | None = "", primary_key: bool = False) -> sa.Column[str]:
    if primary_key:
        return sa.Column(name, sa.Text, primary_key=True)
    return sa.Column(name, sa.Text, nullable=default is None, server_default=default)


def _number(name: str, *, primary_key: bool = False) -> sa.Column[int]:
    if primary_key:
        return sa.Column(name, sa.BigInteger, primary_key=True, autoincrement=False)
    return sa.Column(name, sa.BigInteger, nullable=False, server_default="0")


def _seconds(name: str) -> sa.Column[float]:
    return sa.Column(name, sa.Double, nullable=False, server_default="0")


resource = sa.Table(
    "resource",
    metadata,
    _text("id", primary_key=True),
    _text("kind"),
    _text("name"),
    _text("account_id"),
    _text("account"),
    _text("owner"),
    _text("zone"),
    _text("vdc"),
    _text("host"),
    _text("ready"),
    _text("reason"),
    _number("generation"),
    _number("observed_generation"),
    _number("revision"),
    _text("created_at"),
    _text("deleting_at", default=None),
    _text("labels", default="{}"),
    _text("desired", default="{}"),
    _text("assigned", default=None),
    _text("observed", default=None),
    _text("conditions", default="[]"),
    _text("manager"),
)
sa.Index("resource_name", resource.c.kind, resource.c.account_id, resource.c.name)
sa.Index("resource_kind", resource.c.kind, resource.c.id)
sa.Index("resource_account", resource.c.kind, resource.c.account_id, resource.c.id)
sa.Index("resource_ready", resource.c.kind, resource.c.ready, resource.c.id)
sa.Index("resource_revision", resource.c.revision)
for _column in ("host", "zone", "vdc", "owner", "manager"):
    _set = resource.c[_column] != sa.literal_column("''")
    _order = (resource.c.id,) if _column == "owner" else (resource.c.kind, resource.c.id)
    sa.Index(f"resource_{_column}", resource.c[_column], *_order, sqlite_where=_set, postgresql_where=_set)

gone = sa.Table(
    "gone",
    metadata,
    _number("revision", primary_key=True),
    _text("id"),
    _text("kind"),
    _text("account_id"),
    _text("host"),
    _text("name"),
    _seconds("at"),
    _text("manager"),
)
sa.Index("gone_at", gone.c.at)
sa.Index("gone_host", gone.c.host, gone.c.revision)
_managed = gone.c.manager != sa.literal_column("''")
sa.Index("gone_manager", gone.c.manager, gone.c.kind, gone.c.revision, sqlite_where=_managed, postgresql_where=_managed)

label = sa.Table(
    "label",
    metadata,
    _text("id", primary_key=True),
    _text("key", primary_key=True),
    _text("value"),
)
sa.Index("label_value", label.c.key, label.c.value, label.c.id)

link = sa.Table(
    "link",
    metadata,
    _text("source", primary_key=True),
    _text("field", primary_key=True),
    _text("target"),
)
sa.Index("link_target", link.c.target)

claim = sa.Table(
    "claim",
    metadata,
    _text("space", primary_key=True),
    _text("value", primary_key=True),
    sa.Column("number", sa.BigInteger, nullable=True),
    _text("owner"),
)
sa.Index("claim_number", claim.c.space, claim.c.number)
sa.Index("claim_owner", claim.c.owner, claim.c.space)

budget = sa.Table(
    "budget",
    metadata,
    _text("space", primary_key=True),
    _number("capacity"),
    _number("used"),
)

charge = sa.Table(
    "charge",
    metadata,
    _text("space", primary_key=True),
    _text("owner", primary_key=True),
    _number("amount"),
    _seconds("until"),
)
sa.Index("charge_owner", charge.c.owner)
_timed = charge.c.until != sa.literal_column("0")
sa.Index("charge_timed", charge.c.space, charge.c.until, sqlite_where=_timed, postgresql_where=_timed)

promise = sa.Table(
    "promise",
    metadata,
    _text("space", primary_key=True),
    _text("owner", primary_key=True),
    _number("amount"),
    _seconds("start"),
    _seconds("until"),
)
sa.Index("promise_owner", promise.c.owner)

work = sa.Table(
    "work",
    metadata,
    _text("id", primary_key=True),
    _seconds("due"),
    _seconds("lease_until"),
    _text("server"),
    _number("token"),
    _number("attempts"),
    _number("seq"),
)
sa.Index("work_due", work.c.due)

event = sa.Table(
    "event",
    metadata,
    _number("seq", primary_key=True),
    _text("at"),
    _text("account_id"),
    _text("kind"),
    _text("id"),
    _text("name"),
    _text("type"),
    _text("reason"),
    _text("message"),
    _text("manager"),
)
sa.Index("event_id", event.c.id, event.c.seq)
sa.Index("event_account", event.c.account_id, event.c.seq)
_managed = event.c.manager != sa.literal_column("''")
sa.Index("event_manager", event.c.manager, event.c.seq, sqlite_where=_managed, postgresql_where=_managed)

audit = sa.Table(
    "audit",
    metadata,
    _text("server", primary_key=True),
    _number("seq", primary_key=True),
    _text("at"),
    _text("actor"),
    _text("account_id"),
    _text("verb"),
    _text("kind"),
    _text("id"),
    _text("name"),
    _text("outcome"),
    _text("address"),
    _text("request"),
)
sa.Index("audit_account", audit.c.account_id, audit.c.at)

idempotency = sa.Table(
    "idempotency",
    metadata,
    _text("principal", primary_key=True),
    _text("key", primary_key=True),
    _text("digest"),
    _number("status"),
    _text("body"),
    _seconds("at"),
)
sa.Index("idempotency_at", idempotency.c.at)

credential = sa.Table(
    "credential",
    metadata,
    _text("hash", primary_key=True),
    _text("purpose"),
    _text("id"),
    _seconds("expires_at"),
)
sa.Index("credential_id", credential.c.id)

presence = sa.Table(
    "presence",
    metadata,
    _text("host", primary_key=True),
    _seconds("seen_at"),
    _text("server"),
)

lease = sa.Table(
    "lease",
    metadata,
    _text("id", primary_key=True),
    _text("holder"),
    _number("token"),
    _seconds("until"),
)

sample = sa.Table(
    "sample",
    metadata,
    _text("id", primary_key=True),
    _seconds("at"),
    _text("body"),
)

content = sa.Table(
    "content",
    metadata,
    _text("id", primary_key=True),
    _text("part", primary_key=True),
    _text("account_id"),
    _number("size_bytes"),
    sa.Column("body", sa.LargeBinary, nullable=False),
)
sa.Index("content_account", content.c.account_id, content.c.size_bytes)

notice = sa.Table(
    "notice",
    metadata,
    _number("seq", primary_key=True),
    _text("id"),
    _text("manager"),
    _text("subject"),
    _text("account_id"),
    _text("keep"),
    _text("body"),
)
sa.Index("notice_subject", notice.c.manager, notice.c.subject, notice.c.seq)

journal = sa.Table(
    "journal",
    metadata,
    _number("seq", primary_key=True),
    _text("stream"),
    _text("at"),
    _text("kind"),
    _text("body"),
)
sa.Index("journal_stream", journal.c.stream, journal.c.seq)

usage = sa.Table(
    "usage",
    metadata,
    _text("id", primary_key=True),
    sa.Column("since", sa.Double, primary_key=True),
    _seconds("until"),
    _text("kind"),
    _text("name"),
    _text("account_id"),
    _text("account"),
    _text("host"),
    _text("amounts", default="{}"),
)
sa.Index("usage_account", usage.c.account_id, usage.c.id, usage.c.since)
_goes_on = usage.c.until == sa.literal_column("0")
sa.Index("usage_open", usage.c.id, usage.c.since, sqlite_where=_goes_on, postgresql_where=_goes_on)

traffic = sa.Table(
    "traffic",
    metadata,
    sa.Column("hour", sa.Double, primary_key=True),
    _text("id", primary_key=True),
    _text("kind"),
    _text("name"),
    _text("account_id"),
    _text("account"),
    _number("received_bytes"),
    _number("sent_bytes"),
)
sa.Index("traffic_account", traffic.c.account_id, traffic.c.hour, traffic.c.id)

counter = sa.Table("counter", metadata, _text("name", primary_key=True), _number("value"))

setting = sa.Table("setting", metadata, _text("name", primary_key=True), _text("value"))


def additions(table: sa.Table, present: Collection[str], dialect: Dialect) -> list[str]:
    """Return the statements that give ``table``, made by an older version, the columns which it lacks.

    Every column that is added has a default or may be null, so rows that are there keep their meaning.
    """
    return [
        f"ALTER TABLE {table.name} ADD COLUMN {CreateColumn(column).compile(dialect=dialect)}"
        for column in table.columns
        if column.name not in present
    ]


def unindexed(column: sa.ColumnElement[str]) -> sa.ColumnElement[str]:
    """Return the same text in a form that no index serves: SQLite, without statistics, would take a worse index."""
    return column.op("||")(sa.literal_column("''"))
