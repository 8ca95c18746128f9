"""The values of a package's properties: defaults of a deployment option, what the caller gives, and whether it may be."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator, Mapping

from msgspec import Struct

from pileus.ovf import units
from pileus.ovf.faults import Faults, shown
from pileus.ovf.model import Content, Disk, Envelope, Property, VirtualSystemCollection
from pileus.ovf.scope import FALSE, TRUE

_INTEGERS = {
    "uint8": (0, (1 << 8) - 1),
    "sint8": (-(1 << 7), (1 << 7) - 1),
    "uint16": (0, (1 << 16) - 1),
    "sint16": (-(1 << 15), (1 << 15) - 1),
    "uint32": (0, (1 << 32) - 1),
    "sint32": (-(1 << 31), (1 << 31) - 1),
    "uint64": (0, (1 << 64) - 1),
    "sint64": (-(1 << 63), (1 << 63) - 1),
    "int": (-(1 << 31), (1 << 31) - 1),
}
"""CIM's integers (DSP0004), and VMware's ``int``."""

_TEXTS = ("string", "password", "expression")
_VALUE_MAX = 65_536
_INTEGER = re.compile(r"[+-]?[0-9]{1,20}")
_REAL = re.compile(r"[+-]?([0-9]{1,40}(\.[0-9]{0,40})?|\.[0-9]{1,40})([eE][+-]?[0-9]{1,4})?")


class Setting(Struct, frozen=True, kw_only=True):
    """A property with its value, as the guest is told it."""

    key: str
    """``class.key.instance``."""
    value: str
    type: str = "string"
    password: bool = False


def properties(envelope: Envelope) -> Iterator[tuple[Content, Property]]:
    """Yield all properties, each with the VM or collection that has it."""
    for part in envelope.contents():
        for product in part.products:
            for one in product.properties:
                yield part, one


def default_of(one: Property, configuration: str = "") -> str | None:
    """Return a property's value in a deployment option; None when the descriptor gives none."""
    own = next((value.value for value in one.values if configuration and value.configuration == configuration), None)
    return own if own is not None else next((value.value for value in one.values if not value.configuration), None)


def is_needed(one: Property, configuration: str = "") -> bool:
    """Tell whether the caller has to give a value: there is no default, and an empty one would not be taken."""
    if not one.user_configurable or (default_of(one, configuration) or ""):
        return False
    return one.type.partition("(")[0] not in _TEXTS or bool(one.length_min)


def settings(
    envelope: Envelope, given: Mapping[str, str], faults: Faults, *, configuration: str = ""
) -> dict[str, tuple[Setting, ...]]:
    """Return the settings of each VM and collection, by its id; what may not be is in ``faults``.

    ``given``: values by full key (``class.key.instance``), or ``VM/class.key.instance`` where several have that key.
    """
    found: dict[str, list[Setting]] = {}
    used: set[str] = set()
    for part, one in properties(envelope):
        names = [name for name in (f"{part.id}/{one.full_key}", one.full_key) if name in given]
        used.update(names)
        default = default_of(one, configuration)
        value = given[names[0]] if names else default or ""
        if names and not one.user_configurable and value != default:
            faults.error("not-configurable", f"property {shown(one.full_key)} is not the user's to set", line=one.line)
            continue
        if names or one.user_configurable or default is not None:
            _check(one, value, is_given=bool(names), needed=is_needed(one, configuration), faults=faults)
        setting = Setting(key=one.full_key, value=value, type=one.type, password=one.password)
        found.setdefault(part.id, []).append(setting)
    for name in given:
        if name not in used:
            known = ", ".join(shown(one.full_key) for _, one in properties(envelope) if one.user_configurable)
            faults.error("no-property", f"there is no property {shown(name)}; there are {known or 'none'}"[:500])
    return {name: tuple(values) for name, values in found.items()}


def inherited(envelope: Envelope, found: Mapping[str, tuple[Setting, ...]], system_id: str) -> tuple[Setting, ...]:
    """Return a VM's own settings and those of the collections around it, which its guest is told too (DSP0243 9.5)."""
    around = [part for part in _path(envelope.content, system_id)]
    own = {setting.key: setting for part in around for setting in found.get(part.id, ())}
    return tuple(own.values())


