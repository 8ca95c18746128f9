"""What a monitor's appliance keeps on its disk: as it was configured, with what stands now, within its bounds."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

from pileus.node.monitor.engine import Engine
from pileus.node.monitor.inventory import BYTES_MAX, EVERY_S, Inventory
from pileus.node.monitor.role import Monitor, answer

POLICY = {
    "name": "mend",
    "when": [{"field": "execution.state", "operator": "is", "value": "hung"}],
    "do": [{"do": "restart"}],
}


def document(**more: Any) -> dict[str, Any]:
    web = {"name": "web-1", "node": "web", "labels": {"app": "web"}, "epoch": 1, **more}
    return {"settings": {}, "appliances": {"vm1": web}, "policies": {"p1": POLICY}}


def ask(engine: Engine, keeper: Inventory, **question: Any) -> dict[str, Any]:
    said = answer(engine, keeper, json.dumps(question).encode())
    keep(keeper)
    return said


def keep(inventory: Inventory) -> None:
    text = inventory.due()
    if text is not None:
        inventory.write(text)


def stands(inventory: Inventory) -> Any:
    """Return what stands in the only row, as the disk has it."""
    kept = inventory.kept()
    assert kept is not None
    return kept["appliances"]["vm1"]["row"]["standing"]


def report(at: float, process: str) -> dict[str, Any]:
    vitals = {"process": process, "node": "ready", "boots": 1, "heard_s": 0.0}
    return {"vm": "vm1", "origin": "push", "at": at, "vitals": vitals}


def test_the_disk_has_what_is_watched_and_what_was_acted_on(tmp_path: Path) -> None:
    engine, inventory = Engine(), Inventory(tmp_path / "state/inventory.json")
    assert ask(engine, inventory, inventory=True) == {"inventory": None}
    assert ask(engine, inventory, configure=document()) == {}
    found = ask(engine, Inventory(tmp_path / "state/inventory.json"), inventory=True)["inventory"]
    assert found["appliances"] == {"vm1": {"name": "web-1", "node": "web", "labels": {"app": "web"}, "row": {}}}
    assert found["policies"] == {"p1": POLICY}
    said = ask(engine, inventory, heard=[report(100.0, "hung")], missed=[], now=100.0)
    assert len(said["actions"]) == 1
    (standing,) = stands(inventory).values()
    assert standing["acted"] == 1
    ask(engine, inventory, heard=[report(101.0, "running")], missed=[], now=101.0)
    assert stands(inventory) == {"p1/": standing}, "it is written all the time"
    ask(engine, inventory, heard=[], missed=[], now=101.0 + EVERY_S)
    assert stands(inventory)["p1/"]["since"] is None


def test_a_refused_document_and_a_full_disk_change_nothing_of_the_work(tmp_path: Path) -> None:
    engine, inventory = Engine(), Inventory(tmp_path / "file/inventory.json")
    (tmp_path / "file").write_text("in the way")
    assert ask(engine, inventory, configure=document()) == {}
    assert inventory.problem == "File exists"
    assert ask(engine, inventory, heard=[report(1.0, "hung")], missed=[], now=1.0)["actions"]
    (tmp_path / "file").unlink()
    assert "error" in ask(engine, inventory, configure={"appliances": 1})
    assert inventory.kept() is None
    ask(engine, inventory, configure=document())
    assert inventory.problem == ""


def test_what_another_engine_wrote_meanwhile_is_kept_and_too_much_is_cut(tmp_path: Path) -> None:
    inventory = Inventory(tmp_path / "inventory.json")
    inventory.configured(document(resume={"standing": {"p1/": {"incident": 1}}}))
    inventory.configured(document(resume={"standing": {}}))
    keep(inventory)
    assert stands(inventory) == {"p1/": {"incident": 1}}
    inventory.configured(document(epoch=2, resume={"standing": {"p1/": {"incident": 5}}}))
    keep(inventory)
    assert stands(inventory) == {"p1/": {"incident": 5}}
    inventory.amended({"appliances": {"vm2": {"name": "late", "epoch": 1}}, "gone": ["vm1", "vm0"]})
    inventory.told([], EVERY_S)
    keep(inventory)
    assert (inventory.kept() or {})["appliances"] == {"vm2": {"name": "late", "node": "", "labels": {}, "row": {}}}
    stood = {f"p1/{number}": {"incident": 1} for number in range(90)}
    many = {f"vm{number}": {"name": "x" * 200, "epoch": 1, "resume": {"standing": stood}} for number in range(20_000)}
    inventory.configured({"appliances": many, "policies": {}})
    keep(inventory)
    assert (tmp_path / "inventory.json").stat().st_size <= BYTES_MAX
    assert len((inventory.kept() or {})["appliances"]) == 20_000


def test_the_role_keeps_it_beside_the_engine_that_answers(tmp_path: Path) -> None:
    role = Monitor(0, tmp_path / "inventory.json")
    with socket.create_connection(role.address, timeout=30.0) as wire, wire.makefile("rwb") as lines:

        def said(**question: Any) -> dict[str, Any]:
            lines.write(json.dumps(question).encode() + b"\n")
            lines.flush()
            return dict(json.loads(lines.readline()))

        assert said(configure=document()) == {}
        assert said(heard=[report(100.0, "hung")], missed=[], now=100.0)["actions"]
        while (kept := said(inventory=True)["inventory"]) is None:
            pass
        assert kept["policies"] == {"p1": POLICY}
    role.close()
