"""A seeded random walk: everything users and fate can do to a cloud, over the real servers, controllers and agents.

Time is virtual, hosts are simulated, the database is real. ``python -m tests.cloud.walk --operations 100000 --seed 1``
ends with the first invariant that does not hold, or prints what it did, how fast, and how fast accidents were made good.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from pileus.drivers.host.ovs.base import Uplinks
from pileus.kernel.access import Principal, Rule
from pileus.kernel.errors import Bug, Rejected, Transient
from pileus.kernel.kind import Resource
from pileus.kernel.reading import Answer, Call, ListQuery
from pileus.kernel.store.lists import Filter
from pileus.kernel.surface import Surface
from pileus.tenancy.account.types import VmLimits
from tests.cloud.fate import Fate
from tests.cloud.invariants import Broken, Ledger, check
from tests.cloud.walk_fleet import FleetSteps
from tests.cloud.walk_mirror import IDLE_S, MirrorSteps
from tests.cloud.walk_people import PeopleSteps
from tests.cloud.world import OPERATOR, Cloud

ACCOUNTS = tuple(f"a{number}" for number in range(6))
VLANS = 4
"""Fewer than accounts, so that they run out."""
HOSTS = 4
HOST_MIB = 4096
"""Small, so that hosts fill up."""
RANGES = ("10.1.1.0/24", "10.2.0.0/29", "10.2.0.0/28", "10.3.0.0/30", "192.168.7.0/26")
PUBLIC_RANGE = "203.0.113.0/29"
"""Five addresses: they run out too."""
ROUTER_IDLE_S = 20
QUICK_EVERY, FULL_EVERY = 10, 1000
TENANT_RULES = (Rule(kinds=("*",), verbs=("get", "create", "update", "delete", "console")),)
MIRROR_KINDS = ("mirror.session", "mirror.filter", "mirror.sniffer")
TENANT_KINDS = (
    "compute.vm", "storage.volume", "network.network", "network.port", "tenancy.vdc", "storage.image", *MIRROR_KINDS
)  # fmt: skip
KNOWN = ("compute.vm", "storage.volume", "network.network", "fleet.node", "fleet.request", *MIRROR_KINDS)
MISSING_ID = "01234567-89ab-7def-8123-456789abcdef"

Operation = Callable[[], Awaitable[None]]


def _is_own(row: Resource) -> bool:
    """Tell whether it is the account's own; what belongs to an appliance may not be touched."""
    return row.owner == row.account_id or not any(word in row.name for word in ("router", "decapsulator"))


def sizes(number: int) -> dict[str, Any]:
    """Return what a host has; only the first has no trunk."""
    links = Uplinks(trunk="trunk0" if number else "", tunnel="tunnel0", tunnel_address=f"10.200.0.{number + 1}/24")
    return {"cpus": 8, "memory_mib": HOST_MIB, "uplinks": links}


