"""The inventory of a monitor that comes on an imported disk: anybody may have written it, so each word is checked. Pure.

Its appliances become VMs of the account, by name and by labels; its policies become policies that observe; what stands in
its rows is handed on, so that what was acted on there is not acted on here again.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from pileus.compute.vm.types import is_of_cloud
from pileus.kernel.errors import PileusError
from pileus.kernel.kind import NAME_PATTERN, Resource
from pileus.kernel.words import printable
from pileus.monitor.policy.plan import check_whole
from pileus.monitor.policy.types import PolicyDesired
from pileus.monitor.state.types import StateObserved
from pileus.node.monitor.contents import read_status
from pileus.node.monitor.model import POLICIES_MAX
from pileus.node.monitor.standing import FORGOTTEN, Standing

NAMES_MAX = 1000
"""Appliances that can move in: as many as a monitor can name."""
LEFT_OUT_MAX = 20
WORDS_MAX = 200
ROW_BYTES_MAX = 128 << 10
SUBJECT_MAX = 63

Text = Annotated[str, Meta(max_length=256)]


class Unreadable(Exception):
    """What came is no inventory; the message is for people."""


class KeptRow(Struct, frozen=True):
    """What stood, and in which of the appliance's own words: as long as these are the same, nothing has happened since."""

    standing: dict[str, Any] = {}
    applications: dict[str, Any] = {}
    other: dict[str, Any] = {}


class KeptAppliance(Struct, frozen=True):
    """An appliance as the other monitor knew it. ``node``: its node's name, if it was one; ``row``: its own words then."""

    name: Text = ""
    node: Text = ""
    labels: Annotated[dict[Text, Text], Meta(max_length=64)] = {}
    row: KeptRow = KeptRow()


class Kept(Struct, frozen=True):
    """The whole: appliances by the ids that their VMs had, policies by theirs."""

    version: int
    appliances: dict[Text, KeptAppliance] = {}
    policies: dict[Text, dict[str, Any]] = {}


class Found(Struct, frozen=True):
    """Which VM each appliance is. ``pairs``: id there -> VM here; ``missing``: names of those that no VM is."""

    pairs: dict[str, Resource]
    missing: tuple[str, ...]


class Moved(Struct, frozen=True):
    """Policies by the ids that they had, and those that cannot be, with the reason."""

    policies: dict[str, Resource]
    left_out: tuple[str, ...]


def read(text: bytes) -> Kept:
    """Return what the disk kept. Raises: Unreadable."""
    try:
        kept = msgspec.json.decode(text, type=Kept | None)
    except (msgspec.MsgspecError, RecursionError) as wrong:
        raise Unreadable(f"what its disk kept cannot be read: {printable(str(wrong))[:WORDS_MAX]}") from None
    if kept is None:
        raise Unreadable("its disk kept none: it is no monitor's, or its monitor never watched anything")
    if kept.version != 1:
        raise Unreadable(f"its disk kept one of version {kept.version}, and this cloud reads version 1")
    if len(kept.policies) > POLICIES_MAX:
        raise Unreadable(f"its disk kept {len(kept.policies)} policies, and no monitor has more than {POLICIES_MAX}")
    if len(kept.appliances) > NAMES_MAX:
        raise Unreadable(f"its disk kept {len(kept.appliances)} appliances, and {NAMES_MAX} can move in")
    return kept


def found(kept: Kept, vms: Iterable[Resource], nodes: Mapping[str, str]) -> Found:
    """Return which VMs the appliances are: of the same name, of a node of the same name, the only one with its labels.

    ``nodes``: names of the nodes that VMs are, by VM.
    """
    free = {vm.id: vm for vm in sorted(vms, key=lambda vm: vm.id) if not vm.deleting and not is_of_cloud(vm)}
    by_name = {vm.name: vm.id for vm in free.values()}
    by_node = {nodes[id]: id for id in free if id in nodes}
    pairs: dict[str, Resource] = {}
    for id, each in kept.appliances.items():
        here = by_name.get(each.name, "") or (by_node.get(each.node, "") if each.node else "")
        if here in free:
            pairs[id] = free.pop(here)
    missing = []
    labelled = _Labelled(list(free.values()))
    for id, each in kept.appliances.items():
        if id in pairs:
            continue
        only = labelled.take_only(each.labels) if each.labels else None
        if only is not None:
            pairs[id] = only
        else:
            missing.append(printable(each.node or each.name or id)[:63])
    return Found(pairs, tuple(sorted(missing)))


