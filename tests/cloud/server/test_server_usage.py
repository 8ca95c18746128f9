"""``GET /v1/usage``: who sees what, what is refused with which words, and how large an answer may get."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import sqlite3
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
import sqlalchemy as sa
from tests.cloud.metering_world import usage
from tests.cloud.server.server_world import Caller, World
from tests.cloud.test_hostile_agents import forger
from tests.cloud.world import Cloud, cloud
from tests.virtual_time import clock, run

from pileus.compute.vm.types import VmAssigned, VmDesired, VmObserved
from pileus.kernel.clock import iso
from pileus.kernel.kind import Resource
from pileus.kernel.store.lists import Filter
from pileus.kernel.stream import Fact, Report, Samples
from pileus.kernel.transaction import Transaction
from pileus.kernel.usage import AMOUNT_MAX
from pileus.network.port.types import PortDesired
from pileus.server import usage as server_usage
from pileus.server.traffic import BYTES_PER_S_MAX, find_sampled, note_traffic
from pileus.storage.volume.types import VolumeAssigned, VolumeDesired

pytestmark = pytest.mark.anyio

HOUR_S = 3600.0
DAY_S = 24 * HOUR_S
HOST = "01234567-89ab-7def-8123-0123456789ab"
"""A host that nobody made: nothing says when it was heard, so its machines go on."""
SECONDS_MAX = 20.0


async def hear(tx: Transaction, port: Resource, counters: str) -> None:
    """Take counters of a port as a server does, but keep no sample of them."""
    sampled = await find_sampled(tx, port.id)
    assert sampled is not None
    await note_traffic(tx, sampled, counters)


class Town:
    """Two accounts, each with a VM of two CPUs and 1 GiB, and a volume."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.keys: dict[str, str] = {}
        self.accounts: dict[str, str] = {}
        self.vms: dict[str, Resource] = {}
        self.ports: dict[str, Resource] = {}
        self.volumes: dict[str, Resource] = {}

    async def furnish(self) -> None:
        """Make the accounts and what they have."""
        for account in ("acme", "umbrella"):
            self.keys[account] = await self.world.account(account)
            found = await self.world.operator("GET", f"/v1/tenancy.account/{account}")
            self.accounts[account] = found.json["id"]
            self.vms[account] = await self.vm(account, f"{account}-web")
            desired = VolumeDesired(size_gib=4, vdc="v")
            assigned = VolumeAssigned(zone="z", vdc="v", pool="p", host=HOST)
            self.volumes[account] = await self.put(account, "storage.volume", "data", desired, assigned=assigned)
            port = PortDesired(network="")
            vm = self.vms[account].id
            self.ports[account] = await self.put(account, "network.port", "nic", port, owner=vm, host=HOST)

    async def put(self, account: str, kind: str, name: str, desired: Any, **columns: Any) -> Resource:
        """Write a resource of an account."""
        id = self.accounts[account]
        return await self.world.put(
            kind, name, desired, **{"account_id": id, "account": account, "owner": id} | columns
        )

    async def vm(self, account: str, name: str) -> Resource:
        """Make a VM that runs from now on."""
        assigned = VmAssigned(zone="z", vdc="v", vcpus=2, memory_mib=1024, disk_gib=3, host=HOST)
        vm = await self.put(account, "compute.vm", name, VmDesired(vdc="v"), assigned=assigned)
        observed = VmObserved(power="running", vcpus=2, memory_mib=1024, started_at=iso(self.world.clock()))
        return await self.world.store.write(lambda tx: tx.update(vm, observed=observed))

    async def passes(self, account: str, received: int, sent: int) -> None:
        """Let the VM's counters be so now."""
        counters = json.dumps({"rx_bytes": received, "tx_bytes": sent})
        await self.world.store.write(lambda tx: hear(tx, self.ports[account], counters))

    def caller(self, account: str) -> Caller:
        """Return the account's owner."""
        return self.world.caller(self.keys[account])


@pytest.fixture
async def town(world: World) -> Town:
    """Two accounts, whose VMs ran for an hour, in the middle of a month."""
    world.clock.now = datetime(2027, 1, 20, 10, 30, tzinfo=UTC).timestamp()
    made = Town(world)
    await made.furnish()
    world.clock.now += HOUR_S
    await made.passes("acme", 5_000_000_000, 1_000_000)
    await made.passes("umbrella", 7, 7)
    return made


