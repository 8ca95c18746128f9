"""Parses what a property's type and qualifiers allow: ``MinLen(8) MaxLen(64) ValueMap{"a","b"}``."""

from __future__ import annotations

import re

from msgspec import Struct

from pileus.ovf.faults import shown
from pileus.ovf.scope import VMW, Scope
from pileus.ovf.tree import Element

_ONE = re.compile(r"""(\w+)\s*(?:[({]((?:"(?:[^"\\]|\\.)*"|[^(){}"])*)[)}])?""")
"""A word and what is in its brackets; brackets are not nested, so that this takes linear time."""

_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"')
_BOUNDS = {"minlen": "length_min", "maxlen": "length_max", "minvalue": "value_min", "maxvalue": "value_max"}
_ALLOWED_MAX = 1000
_TEXT_MAX = 65_536


class Qualifiers(Struct, kw_only=True):
    """What a value must be."""

    length_min: int | None = None
    length_max: int | None = None
    value_min: int | None = None
    value_max: int | None = None
    allowed: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()


def qualifiers(scope: Scope, element: Element) -> Qualifiers:
    """Return the qualifiers of a Property, the standard's (DSP0243 9.5.1) and VMware's; what is not known is noted."""
    text = element.get("qualifiers") or element.of(VMW, "qualifiers") or ""
    found = Qualifiers()
    if len(text) > _TEXT_MAX:
        scope.faults.error(
            "bad-qualifiers", f"the qualifiers are longer than {_TEXT_MAX} characters", line=element.line
        )
        return found
    for match in _ONE.finditer(text):
        if not _take(found, match[1].lower(), match[2] or ""):
            found.unknown = (*found.unknown[:20], match[1])
    if found.unknown:
        words = ", ".join(shown(word) for word in found.unknown[:5])
        scope.faults.note("unknown-qualifier", f"qualifiers {words} are not known and not checked", line=element.line)
    if _crossed(found.length_min, found.length_max) or _crossed(found.value_min, found.value_max):
        scope.faults.error("bad-qualifiers", f"no value can fit {shown(text)}", line=element.line)
    return found


def _take(found: Qualifiers, name: str, within: str) -> bool:
    """Add one qualifier to those found; False when it is not known."""
    number = within.strip()
    if name in _BOUNDS and re.fullmatch(r"-?[0-9]{1,19}", number):
        setattr(found, _BOUNDS[name], int(number))
        return True
    if name not in ("valuemap", "values"):
        return False
    # ValueMap has the values; Values, where both are given, only says how to show them.
    if name == "valuemap" or not found.allowed:
        quoted = [re.sub(r"\\(.)", r"\1", part) for part in _QUOTED.findall(within)]
        plain = [part.strip() for part in within.split(",") if part.strip()]
        found.allowed = tuple((quoted or plain)[:_ALLOWED_MAX])
    return True


def _crossed(low: int | None, high: int | None) -> bool:
    return low is not None and high is not None and low > high
