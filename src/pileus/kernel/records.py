"""Rows of the table ``resource`` to and from structs, and to the public JSON without decoding what is stored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from pileus.kernel.condition import Condition
from pileus.kernel.kind import Registry, Resource
from pileus.kernel.store.statements import COLUMNS

_conditions = msgspec.json.Decoder(tuple[Condition, ...])
_labels = msgspec.json.Decoder(dict[str, str])
_parts = msgspec.json.Decoder(dict[str, msgspec.Raw])
_encode = msgspec.json.Encoder().encode

(
    _ID, _KIND, _NAME, _ACCOUNT_ID, _ACCOUNT, _OWNER, _ZONE, _VDC, _HOST, _READY, _REASON,
    _GENERATION, _OBSERVED_GENERATION, _REVISION, _CREATED, _DELETING,
    _LABELS, _DESIRED, _ASSIGNED, _OBSERVED, _CONDITIONS, _MANAGER,
) = range(len(COLUMNS))  # fmt: skip


def decode(registry: Registry, row: Sequence[Any]) -> Resource:
    """Return the resource of a row."""
    kind = registry[row[_KIND]]
    return Resource(
        id=row[_ID],
        kind=row[_KIND],
        name=row[_NAME],
        account_id=row[_ACCOUNT_ID],
        account=row[_ACCOUNT],
        owner=row[_OWNER],
        zone=row[_ZONE],
        vdc=row[_VDC],
        host=row[_HOST],
        generation=row[_GENERATION],
        observed_generation=row[_OBSERVED_GENERATION],
        revision=row[_REVISION],
        created_at=row[_CREATED],
        deleting_at=row[_DELETING],
        labels=_labels.decode(row[_LABELS]) if row[_LABELS] != "{}" else {},
        desired=registry.decode(kind.desired, row[_DESIRED]),
        assigned=registry.decode(kind.assigned, row[_ASSIGNED]),
        observed=registry.decode(kind.observed, row[_OBSERVED]),
        conditions=_conditions.decode(row[_CONDITIONS]),
        manager=row[_MANAGER],
    )


def _json(section: Any) -> str | None:
    return None if section is None else _encode(section).decode()


def encode(resource: Resource) -> dict[str, Any]:
    """Return the column values of a resource."""
    ready = resource.ready
    return {
        "id": resource.id,
        "kind": resource.kind,
        "name": resource.name,
        "account_id": resource.account_id,
        "account": resource.account,
        "owner": resource.owner,
        "zone": resource.zone,
        "vdc": resource.vdc,
        "host": resource.host,
        "ready": ready.status if ready else "",
        "reason": ready.reason if ready else "",
        "generation": resource.generation,
        "observed_generation": resource.observed_generation,
        "revision": resource.revision,
        "created_at": resource.created_at,
        "deleting_at": resource.deleting_at,
        "labels": _encode(resource.labels).decode(),
        "desired": _json(resource.desired),
        "assigned": _json(resource.assigned),
        "observed": _json(resource.observed),
        "conditions": _encode(resource.conditions).decode(),
        "manager": resource.manager,
    }


def public(registry: Registry, row: Sequence[Any], *, to_stranger: bool = False) -> str:
    """Return the resource's JSON as the API gives it; the stored sections pass through as they are, what is private never.

    Only ``kind``, ids, names and times stand outside the stored JSON, and none of them can hold a character that
    JSON escapes.
    """
    deleting = f'"{row[_DELETING]}"' if row[_DELETING] else "null"
    kind = registry[row[_KIND]]
    private = kind.private | kind.discreet if to_stranger else kind.private
    desired, assigned, observed = row[_DESIRED], row[_ASSIGNED], row[_OBSERVED]
    if private:
        desired, assigned = _shown("desired", desired, private), _shown("assigned", assigned, private)
        observed = _shown("observed", observed, private)
    return (
        f'{{"kind":"{row[_KIND]}","id":"{row[_ID]}","name":"{row[_NAME]}","account":"{row[_ACCOUNT]}",'
        f'"account_id":"{row[_ACCOUNT_ID]}","owner":"{row[_OWNER]}","zone":"{row[_ZONE]}","vdc":"{row[_VDC]}",'
        f'"host":"{row[_HOST]}","labels":{row[_LABELS]},"generation":{row[_GENERATION]},'
        f'"observed_generation":{row[_OBSERVED_GENERATION]},"revision":{row[_REVISION]},'
        f'"created_at":"{row[_CREATED]}","deleting_at":{deleting},"desired":{desired or "null"},'
        f'"assigned":{assigned or "null"},"observed":{observed or "null"},"conditions":{row[_CONDITIONS]}}}'
    )


def _shown(section: str, text: str | None, private: frozenset[str]) -> str | None:
    """Return the stored section without what is private in it."""
    if section in private or text is None:
        return None
    hidden = [path.partition(".")[2] for path in private if path.startswith(f"{section}.")]
    if not hidden:
        return text
    parts = _parts.decode(text)
    for name in hidden:
        parts.pop(name, None)
    return _encode(parts).decode()


def public_of(registry: Registry, resource: Resource, *, to_stranger: bool = False) -> str:
    """Return the same JSON of a resource in hand."""
    values = encode(resource)
    return public(registry, [values[name] for name in COLUMNS], to_stranger=to_stranger)


def revision_of(row: Sequence[Any]) -> int:
    """Return the revision of a row."""
    return int(row[_REVISION])


def standing_of(row: Sequence[Any]) -> tuple[str, str]:
    """Return the account and the manager of a row, which decide who sees it."""
    return row[_ACCOUNT_ID], row[_MANAGER]


def labels_of(row: Sequence[Any]) -> dict[str, str]:
    """Return the labels of a row."""
    return _labels.decode(row[_LABELS])