def by_key(envelope: Envelope) -> dict[str, Property]:
    """Return all properties by full key, and by plain key where no full one is the same; of several, the first."""
    full: dict[str, Property] = {}
    plain: dict[str, Property] = {}
    for _, one in properties(envelope):
        full.setdefault(one.full_key, one)
        plain.setdefault(one.key, one)
    return plain | full


def capacity_bytes(
    envelope: Envelope,
    disk: Disk,
    given: Mapping[str, str] | None = None,
    *,
    configuration: str = "",
    known: Mapping[str, Property] | None = None,
) -> int | None:
    """Return a disk's capacity, with a ``${property}`` replaced by its value; None when that is no number.

    ``known``: what ``by_key`` gives, for those who ask for many disks.
    """
    if disk.capacity_bytes is not None:
        return disk.capacity_bytes
    unit = units.bytes_per_unit(disk.capacity_units)
    one = (by_key(envelope) if known is None else known).get(disk.capacity.removeprefix("${").removesuffix("}"))
    if one is None or unit is None:
        return None
    value = (given or {}).get(one.full_key) or default_of(one, configuration)
    count = units.number(value or "")
    return None if count is None else count * unit


def problem(one: Property, value: str) -> str:
    """Return why a property cannot have a value; empty when it can."""
    if len(value) > _VALUE_MAX or any(ord(char) < 32 and char not in "\t\r\n" for char in value):
        return f"it is longer than {_VALUE_MAX} characters or has control characters"
    return _problem_of_type(one, value) or _problem_of_qualifiers(one, value)


def _check(one: Property, value: str, *, is_given: bool, needed: bool, faults: Faults) -> None:
    if not value and not is_given:
        if needed:
            faults.error("needs-value", f"property {shown(one.full_key)} needs a value", line=one.line)
        return
    reason = problem(one, value)
    if reason:
        said = "a secret" if one.password else shown(value)
        faults.error("bad-property", f"property {shown(one.full_key)} cannot be {said}: {reason}", line=one.line)


def _problem_of_type(one: Property, value: str) -> str:
    kind = one.type.partition("(")[0].partition("[")[0].partition(":")[0].strip()
    if kind in _INTEGERS:
        low, high = _INTEGERS[kind]
        fits = _INTEGER.fullmatch(value) is not None and low <= int(value) <= high
        return "" if fits else f"it must be a whole number from {low} to {high}"
    if kind == "boolean":
        words = (*TRUE, *FALSE)
        return "" if value.lower() in words else "it must be true or false"
    if kind in ("real32", "real64", "real"):
        return "" if _REAL.fullmatch(value) else "it must be a number"
    if kind == "ip":
        return "" if _is_address(value) else "it must be an IP address"
    return ""


def _problem_of_qualifiers(one: Property, value: str) -> str:
    if one.allowed and value not in one.allowed:
        return f"it must be one of {', '.join(shown(word) for word in one.allowed[:20])}"
    if one.length_min is not None and len(value) < one.length_min:
        return f"it must have at least {one.length_min} characters"
    if one.length_max is not None and len(value) > one.length_max:
        return f"it must have at most {one.length_max} characters"
    number = int(value) if _INTEGER.fullmatch(value) else None
    if number is not None and one.value_min is not None and number < one.value_min:
        return f"it must be at least {one.value_min}"
    if number is not None and one.value_max is not None and number > one.value_max:
        return f"it must be at most {one.value_max}"
    return ""


def _is_address(value: str) -> bool:
    try:
        ipaddress.ip_address(value)
    except ValueError:
        return False
    return True


def _path(part: Content, system_id: str) -> list[Content]:
    """Return the way from ``part`` down to a VM, both included; empty when it is not below."""
    if part.id == system_id:
        return [part]
    for member in part.members if isinstance(part, VirtualSystemCollection) else ():
        below = _path(member, system_id)
        if below:
            return [part, *below]
    return []