async def ask(caller: Caller, **asked: str) -> Any:
    """Return the answer."""
    answer = await caller("GET", "/v1/usage?" + "&".join(f"{word}={value}" for word, value in asked.items()))
    assert answer.status == 200, answer.body
    return answer.json


async def test_an_account_sees_its_own_and_nothing_of_another(town: Town) -> None:
    answer = await ask(town.caller("acme"))
    web, data = sorted(answer["items"], key=lambda item: str(item["kind"]))
    assert (web["kind"], web["name"], web["account"]) == ("compute.vm", "acme-web", "acme")
    assert (web["vcpu_hours"], web["memory_gib_hours"], web["disk_gib_hours"]) == (2.0, 1.0, 3.0)
    assert (web["received_gb"], web["sent_gb"]) == (5.0, 0.001)
    assert (data["kind"], data["disk_gib_hours"], data["vcpu_hours"]) == ("storage.volume", 4.0, 0.0)
    assert answer["total"]["disk_gib_hours"] == 7.0
    hidden = (town.accounts["umbrella"], town.vms["umbrella"].id, "umbrella")
    for asked in ({}, {"all_accounts": "1"}, {"by": "account"}, {"id": town.vms["umbrella"].id}, {"per": "hour"}):
        text = msgspec.json.encode(await ask(town.caller("acme"), **asked)).decode()
        assert not [word for word in hidden if word in text], asked
    for word in ("umbrella", town.accounts["umbrella"], "nobody"):
        answer = await town.caller("acme")("GET", f"/v1/usage?account={word}")
        assert (answer.status, answer.json["detail"]) == (404, f"there is no account {word!r}")


async def test_an_operator_sees_all_by_account_and_one_by_object(town: Town) -> None:
    for asked in ({}, {"all_accounts": "1"}):
        answer = await ask(town.world.operator, **asked)
        assert {item["account"] for item in answer["items"]} == {"acme", "umbrella"}
        assert not any("name" in item for item in answer["items"])
        assert answer["total"]["vcpu_hours"] == 4.0
    one = await ask(town.world.operator, account="acme")
    assert one == await ask(town.caller("acme"))
    assert one == await ask(town.world.operator, account=town.accounts["acme"])
    both = await ask(town.world.operator, by="object")
    assert len(both["items"]) == 4
    only = await ask(town.world.operator, by="object", id=town.vms["acme"].id)
    assert [item["name"] for item in only["items"]] == ["acme-web"]
    assert only["total"] | {"disk_gib_hours": 7.0} == one["total"]


async def test_a_role_sees_the_kinds_that_it_may_get_and_one_that_may_get_none_is_refused(town: Town) -> None:
    rules = {
        "disks": [{"kinds": ["storage.*"], "verbs": ["get"]}],
        "machines": [{"kinds": ["compute.vm"], "verbs": ["get", "create"]}],
        "writer": [{"kinds": ["*"], "verbs": ["create", "update", "delete"]}],
        "names": [{"kinds": ["network.*", "tenancy.*"], "verbs": ["get"]}],
    }
    callers = {}
    for role, rule in rules.items():
        wish = {"name": role, "account": "acme", "desired": {"rules": rule}}
        assert (await town.world.operator("POST", "/v1/tenancy.role", wish)).status == 201
        callers[role] = town.world.caller(await town.world.user("acme", f"u-{role}", role))
    for role, kind, others in (("disks", "storage.volume", "received_gb"), ("machines", "compute.vm", "")):
        answer = await ask(callers[role])
        assert {item["kind"] for item in answer["items"]} == {kind}
        assert not others or answer["total"][others] == 0, "traffic is of VMs"
        assert answer["total"]["disk_gib_hours"] == {"disks": 4.0, "machines": 3.0}[role]
    for role in ("writer", "names"):
        answer = await callers[role]("GET", "/v1/usage")
        assert (answer.status, answer.code) == (403, "denied"), answer.body
        assert f"u-{role} (role {role}) may not see use" in answer.json["detail"]


