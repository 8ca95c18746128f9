"""The inventory on an imported disk: read strictly, matched with VMs, its policies made to observe."""

from __future__ import annotations

import random
import time
from typing import Any

import pytest

from pileus.compute.vm.types import VmDesired
from pileus.kernel.kind import Resource
from pileus.monitor.inventory import NAMES_MAX, Kept, KeptAppliance, KeptRow, Unreadable, first_row, found, moved, read
from pileus.monitor.monitor.types import MonitorAssigned, MonitorDesired

MONITOR = Resource(
    id="m",
    kind="monitor.monitor",
    name="watch",
    desired=MonitorDesired(),
    assigned=MonitorAssigned(),
    account_id="acme",
)
GOOD = {"name": "mend", "when": [{"field": "execution.state", "value": "hung"}], "do": [{"do": "restart"}]}


def vm(name: str, **labels: str) -> Resource:
    return Resource(id=f"id-{name}", kind="compute.vm", name=name, desired=VmDesired(), labels=labels)


def kept(**appliances: KeptAppliance) -> Kept:
    return Kept(version=1, appliances=appliances)


@pytest.mark.parametrize(
    "text",
    [b"", b"\xff", b"[]", b'{"version": 1, "appliances": {"a": {"labels": {"x": 1}}}}', b'{"appliances": {}}',
     b'{"version":1,"policies":{"a":' + b'{"b":' * 5000 + b"1" + b"}" * 5000 + b"}}"],
)  # fmt: skip
def test_what_is_no_inventory_is_said(text: bytes) -> None:
    with pytest.raises(Unreadable, match="cannot be read"):
        read(text)


def test_appliances_are_vms_of_their_name_of_their_nodes_name_and_of_their_labels() -> None:
    wanted = kept(
        a=KeptAppliance(name="web"),
        b=KeptAppliance(name="shop-0a1b2c", node="shop"),
        c=KeptAppliance(name="old-db", labels={"app": "db"}),
        d=KeptAppliance(name="old-cache", labels={"app": "cache"}),
        e=KeptAppliance(name="nothing"),
    )
    here = [
        vm("web", app="db"), vm("shop-ffffff"), vm("new-db", app="db", zone="x"), vm("c1", app="cache"), vm("c2", app="cache"),
        vm("stranger"),
    ]  # fmt: skip
    matches = found(wanted, here, {"id-shop-ffffff": "shop"})
    assert {id: each.name for id, each in matches.pairs.items()} == {"a": "web", "b": "shop-ffffff", "c": "new-db"}
    assert matches.missing == ("nothing", "old-cache"), "one of several alike was taken"


@pytest.mark.parametrize("seed", range(20))
def test_no_vm_is_two_appliances(seed: int) -> None:
    draw = random.Random(seed)
    words = ["a", "b", "c"]
    wanted = kept(**{
        f"k{n}": KeptAppliance(name=draw.choice(words), node=draw.choice(words), labels={"x": draw.choice(words)})
        for n in range(8)
    })  # fmt: skip
    here = [vm(f"{draw.choice(words)}{n or ''}", x=draw.choice(words)) for n in range(6)]
    nodes = {each.id: draw.choice(words) for each in here if draw.random() < 0.5}
    matches = found(wanted, here, nodes)
    assert len({each.id for each in matches.pairs.values()}) == len(matches.pairs)
    assert len(matches.pairs) + len(matches.missing) == len(wanted.appliances)


def alike(wanted: Kept, here: list[Resource]) -> dict[str, str]:
    """Return what labels alone decide, looking at each pair."""
    free, pairs = list(here), {}
    for id, each in wanted.appliances.items():
        having = [
            vm for vm in free if each.labels and all(vm.labels.get(key) == each.labels[key] for key in each.labels)
        ]
        if len(having) == 1:
            pairs[id] = having[0].id
            free.remove(having[0])
    return pairs


@pytest.mark.parametrize("seed", range(50))
def test_labels_decide_as_if_each_pair_was_looked_at(seed: int) -> None:
    draw = random.Random(seed)

    def labels(most: int) -> dict[str, str]:
        return {draw.choice("kl"): draw.choice("vw") for _ in range(draw.randint(0, most))}

    wanted = kept(**{f"k{n}": KeptAppliance(name=f"old{n}", labels=labels(2)) for n in range(6)})
    here = [vm(f"new{n}", **labels(3)) for n in range(draw.randint(0, 8))]
    assert {id: each.id for id, each in found(wanted, here, {}).pairs.items()} == alike(wanted, here)


def test_a_thousand_appliances_with_all_labels_are_matched_at_once() -> None:
    labels = {f"k{n}": "v" for n in range(64)}
    wanted = kept(**{f"k{n}": KeptAppliance(name=f"old{n}", labels=labels) for n in range(NAMES_MAX)})
    here = [vm(f"new{n}", **labels) for n in range(NAMES_MAX)]
    began = time.process_time()
    assert not found(wanted, here, {}).pairs
    assert time.process_time() - began < 1.0, "the server stood still for the words of an image"


def test_policies_observe_whatever_they_did_and_take_nobodys_name() -> None:
    fields: dict[str, dict[str, Any]] = {"1": {**GOOD, "mode": "enforce"}, "2": GOOD, "3": {**GOOD, "monitor": "other"}}
    made = moved(Kept(version=1, policies=fields), MONITOR, ["mend"], 256)
    assert [policy.desired.mode for policy in made.policies.values()] == ["observe"] * 3
    assert {policy.desired.monitor for policy in made.policies.values()} == {"watch"}
    names = [policy.name for policy in made.policies.values()]
    assert len(set(names)) == 3
    assert "mend" not in names
    again = moved(Kept(version=1, policies=fields), MONITOR, ["mend"], 256)
    assert [policy.name for policy in again.policies.values()] == names
    assert len(moved(Kept(version=1, policies=fields), MONITOR, [], 2).policies) == 2


def test_what_stood_is_of_the_policies_here() -> None:
    entry = {"since": 5.0, "incident": 3, "acted": 3, "acted_at": 6.0, "gap_s": 10.0, "counters": [1, 2], "clauses": {}}
    stood = {"old/web": entry, "gone/web": entry, "old/\u0007": entry, "old/" + "x" * 64: entry, "/": {"incident": 9}}
    row = first_row(KeptRow(standing=stood, applications={"web": {"state": "failed"}, "x" * 64: {}}), {"old": "new"})
    assert row is not None
    assert row.standing == {"new/web": entry, "/": {"incident": 9}}
    assert row.applications == {"web": {"state": "failed"}}
    assert first_row(KeptRow(standing={"gone/web": entry}), {"old": "new"}) is None
    wrong = first_row(KeptRow(standing={"old/a": {"incident": "9", "clauses": 3}}), {"old": "new"})
    assert wrong is not None
    assert wrong.standing["new/a"]["incident"] == 0