class _Labelled:
    """VMs by their labels, as bits of numbers: there may be a thousand on either side, each with many labels."""

    def __init__(self, vms: Sequence[Resource]) -> None:
        self._vms = vms
        self._free = (1 << len(vms)) - 1
        self._having: dict[tuple[str, str], int] = {}
        for position, vm in enumerate(vms):
            for label in vm.labels.items():
                self._having[label] = self._having.get(label, 0) | 1 << position

    def take_only(self, labels: Mapping[str, str]) -> Resource | None:
        """Return the VM that alone has all these labels, and give it no more; None: none has, or several have."""
        alike = self._free
        for label in labels.items():
            alike &= self._having.get(label, 0)
        if alike.bit_count() != 1:
            return None
        self._free ^= alike
        return self._vms[alike.bit_length() - 1]


def moved(kept: Kept, monitor: Resource, taken: Sequence[str], room: int) -> Moved:
    """Return the policies as they are here: each observes. ``taken``: names that policies of the account have."""
    names, left_out = set(taken), []
    policies: dict[str, Resource] = {}
    for id, fields in sorted(kept.policies.items()):
        name = _name(fields.get("name"), id, names)
        try:
            policy = _policy(name, id, fields, monitor)
        except (msgspec.ValidationError, PileusError, RecursionError) as wrong:
            left_out.append(f"{name} is left out: {printable(str(wrong))[:WORDS_MAX]}")
            continue
        if len(policies) >= room:
            left_out.append(f"{name} is left out: a monitor has at most {POLICIES_MAX}")
            continue
        names.add(name)
        policies[id] = policy
    return Moved(policies, tuple(left_out[:LEFT_OUT_MAX]))


def origin(id: str) -> str:
    """Return what a policy that moved in is known by: it has this as its label ``moved-in``."""
    return hashlib.blake2b(id.encode(), digest_size=8).hexdigest()


def first_row(kept: KeptRow, ids: Mapping[str, str]) -> StateObserved | None:
    """Return the row that an appliance begins with here; None for one without anything. ``ids``: of policies, there -> here."""
    standing = {}
    for key, entry in kept.standing.items():
        policy, _, subject = key.partition("/")
        if key == FORGOTTEN:
            standing[key] = entry
        elif policy in ids and len(subject) <= SUBJECT_MAX and subject.isprintable():
            standing[f"{ids[policy]}/{subject}"] = entry
    content = read_status({**kept.other, "applications": kept.applications})
    row = StateObserved(applications=content.applications, other=content.other, standing=Standing(standing).copied())
    return row if row != StateObserved() and len(msgspec.json.encode(row)) <= ROW_BYTES_MAX else None


def _policy(name: str, id: str, fields: Mapping[str, Any], monitor: Resource) -> Resource:
    """Return a policy that observes. Raises: ValidationError, Invalid."""
    wish = {word: value for word, value in fields.items() if word != "name"}
    desired = msgspec.convert({**wish, "monitor": monitor.name, "mode": "observe"}, PolicyDesired)
    policy = Resource(
        id="",
        kind="monitor.policy",
        name=name,
        desired=desired,
        account_id=monitor.account_id,
        account=monitor.account,
        owner=monitor.account_id,
        labels={"moved-in": origin(id)},
    )
    check_whole(policy)
    return policy


def _name(said: object, id: str, taken: set[str]) -> str:
    """Return a name that is free: the one that it had, if it can be one."""
    base = said if isinstance(said, str) and re.match(NAME_PATTERN, said) else "policy"
    name = base if said == base and base not in taken else f"{base[:50]}-{origin(id)[:8]}"
    return name if name not in taken else f"{base[:40]}-{origin(id)}"
