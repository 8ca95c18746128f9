"""Two engines take turns by rows, at moments that chance chooses: each incident is acted on exactly once."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from tests.unit.monitor_engine.engine_world import FAILED, HUNG, START, applications, document, policy, report

from pileus.node.monitor.engine import Engine, Work
from pileus.node.monitor.table import with_actions

FAILOVERS = 500
VMS = tuple(f"vm-{number}" for number in range(5))
POLICIES = {"app": policy(FAILED), "reset": policy(HUNG)}


class World:
    """Five appliances that fail, and the database: rows as last written, actions by key."""

    def __init__(self, chance: random.Random) -> None:
        self.chance, self.now = chance, START
        self.rows: dict[str, dict[str, Any]] = {}
        self.actions: dict[str, dict[str, Any]] = {}
        self.actions_of: dict[str, list[dict[str, Any]]] = {vm: [] for vm in VMS}
        self.offered = 0
        """Actions that engines asked for, again ones too."""
        self.epoch = 0
        self.failed: dict[str, bool] = dict.fromkeys(VMS, False)
        self.hung: dict[str, bool] = dict.fromkeys(VMS, False)
        self.exits: dict[str, int] = dict.fromkeys(VMS, 0)
        self.boots: dict[str, int] = dict.fromkeys(VMS, 1)
        self.due: dict[str, int] = {}
        """What happened: policy and appliance -> incidents so far."""

    def happen(self) -> None:
        """Let something fail that runs."""
        vm = self.chance.choice(VMS)
        if self.failed[vm] or self.hung[vm]:
            return
        if self.chance.random() < 0.7:
            self.failed[vm], self.exits[vm] = True, self.exits[vm] + 1
            self._expect("app", vm, "web")
        else:
            self.hung[vm] = True
            self._expect("reset", vm, "")

    def report(self, vm: str) -> dict[str, Any]:
        status = applications(web=f"{'failed' if self.failed[vm] else 'running'}:{self.exits[vm]}")
        process = "hung" if self.hung[vm] else "running"
        origin = self.chance.choice(["poll", "push"])
        return report(self.now, vm, origin=origin, process=process, boots=self.boots[vm], status=status)

    def engine(self, mends_rows: bool) -> Engine:
        """Return the next engine, which goes on with what is stored."""
        self.epoch += 1
        said = document(POLICIES, VMS, seed=self.epoch)
        for vm, entry in said["appliances"].items():
            entry["epoch"] = self.epoch
            stored = self.rows.get(vm, {})
            if mends_rows:
                stored = with_actions(stored, self.actions_of[vm])
            entry["resume"] = json.loads(json.dumps(stored))
        made = Engine()
        made.configure(json.loads(json.dumps(said)))
        return made

    def store(self, work: Work, *, actions: bool, rows: bool) -> None:
        """Write actions and rows, and do the actions that are new."""
        for action in work.actions if actions else ():
            assert action["epoch"] == self.epoch
            self.offered += 1
            if action["key"] not in self.actions:
                self.actions[action["key"]] = action
                self.actions_of[action["vm"]].append(action)
                self._do(action)
        for row in work.states if rows else ():
            self.rows[row["vm"]] = row

    def _do(self, action: dict[str, Any]) -> None:
        vm = action["vm"]
        if action["policy"] == "app":
            self.failed[vm] = False
        else:
            self.hung[vm], self.boots[vm] = False, self.boots[vm] + 1

    def _expect(self, policy: str, vm: str, subject: str) -> None:
        name = f"{policy}/{vm}/{subject}"
        self.due[name] = self.due.get(name, 0) + 1

    def check(self) -> None:
        expected = {f"{name}/{number}" for name, count in self.due.items() for number in range(1, count + 1)}
        assert set(self.actions) == expected


def turn(world: World, engine: Engine, *, is_cut: bool) -> None:
    """Let time pass, something fail and the engine work; ``is_cut``: it dies before all of it is stored."""
    world.now += world.chance.uniform(0.5, 40)
    if world.chance.random() < 0.6:
        world.happen()
    for vm in world.chance.sample(VMS, k=world.chance.randint(1, 5)):
        engine.hear(world.report(vm), world.now)
    work = engine.work(world.now)
    are_stored = not is_cut or world.chance.random() < 0.5
    world.store(work, actions=are_stored, rows=not is_cut)


@pytest.mark.parametrize("seed", [1, 2])
def test_each_incident_is_acted_on_exactly_once_over_five_hundred_failovers(seed: int) -> None:
    print(f"seed {seed}")
    world = World(random.Random(seed))
    for _ in range(FAILOVERS):
        engine = world.engine(mends_rows=True)
        for _ in range(world.chance.randint(0, 4)):
            turn(world, engine, is_cut=False)
        # It dies in the middle: nothing of its last work is stored, or the actions without the rows.
        turn(world, engine, is_cut=True)
    engine = world.engine(mends_rows=True)
    for _ in range(400):
        world.now += 10
        for vm in VMS:
            engine.hear(world.report(vm), world.now)
        world.store(engine.work(world.now), actions=True, rows=True)
    world.check()
    assert len(world.actions) > FAILOVERS / 2


def test_rows_that_are_stored_with_their_actions_need_no_mending() -> None:
    world = World(random.Random(3))
    for _ in range(FAILOVERS):
        engine = world.engine(mends_rows=False)
        for _ in range(world.chance.randint(0, 3)):
            turn(world, engine, is_cut=False)
    assert world.offered == len(world.actions)
    for _ in range(400):
        world.now += 10
        for vm in VMS:
            engine.hear(world.report(vm), world.now)
        world.store(engine.work(world.now), actions=True, rows=True)
    world.check()


def test_an_engine_that_was_left_behind_gives_the_same_key() -> None:
    world = World(random.Random(4))
    first, second = world.engine(mends_rows=True), world.engine(mends_rows=True)
    world.failed["vm-0"], world.exits["vm-0"] = True, 1
    said = world.report("vm-0")
    keys = []
    for engine in (first, second):
        engine.hear(said, world.now)
        keys.append([(action["key"], action["epoch"]) for action in engine.work(world.now).actions])
    assert keys == [[("app/vm-0/web/1", 1)], [("app/vm-0/web/1", 2)]]