async def test_nobody_and_managers_are_refused(town: Town) -> None:
    assert (await town.world.caller()("GET", "/v1/usage")).status == 401
    assert (await town.world.caller("pil_nonsense")("GET", "/v1/usage")).status == 401
    wish = {"name": "fleet", "desired": {}}
    assert (await town.world.operator("POST", "/v1/fleet.manager", wish)).status == 201
    wish = {"name": "key", "desired": {"manager": "fleet"}}
    made = await town.world.operator("POST", "/v1/tenancy.key", wish)
    manager = town.world.caller(made.json["secret"])
    for query in ("", "?account=acme", "?all_accounts=1"):
        answer = await manager("GET", f"/v1/usage{query}")
        assert answer.status == 403, answer.body
        assert "no use of its own" in answer.json["detail"]


NOW = "2027-01-20T11:30:00Z"
BAD = [
    ("since=2027-01-20T11:00:00Z&until=2027-01-20T10:00:00Z", "since", "before until (2027-01-20T10:00:00.000Z)"),
    (f"since={NOW}&until={NOW}", "since", "before"),
    ("since=2027-01-21T00:00:00Z", "since", "before now"),
    ("since=2999-01-01T00:00:00Z&until=2999-02-01T00:00:00Z", "since", "before now"),
    ("per=week", "per", "per must be hour, day, month, all, not 'week'"),
    ("by=vm", "by", "by must be object, account, not 'vm'"),
    ("per=hour&since=2026-10-29T00:00:00Z", "per", "more than 800 periods"),
    ("per=day&since=2020-01-01T00:00:00Z", "per", "more than 800 periods"),
    ("since=yesterday", "since", "'yesterday' is no time"),
    ("since=2027-01-20T11:00:00", "since", "is no time"),
    ("since=2027-13-20T11:00:00Z", "since", "is no time"),
    ("since=1800000000", "since", "is no time"),
    ("until=-1", "until", "is no time"),
    ("until=0000-00-00T00:00:00Z", "until", "is no time"),
    ("until=9999-12-31T23:59:59-23:59", "until", "is no time"),
    ("since=%00", "since", ""),
    ("since=2027-01-20T11:00:00Z&since=2027-01-20T11:00:00Z", "since", "given 2 times"),
    ("all_accounts=perhaps", "all_accounts", "1 or 0"),
    ("kind=compute.vm", "kind", ""),
]


@pytest.mark.parametrize(("query", "field", "words"), BAD, ids=[each[0] for each in BAD])
async def test_what_cannot_be_answered_is_refused_with_the_parameters_name(
    town: Town, query: str, field: str, words: str
) -> None:
    for caller in (town.world.operator, town.caller("acme")):
        answer = await caller("GET", f"/v1/usage?{query}")
        assert answer.status == 400, answer.body
        assert answer.json["field"] == field, answer.body
        assert field in answer.json["detail"]
        assert words in answer.json["detail"]


async def test_the_end_may_lie_ahead_and_then_it_is_now(town: Town) -> None:
    answer = await ask(town.caller("acme"), until="2027-02-01T00:00:00Z")
    assert (answer["since"], answer["until"]) == ("2027-01-01T00:00:00.000Z", "2027-01-20T11:30:00.000Z")


async def test_hours_days_and_months_are_of_utc_and_add_up(town: Town) -> None:
    town.world.clock.now += 13 * DAY_S
    await town.passes("acme", 6_000_000_000, 2_000_000)
    since = "2027-01-20T00:00:00Z"
    whole = await ask(town.caller("acme"), since=since)
    for per in ("hour", "day", "month"):
        answer = await ask(town.caller("acme"), since=since, per=per)
        assert answer["total"] == whole["total"]
        for word in whole["total"]:
            assert sum(item[word] for item in answer["items"]) == pytest.approx(whole["total"][word], abs=1e-3)
    months = [item for item in answer["items"] if item["kind"] == "compute.vm"]
    assert [item["since"] for item in months] == ["2027-01-20T00:00:00.000Z", "2027-02-01T00:00:00.000Z"]
    assert [item["vcpu_hours"] for item in months] == [2 * (11 * 24 + 13.5), 2 * (24 + 11.5)]
    assert [item["received_gb"] for item in months] == [5.0, 6.0], "the counters that were not stored began anew"


async def test_what_passed_while_nobody_looked_for_long_is_counted_whole(town: Town) -> None:
    town.world.clock.now += 3 * HOUR_S
    await town.passes("acme", 10**13, 10**13)
    answer = await ask(town.caller("acme"), since="2027-01-20T14:00:00Z")
    assert (answer["total"]["received_gb"], answer["total"]["sent_gb"]) == (10_000.0, 10_000.0)


