"""Lists of resources: one statement per combination of filters, each served by an index."""

from __future__ import annotations

import functools
from typing import Any

import sqlalchemy as sa
from msgspec import Struct

from pileus.kernel.store.tables import label, resource, unindexed

WORDS = ("host", "zone", "vdc", "owner", "name", "ready", "manager")
SHAPES_MAX = 256
"""Statements kept: callers choose the shapes, of which there are thousands."""


class Filter(Struct, frozen=True, kw_only=True):
    """What a list is limited to; empty means any. All of them use an index."""

    kind: str
    account_id: str | None = None
    public: bool = False
    """With ``account_id``: also what belongs to the cluster."""
    host: str = ""
    zone: str = ""
    vdc: str = ""
    manager: str = ""
    owner: str = ""
    name: str = ""
    ready: str = ""
    labels: tuple[tuple[str, str], ...] = ()
    ids: tuple[str, ...] = ()
    own: bool = False
    """Only what belongs to no other resource than its account."""


def list_statement(filter: Filter, *, after: str, limit: int) -> tuple[sa.Select[Any], dict[str, Any]]:
    """Return the statement and its parameters: at most ``limit`` rows with ids above ``after``, in their order."""
    statement = _build_list(_shape(filter))
    parameters: dict[str, Any] = {"kind": filter.kind, "after": after, "limit": limit, "account_id": filter.account_id}
    for word in WORDS:
        parameters[word] = getattr(filter, word)
    for position, (key, value) in enumerate(filter.labels):
        parameters[f"key{position}"], parameters[f"value{position}"] = key, value
    for position, id in enumerate(filter.ids):
        parameters[f"id{position}"] = id
    return statement, parameters


def _shape(filter: Filter) -> Filter:
    """Return the filter without its values: the same for all that one statement serves."""
    return Filter(
        kind="",
        account_id=filter.account_id and "?",
        public=filter.public,
        labels=(("?", "?"),) * len(filter.labels),
        ids=("?",) * len(filter.ids),
        own=filter.own,
        **{word: "?" for word in WORDS if getattr(filter, word)},
    )


@functools.lru_cache(SHAPES_MAX)
def _build_list(filter: Filter) -> sa.Select[Any]:
    words = tuple(word for word in WORDS if getattr(filter, word))
    columns = resource.c
    narrow = _narrowest(filter, words)
    served = {"name": ("kind", "account_id", "name"), "owner": ("owner",), "id": ()}.get(narrow, ("kind", narrow))

    def column(word: str) -> sa.ColumnElement[str]:
        return columns[word] if word in served else unindexed(columns[word])

    where = [column("kind") == sa.bindparam("kind")]
    if filter.account_id is not None:
        own = column("account_id") == sa.bindparam("account_id")
        where.append(sa.or_(own, columns.account_id == sa.literal_column("''")) if filter.public else own)
    for word in words:
        where.append(column(word) == sa.bindparam(word))
        if word == narrow and word in ("host", "zone", "vdc", "owner", "manager"):
            where.append(columns[word] != sa.literal_column("''"))  # lets the partial index serve
    if filter.own:
        where.append(unindexed(columns.owner) == columns.account_id)
    source: sa.FromClause = resource
    order: sa.ColumnElement[str] = unindexed(columns.id) if narrow == "name" else columns.id
    for position in range(len(filter.labels)):
        has = label.alias(f"label{position}")
        where += [has.c.key == sa.bindparam(f"key{position}"), has.c.value == sa.bindparam(f"value{position}")]
        source = source.join(has, has.c.id == columns.id)
        order = has.c.id if narrow == "id" else order  # the labels' index has the ids in order
    if filter.ids:
        where.append(columns.id.in_([sa.bindparam(f"id{position}") for position in range(len(filter.ids))]))
    where.append(order > sa.bindparam("after"))
    return sa.select(resource).select_from(source).where(*where).order_by(order).limit(sa.bindparam("limit"))


def _narrowest(filter: Filter, words: tuple[str, ...]) -> str:
    """Return the column whose index leaves the fewest rows to look at; ``id``: ids or labels name the rows."""
    if filter.ids or (filter.labels and not {"owner", "host", "name"} & set(words)):
        return "id"
    for word in ("name", "owner", "host", "manager"):
        if word in words:
            return word
    if filter.account_id and not filter.public:
        return "account_id"
    return next((word for word in ("vdc", "zone", "ready") if word in words), "account_id")
