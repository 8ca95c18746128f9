"""A node's configuration document: its hash, and differences between two. Shared by server, host and node. Pure.

A document is ``{section: {key: entry}}``, entries being JSON. A section that is missing and an empty one are the same.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

Document = dict[str, dict[str, Any]]
Difference = dict[str, dict[str, Any]]
"""Section -> key -> the new entry, None for one that goes."""


def document_hash(document: Document) -> str:
    """Return 32 hexadecimal digits that tell one document from another; the empty one has a hash too."""
    sections = {name: entries for name, entries in document.items() if entries}
    text = json.dumps(sections, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def difference(old: Document, new: Document) -> Difference:
    """Return what makes ``new`` of ``old``; empty when they are the same."""
    changed: Difference = {}
    for name in old.keys() | new.keys():
        before, after = old.get(name, {}), new.get(name, {})
        entries = {key: after.get(key) for key in before.keys() | after.keys() if before.get(key) != after.get(key)}
        if entries:
            changed[name] = entries
    return changed


def merged(document: Document, change: Difference) -> Document:
    """Return ``document`` with ``change`` made; neither is touched."""
    result = {name: dict(entries) for name, entries in document.items()}
    for name, entries in change.items():
        section = result.setdefault(name, {})
        for key, entry in entries.items():
            if entry is None:
                section.pop(key, None)
            else:
                section[key] = entry
    return {name: section for name, section in result.items() if section}