async def test_bills_name_what_is_gone_and_accounts_that_are_gone(town: Town) -> None:
    gone_at = town.world.clock()
    await town.world.store.write(lambda tx: tx.purge(town.ports["acme"]))
    await town.world.store.write(lambda tx: tx.purge(town.vms["acme"]))
    again = await town.vm("acme", "acme-web")
    town.world.clock.now += HOUR_S
    answer = await ask(town.caller("acme"))
    webs = {item["id"]: item for item in answer["items"] if item["name"] == "acme-web"}
    assert {id: item["vcpu_hours"] for id, item in webs.items()} == {town.vms["acme"].id: 2.0, again.id: 2.0}
    assert webs[town.vms["acme"].id]["received_gb"] == 5.0
    later = await ask(town.caller("acme"), since=iso(gone_at))
    assert {item["id"] for item in later["items"] if item["name"] == "acme-web"} == {again.id}
    await town.world.store.write(lambda tx: tx.purge(again))
    await town.world.store.write(lambda tx: tx.purge(town.volumes["acme"]))
    account = await town.world.store.get(town.accounts["acme"])
    await town.world.store.write(lambda tx: tx.purge(account))
    bills = await ask(town.world.operator)
    assert {item["account"]: item["vcpu_hours"] for item in bills["items"]} == {"acme": 4.0, "umbrella": 4.0}
    made = await town.world.account("acme")
    assert (await ask(town.world.caller(made)))["items"] == [], "another account of the same name"


def _fill(file: Path, account: str, began: float, until: float, vms: int) -> None:
    """Write a month of VMs: each is on for 20 hours of each day, and sends and receives in every hour."""
    runs, passed = [], []
    for number in range(vms):
        id = f"vm-{number:06}"
        whose = ("compute.vm", f"vm{number}", account, "acme")
        at = began
        while at < until:
            amounts = '{"vcpus":2,"memory_mib":2048,"disk_mib":10240}'
            runs.append((id, at, at + 20 * HOUR_S, *whose, "", amounts))
            runs.append((id, at + 20 * HOUR_S, at + DAY_S, *whose, "", '{"disk_mib":10240}'))
            passed += [(id, at + hour * HOUR_S, *whose, 1_000_000, 2_000_000) for hour in range(24)]
            at += DAY_S
    with contextlib.closing(sqlite3.connect(file)) as database, database:
        columns = "id, since, until, kind, name, account_id, account, host, amounts"
        database.executemany(f"INSERT INTO usage ({columns}) VALUES (?,?,?,?,?,?,?,?,?)", runs)
        columns = "id, hour, kind, name, account_id, account, received_bytes, sent_bytes"
        database.executemany(f"INSERT INTO traffic ({columns}) VALUES (?,?,?,?,?,?,?,?)", passed)


@pytest.mark.long
async def test_a_month_by_hours_of_300_vms_is_answered_and_keeps_nobody_waiting(world: World, tmp_path: Path) -> None:
    began = datetime(2027, 1, 1, tzinfo=UTC).timestamp()
    world.clock.now = began + 31 * DAY_S
    key = await world.account("acme")
    account = (await world.operator("GET", "/v1/tenancy.account/acme")).json["id"]
    _fill(tmp_path / "pileus.db", account, began, world.clock.now, 300)
    month = {"since": iso(began), "until": iso(world.clock.now)}
    waited_s = 0.0

    async def others() -> None:
        nonlocal waited_s
        while True:
            before = time.perf_counter()
            await asyncio.sleep(0)
            waited_s = max(waited_s, time.perf_counter() - before)

    other = asyncio.create_task(others())
    lines = {"per=hour&by=account": 744, "per=day": 300 * 31, "per=hour&id=vm-000007": 744, "per=all": 300}
    for query, expected in lines.items():
        waited_s, start = 0.0, time.perf_counter()
        asked = dict(pair.split("=") for pair in query.split("&"))
        answer = await ask(world.caller(key), **month, **asked)
        print(f"{query}: {time.perf_counter() - start:.2f} s, nobody else for {waited_s:.3f} s")
        assert time.perf_counter() - start < SECONDS_MAX
        assert len(answer["items"]) == expected
        vms = 1 if "id" in asked else 300
        assert answer["total"]["vcpu_hours"] == 2 * 20 * 31 * vms
        assert answer["total"]["sent_gb"] == pytest.approx(vms * 744 * 0.002)
    refused = await world.caller(key)("GET", "/v1/usage?per=hour&" + "&".join(f"{k}={v}" for k, v in month.items()))
    assert (refused.status, refused.json["field"]) == (400, "per")
    assert "more than 20000 lines; ask for less time, longer periods, or by=account" in refused.json["detail"]
    other.cancel()