class Walk:
    """The walker's hands and memory."""

    def __init__(self, world: Cloud, seed: int) -> None:
        self.world = world
        self.random = random.Random(seed)
        self.ledger = Ledger()
        self.fate = Fate(world, self.random)
        self.fleet = FleetSteps(self)
        self.mirror = MirrorSteps(self)
        self.people = PeopleSteps(self)
        self.accounts: dict[str, str] = {}
        self.outcomes: Counter[str] = Counter()
        self.known: dict[str, list[tuple[str, str]]] = {}
        self.requests = 0
        self.done = 0
        self._table: list[tuple[Operation, int]] = [
            (self.create_vm, 260), (self.power, 160), (self.boot, 30), (self.nics, 50), (self.volumes, 80), (self.limits, 15),
            (self.rescale, 50), (self.policy, 25), (self.label, 30), (self.delete_vm, 80),
            (self.create_volume, 60), (self.grow_volume, 25), (self.delete_volume, 40),
            (self.create_network, 40), (self.change_router, 12), (self.gateway_rule, 40),
            (self.gateway_rule_goes, 30), (self.delete_network, 15), (self.image, 12),
            (self.fleet.node, 15), (self.fleet.node_goes, 6), (self.fleet.request, 40), (self.fleet.request_goes, 10),
            (self.mirror.filter, 20), (self.mirror.sniffer, 50), (self.mirror.session, 90), (self.mirror.session_changes, 50),
            (self.mirror.session_goes, 25), (self.mirror.zone, 12), (self.mirror.frames, 150),
            (self.create_account, 30), (self.delete_account, 3), (self.quota, 15), (self.vdc, 8),
            (self.people.people, 25), (self.people.operators_own, 15), (self.nonsense, 40), (self.peek, 40), (self.repeat, 10),
            (self.burst, 8), (self.rest, 25),
            (self.fate.driver_fault, 35), (self.fate.machine_ends, 30), (self.fate.guest_ends, 12),
            (self.fate.deaf_guest, 5), (self.fate.hung_machine, 12),
            (self.fate.kill_agent, 10), (self.fate.start_agents, 20), (self.fate.part, 7),
            (self.fate.heal, 14), (self.fate.kill_server, 5), (self.fate.reboot_host, 2), (self.fate.switch_crashes, 4),
            (self.fate.switch_vanishes, 2), (self.hosts, 5), (self.fate.report_again, 8),
        ]  # fmt: skip

    async def prepare(self) -> None:
        """Furnish the cloud."""
        zone: dict[str, Any] = {
            "vlan_first": 1,
            "vlan_last": VLANS,
            "public_range": PUBLIC_RANGE,
            "router_idle_s": ROUTER_IDLE_S,
            "decapsulator_idle_s": IDLE_S,
        }
        await self.world.furnish(0, **zone)
        for number in range(HOSTS):
            await self.world.add_host(f"host{number}", **sizes(number))
        await self.fleet.prepare()
        for account in ACCOUNTS[:4]:
            await self._create_account(account)

    async def go(self, operations: int, *, progress: Callable[[int], None] = lambda done: None) -> None:
        """Do that many operations with checks in between."""
        works = [work for work, _ in self._table]
        weights = [weight for _, weight in self._table]
        end = self.done + operations
        while self.done < end:
            (work,) = self.random.choices(works, weights)
            await work()
            self.done += 1
            await asyncio.sleep(self.random.choice((0.0, 0.0, 0.0, 0.01, 0.05, 0.2)))
            if self.done % QUICK_EVERY == 0 and self.world.servers:
                await check(self.world, self.ledger, full=self.done % FULL_EVERY == 0)
                await self.mirror.check()
                self.fate.check_logs()
                await self.look()
            if self.done % FULL_EVERY == 0:
                progress(self.done)

    # asking

    @property
    def surface(self) -> Surface:
        if not self.world.servers:
            raise Transient("no server answers")
        return self.random.choice(self.world.servers).surface

    def call(self, account: str, **more: Any) -> Call:
        """Return a call in an account, by its owner or by the operator."""
        self.requests += 1
        request = f"r{self.requests}"
        if account and account in self.accounts and self.random.random() < 0.7:
            return Call(principal=tenant(account, self.accounts[account]), request_id=request, **more)
        return Call(principal=OPERATOR, account=account, request_id=request, **more)

    async def ask(self, verb: str, asked: Callable[[Surface], Awaitable[Answer]]) -> dict[str, Any] | None:
        """Return the answer's body; None when it was refused or its fate is unknown."""
        try:
            answer = await asked(self.surface)
        except Rejected as error:
            self.outcomes[f"{verb} {error.code}"] += 1
            if not error.message or isinstance(error, Bug):
                raise Broken(f"a refusal without a message: {error!r}") from error
            return None
        except Transient:
            self.outcomes[f"{verb} transient"] += 1
            return None
        except asyncio.CancelledError:
            self.outcomes[f"{verb} unknown"] += 1
            return None
        self.outcomes[f"{verb} ok"] += 1
        result: dict[str, Any] = msgspec.json.decode(answer.body)
        return result

    async def create(self, kind: str, name: str, account: str, **desired: Any) -> dict[str, Any] | None:
        body = msgspec.json.encode({"name": name, "desired": desired})
        return await self.ask("create", lambda surface: surface.create(self.call(account), kind, body))

    async def patch(self, kind: str, name: str, account: str, **desired: Any) -> dict[str, Any] | None:
        body = msgspec.json.encode({"desired": desired})
        return await self.ask("patch", lambda surface: surface.patch(self.call(account), kind, name, body))

    async def delete(self, kind: str, name: str, account: str) -> dict[str, Any] | None:
        return await self.ask("delete", lambda surface: surface.delete(self.call(account), kind, name))

    def account(self) -> str:
        if self.accounts and self.random.random() < 0.95:
            return self.random.choice(sorted(self.accounts))
        return self.random.choice(ACCOUNTS)

    def one(self, kind: str, letter: str, count: int) -> tuple[str, str]:
        """Return account and name: mostly of something that was there lately."""
        known = self.known.get(kind)
        if known and self.random.random() < 0.8:
            return self.random.choice(known)
        return self.account(), self.name(letter, count)

    async def look(self) -> None:
        """Note what there is."""
        for kind in KNOWN:
            rows = await self.world.servers[0].store.list(Filter(kind=kind), limit=1000)
            self.known[kind] = [(row.account, row.name) for row in rows if not row.deleting and _is_own(row)]

    def name(self, letter: str, count: int) -> str:
        return f"{letter}{self.random.randrange(count)}"

    # VMs

    async def create_vm(self) -> None:
        desired: dict[str, Any] = {"nics": [self._nic() for _ in range(self.random.choice((0, 1, 1, 1, 2, 3)))]}
        size = self.random.random()
        if size < 0.5:
            desired["offering"] = self.random.choice(("tiny", "tiny", "small"))
        elif size < 0.8:
            desired |= {"vcpus": self.random.choice((1, 2)), "memory_mib": self.random.choice((64, 128, 512, 1024))}
        if self.random.random() < 0.2:
            desired["volumes"] = [{"volume": self.name("d", 5)}]
        desired["restart"] = self.random.choice(("on-failure", "on-failure", "always", "never"))
        desired["power"] = self.random.choice(("running", "running", "running", "stopped", "paused"))
        desired["shutdown_timeout_s"] = self.random.choice((0, 5, 30))
        if self.random.random() < 0.03:
            desired["image"] = "own"
        await self.create("compute.vm", self.name("v", 14), self.account(), **desired)

    def _nic(self) -> dict[str, Any]:
        nic: dict[str, Any] = {"network": self.random.choice(("default", "default", "n0", "n1"))}
        if self.random.random() < 0.3:
            nic["address"] = f"10.1.1.{self.random.randrange(2, 12)}"
            if self.random.random() < 0.3:
                nic["extra_addresses"] = [f"10.1.1.{self.random.randrange(2, 20)}"]
        return nic

    async def power(self) -> None:
        power = self.random.choice(("running", "running", "stopped", "stopped", "paused"))
        account, name = self.one("compute.vm", "v", 14)
        await self.patch("compute.vm", name, account, power=power)

    async def boot(self) -> None:
        await self._change_vm(lambda desired: {"boot_serial": desired["boot_serial"] + 1, "power": "running"})

    async def nics(self) -> None:
        grow = self.random.random() < 0.6
        place = self.random.randrange(4)
        await self._change_vm(
            lambda desired: {
                "nics": [*desired["nics"][:place], self._nic(), *desired["nics"][place:]]
                if grow
                else [nic for position, nic in enumerate(desired["nics"]) if position != place]
            }
        )

    async def limits(self) -> None:
        """Change what VMs get at most: those of an account, of the zone, of an offering."""
        limits = {word: self.random.choice((0, 100, 1000)) for word in VmLimits.__struct_fields__}
        kind = self.random.choice(("tenancy.account", "infra.zone", "compute.offering"))
        if kind == "compute.offering":
            await self.patch(kind, "small", "", **limits)
        else:
            await self.patch(kind, self.account() if kind == "tenancy.account" else "local", "", limits=limits)

    async def volumes(self) -> None:
        grow = self.random.random() < 0.6
        further = {"volume": self.name("d", 5)}
        await self._change_vm(
            lambda desired: {"volumes": [*desired["volumes"], further] if grow else desired["volumes"][1:]}
        )

    async def _change_vm(self, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        account, name = self.one("compute.vm", "v", 14)
        found = await self.ask("get", lambda surface: surface.get(self.call(account), "compute.vm", name))
        if found is not None:
            await self.patch("compute.vm", name, account, **change(found["desired"]))

    async def rescale(self) -> None:
        size: dict[str, Any] = {"offering": self.random.choice(("tiny", "small")), "vcpus": 0, "memory_mib": 0}
        if self.random.random() < 0.5:
            size = {
                "offering": "",
                "vcpus": self.random.choice((1, 2, 4)),
                "memory_mib": self.random.choice((64, 256, 1536)),
            }
        account, name = self.one("compute.vm", "v", 14)
        await self.patch("compute.vm", name, account, **size)

    async def policy(self) -> None:
        restart = self.random.choice(("always", "on-failure", "never"))
        account, name = self.one("compute.vm", "v", 14)
        await self.patch("compute.vm", name, account, restart=restart)

    async def label(self) -> None:
        kind, letter = self.random.choice((("compute.vm", "v"), ("storage.volume", "d"), ("network.network", "n")))
        account, name = self.one(kind, letter, 9)
        body = msgspec.json.encode({"labels": {"tier": self.random.choice(("web", "db", None))}})
        await self.ask("patch", lambda surface: surface.patch(self.call(account), kind, name, body))

    async def delete_vm(self) -> None:
        account, name = self.one("compute.vm", "v", 14)
        await self.delete("compute.vm", name, account)

    # what VMs are made of

    async def create_volume(self) -> None:
        await self.create("storage.volume", self.name("d", 5), self.account(), size_gib=self.random.randrange(1, 9))

    async def grow_volume(self) -> None:
        account, name = self.one("storage.volume", "d", 5)
        await self.patch("storage.volume", name, account, size_gib=self.random.randrange(1, 17))

    async def delete_volume(self) -> None:
        account, name = self.one("storage.volume", "d", 5)
        await self.delete("storage.volume", name, account)

    async def create_network(self) -> None:
        router = self.random.choice(("", "", "single", "single", "redundant"))
        range_ = self.random.choice(RANGES)
        await self.create("network.network", self.name("n", 2), self.account(), range=range_, router=router)

    async def change_router(self) -> None:
        account, name = self.one("network.network", "n", 2)
        router = self.random.choice(("none", "single", "redundant"))
        await self.patch("network.network", name, account, router=router)

    async def delete_network(self) -> None:
        await self.delete("network.network", self.random.choice(("n0", "n1", "n1", "default")), self.account())

    # what routers do

    async def gateway_rule(self) -> None:
        """Make a forward, a balancer, a firewall or an address."""
        account, vm = self.one("compute.vm", "v", 14)
        port = self.random.randrange(8000, 8006)
        kind = self.random.choice(("address", "forward", "forward", "balancer", "firewall"))
        wishes: dict[str, dict[str, Any]] = {
            "address": {},
            "forward": {"port": port, "vm": vm, "address": self.random.choice(("", "", "g0"))},
            "balancer": {"port": port, "members": [{"vm": vm}]},
            "firewall": {"rules": [{"direction": "egress", "action": "drop", "port_first": port, "port_last": port,
                                    "protocol": "tcp"}]},
        }  # fmt: skip
        await self.create(f"gateway.{kind}", self.name("g", 2), account, **wishes[kind])

    async def gateway_rule_goes(self) -> None:
        kind = self.random.choice(("address", "forward", "forward", "balancer", "firewall"))
        await self.delete(f"gateway.{kind}", self.name("g", 2), self.account())

    async def image(self) -> None:
        account = self.account()
        if self.random.random() < 0.6:
            await self.create("storage.image", "own", account, format="raw")
        else:
            await self.delete("storage.image", "own", account)

    # accounts and people

    async def create_account(self) -> None:
        await self._create_account(self.random.choice(ACCOUNTS))

    async def _create_account(self, name: str) -> None:
        made = await self.create("tenancy.account", name, "")
        if made is not None:
            self.accounts[name] = made["id"]

    async def delete_account(self) -> None:
        name = self.account()
        if await self.delete("tenancy.account", name, "") is not None:
            self.accounts.pop(name, None)

    async def quota(self) -> None:
        quota = {
            "vms": self.random.choice((2, 5, 20)),
            "memory_mib": self.random.choice((1024, 4096, 65536)),
            "disk_gib": self.random.choice((20, 1000)),
        }
        answer = await self.patch("tenancy.vdc", "main", self.account(), quota=quota)
        if answer is not None:
            self.ledger.lowered(answer["id"])

    async def vdc(self) -> None:
        account = self.account()
        if self.random.random() < 0.5:
            await self.create("tenancy.vdc", "second", account)
        else:
            await self.delete("tenancy.vdc", self.random.choice(("second", "second", "second", "main")), account)

    # the operator's own

    async def hosts(self) -> None:
        """Cordon, uncordon, add a host, or remove one that is empty."""
        work = self.random.random()
        name = self.random.choice([f"host{number}" for number in range(HOSTS)] + ["spare"])
        if work < 0.6:
            await self.patch("infra.host", name, "", scheduling=self.random.choice(("cordoned", "enabled", "enabled")))
        elif work < 0.8 and await self.create("infra.host", "spare", "", pod="local") is not None:
            await self.world.adopt_host("spare", **sizes(HOSTS))
        else:
            await self.delete("infra.host", "spare", "")
        await self.fate.retire_hosts()

    # what must be refused

    async def nonsense(self) -> None:
        """Ask for what cannot be; nothing may come of it but a refusal."""
        account = self.account()
        requests: tuple[tuple[str, str, dict[str, Any]], ...] = (
            ("compute.vm", "Bad_Name", {}),
            ("compute.vm", "v0", {"memory_mib": -1, "vcpus": 1}),
            ("compute.vm", "v0", {"colour": "red"}),
            ("compute.vm", "v0", {"nics": [{"network": "default", "address": "10.9.9.9"}]}),
            ("compute.vm", "v0", {"image": "no-such"}),
            ("storage.volume", "d0", {"size_gib": "4G"}),
            ("network.network", "n9", {"range": "8.8.8.0/24"}),
            ("network.port", "mine", {"network": "default"}),
            ("tenancy.role", "all", {"rules": 7}),
        )
        kind, name, desired = self.random.choice(requests)
        if await self.create(kind, name, account, **desired) is not None:
            raise Broken(f"nonsense was taken: {kind} {name} {desired}")

    async def peek(self) -> None:
        """I12: what belongs to another account answers as if it were not there."""
        if len(self.accounts) < 2:
            return
        mine, theirs = self.random.sample(sorted(self.accounts), 2)
        kind = self.random.choice(TENANT_KINDS)
        rows = await self.world.servers[0].store.list(Filter(kind=kind, account_id=self.accounts[theirs]), limit=5)
        call = Call(principal=tenant(mine, self.accounts[mine]), request_id="")
        if rows:
            target = self.random.choice(rows).id
            for verb in ("get", "patch", "delete"):
                if await self._refusal(verb, call, kind, target) != await self._refusal(verb, call, kind, MISSING_ID):
                    raise Broken(f"I12: {verb} of {theirs}'s {kind} tells {mine} something")
        answer = await self.surface.list(call, kind, ListQuery(limit=1000))
        for item in msgspec.json.decode(answer.body)["items"]:
            if item["account_id"] not in ("", self.accounts[mine]):
                raise Broken(f"I12: {mine} sees {item['kind']} {item['name']} of {item['account']}")

    async def _refusal(self, verb: str, call: Call, kind: str, ident: str) -> str:
        surface = self.surface
        try:
            if verb == "get":
                await surface.get(call, kind, ident)
            elif verb == "patch":
                await surface.patch(call, kind, ident, b'{"labels":{"x":"y"}}')
            else:
                await surface.delete(call, kind, ident)
        except Rejected as error:
            return f"{error.code} {error.message.replace(ident, 'ID')}"
        raise Broken(f"I12: {verb} of {kind} {ident} was answered")

    async def repeat(self) -> None:
        """The same request with the same key, twice: one thing, one answer."""
        body = msgspec.json.encode({"name": self.name("d", 5), "desired": {"size_gib": 1}})
        self.requests += 1
        call = self.call(self.account(), idempotency_key=f"key{self.requests}")
        first = await self.ask("create", lambda surface: surface.create(call, "storage.volume", body))
        call = msgspec.structs.replace(call, request_id=f"{call.request_id} again")
        again = await self.ask("create", lambda surface: surface.create(call, "storage.volume", body))
        if first is not None and again is not None and first != again:
            raise Broken("an idempotency key gave two answers")

    # many at once, and nothing at all

    async def burst(self) -> None:
        """Ten requests at the same moment; sometimes a server dies in the middle of them."""
        works = (self.create_vm, self.create_vm, self.delete_vm, self.power, self.volumes, self.nics)
        tasks = [asyncio.create_task(self.random.choice(works)()) for _ in range(10)]
        if self.random.random() < 0.4:
            for _ in range(self.random.randrange(4)):
                await asyncio.sleep(0)
            await self.fate.kill_server()
        await asyncio.gather(*tasks, return_exceptions=False)

    async def rest(self) -> None:
        """Let time pass."""
        await asyncio.sleep(self.random.choice((0.5, 1.0, 1.0, 3.0, 10.0, 30.0)))


def tenant(account: str, id: str) -> Principal:
    """Return the owner of an account."""
    return Principal(
        user_id=f"user-{account}",
        user=f"{account}-owner",
        account_id=id,
        account=account,
        role="owner",
        rules=TENANT_RULES,
    )


if __name__ == "__main__":
    from tests.cloud.walk_main import main

    main()