async def test_a_bill_is_the_same_by_whatever_stretches_its_runs_are_read(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    began = datetime(2027, 1, 1, tzinfo=UTC).timestamp()
    world.clock.now = began + 31 * DAY_S
    key = await world.account("acme")
    account = (await world.operator("GET", "/v1/tenancy.account/acme")).json["id"]
    _fill(tmp_path / "pileus.db", account, began, world.clock.now, 5)
    for asked in (
        {"since": iso(began)},
        {"since": iso(began + 7.5 * DAY_S), "until": iso(began + 8 * DAY_S), "per": "hour"},
    ):
        whole = [await ask(caller, **asked, by="object") for caller in (world.caller(key), world.operator)]
        assert whole[0]["total"]["disk_gib_hours"]
        for most in (0, 1, 61, 62, 63, 309, 310):
            monkeypatch.setattr(server_usage, "RUNS_AT_ONCE", most)
            assert [await ask(caller, **asked, by="object") for caller in (world.caller(key), world.operator)] == whole


NEVER = ["nonsense", "", "9999-12-31T23:59:59Z", "0001-01-01T00:00:00Z", "-1", "1e30", "2000-01-01T00:00:00Z",
         "2029-12-31T23:59:59", "9999-12-31T23:59:59-23:59", "\u0661\u0662", "2030-02-30T00:00:00Z", " "]  # fmt: skip


async def running_vm(world: Cloud) -> dict[str, Any]:
    await world.create("tenancy.account", "acme")
    await world.create("compute.vm", "web", "acme")
    await world.until(lambda: world.is_ready("compute.vm", "web", "acme"))
    return await world.get("compute.vm", "web", "acme")


def test_no_time_that_a_hostile_host_says_makes_use_before_the_vm_was_made_or_after_now() -> None:
    async def main() -> None:
        async with cloud() as world:
            made_at = clock()
            vm = await running_vm(world)
            bad = await forger(world, vm["host"])
            number = 1
            for started_at in NEVER:
                for exit_at in NEVER:
                    said = {"vcpus": 1, "memory_mib": 128, "started_at": started_at}
                    end = {"reason": "killed", "at": exit_at, "started_at": started_at}
                    for observed in ({"power": "running", **said}, {"power": "stopped", "exit": end, "vcpus": 1}):
                        text = msgspec.json.encode(observed).decode()
                        bad.say(Report(number=number, facts=(Fact(vm["id"], "compute.vm", 1, text),)))
                        number += 1
                    await asyncio.sleep(0.5)
                answer = await usage(world, since="1970-01-01T00:00:00Z")
                for item in answer["items"]:
                    assert item["disk_gib_hours"] * HOUR_S <= clock() - made_at + 0.004
                    assert item["vcpu_hours"] * HOUR_S <= clock() - made_at + 0.004
                before = await usage(world, since="1970-01-01T00:00:00Z", until=iso(made_at))
                assert before["items"] == []
            assert await world.is_ready("infra.host", "host0")

    run(main)


async def test_a_disk_that_grew_while_nobody_knew_of_the_vm_counts_from_when_it_is_known_again(town: Town) -> None:
    async def change(**sections: dict[str, Any]) -> None:
        vm = await town.world.store.get(town.vms["acme"].id)
        changed = {word: msgspec.structs.replace(getattr(vm, word), **fields) for word, fields in sections.items()}
        await town.world.store.write(lambda tx: tx.update(vm, **changed))

    await change(observed={"power": "unknown"})
    town.world.clock.now += HOUR_S
    await change(assigned={"disk_gib": 103})
    await change(observed={"power": "running"})
    town.world.clock.now += HOUR_S
    total = (await ask(town.caller("acme"), id=town.vms["acme"].id))["total"]
    assert (total["disk_gib_hours"], total["vcpu_hours"]) == (2 * 3.0 + 103.0, 6.0)


@pytest.mark.parametrize("amount", [10**400, 2**64, -(10**9)])
async def test_no_amount_that_a_hostile_host_says_breaks_a_bill_or_makes_it_less(town: Town, amount: int) -> None:
    observed = VmObserved(power="running", vcpus=amount, memory_mib=amount, started_at=iso(town.world.clock()))
    vm = await town.world.store.get(town.vms["acme"].id)
    await town.world.store.write(lambda tx: tx.update(vm, observed=observed))
    town.world.clock.now += HOUR_S
    total = (await ask(town.world.operator))["total"]
    assert 6.0 <= total["vcpu_hours"] <= 6.0 + AMOUNT_MAX
    assert 3.0 <= total["memory_gib_hours"] <= 3.0 + AMOUNT_MAX / 1024
    assert (await ask(town.caller("umbrella")))["total"]["vcpu_hours"] == 4.0


async def test_ports_that_nobody_counted_for_years_fit_an_hours_row(town: Town) -> None:
    vm = town.vms["acme"]
    for number in range(8):
        name = f"nic{number}"
        await town.put("acme", "network.port", name, PortDesired(network=""), owner=vm.id, host=HOST)
    town.world.clock.now += 3000 * DAY_S
    for port in await town.world.store.list_all(Filter(kind="network.port", account_id=town.accounts["acme"])):
        counters = json.dumps({"rx_bytes": 2**63 - 1})
        await town.world.store.write(functools.partial(hear, port=port, counters=counters))
    rows = await town.world.store.fetch(sa.text("SELECT MAX(received_bytes) FROM traffic"))
    assert isinstance(rows[0][0], int)
    assert rows[0][0] < 2**63


async def test_counters_as_deep_as_no_reader_goes_count_nothing(town: Town) -> None:
    before = (await ask(town.caller("acme")))["total"]
    deep = '{"rx_bytes":9,"a":' + 5000 * "[" + 5000 * "]" + "}"
    await town.world.store.write(lambda tx: hear(tx, town.ports["acme"], deep))
    assert (await ask(town.caller("acme")))["total"]["received_gb"] == before["received_gb"]


COUNTERS = ['{"rx_bytes":1e30,"tx_bytes":1}', '{"rx_bytes":1' + 30 * "0" + '}', '{"rx_bytes":-5}',
            '{"rx_bytes":"5","tx_bytes":[]}', '{"rx_bytes":null}', '{"rx_bytes":9223372036854775808}', "{}",
            '{"rx_bytes":1.5}', '{"rx_bytes":1e-30}', '{"tx_bytes":NaN}', '{"rx_bytes":18446744073709551615}']  # fmt: skip


def test_no_counters_that_a_hostile_host_says_harm_anybody_else() -> None:
    async def main() -> None:
        async with cloud(2) as world:
            vm = await running_vm(world)
            await world.create("tenancy.account", "umbrella")
            await world.create("compute.vm", "other", "umbrella")
            await world.until(lambda: world.is_ready("compute.vm", "other", "umbrella"))
            other = await world.get("compute.vm", "other", "umbrella")
            assert other["host"] != vm["host"]
            (port,), (others,) = vm["assigned"]["ports"], other["assigned"]["ports"]
            made_at = clock() - 60.0
            bad = await forger(world, vm["host"])
            for _ in range(3):
                for text in COUNTERS:
                    bad.say(Samples(counters={port: text, others: '{"rx_bytes":5000000000,"tx_bytes":5}', "no": text}))
                    await asyncio.sleep(1.5)
            answer = await usage(world, "", by="object")
            passed = {item["name"]: (item["received_gb"], item["sent_gb"]) for item in answer["items"]}
            assert passed["other"] == (0.0, 0.0)
            assert all(0 <= count * 1e9 <= BYTES_PER_S_MAX * (clock() - made_at) for count in passed["web"])
            assert await world.is_ready("infra.host", "host0")
            assert await world.is_ready("infra.host", "host1")
            bad.say(Samples(counters={port: '{"rx_bytes":0,"tx_bytes":0}'}))
            await asyncio.sleep(1.5)
            before = (await usage(world, "", by="object"))["total"]["received_gb"]
            bad.say(Samples(counters={port: '{"rx_bytes":2000000,"tx_bytes":0}'}))
            await asyncio.sleep(1.5)
            after = (await usage(world, "", by="object"))["total"]["received_gb"]
            assert after - before == pytest.approx(0.002)

    run(main)
