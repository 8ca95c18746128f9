"""Gateway kinds: what is refused, what the router gets, and when it is said to be in force."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest
import sqlalchemy as sa

from pileus.kernel.errors import Conflict, Invalid, NotFound, QuotaExceeded, Rejected
from tests.cloud.world import Cloud, cloud, leftovers
from tests.virtual_time import run

PUBLIC: dict[str, Any] = {"router": "single", "router_idle_s": 60, "public_range": "203.0.113.0/28"}
"""Addresses .2 to .14 behind the gateway .1."""

Json = dict[str, Any]


@contextlib.asynccontextmanager
async def town(*vms: str, **zone: Any) -> AsyncIterator[Cloud]:
    """Give a cloud with public addresses and the account acme, whose VMs run."""
    async with cloud(1, **(PUBLIC | zone)) as world:
        await world.create("tenancy.account", "acme")
        for name in vms:
            await world.create("compute.vm", name, "acme")
        for name in vms:
            await ready(world, "compute.vm", name)
        yield world


async def ready(world: Cloud, kind: str, name: str) -> Json:
    await world.until(lambda: world.is_ready(kind, name, "acme"))
    return await world.get(kind, name, "acme")


async def refused(world: Cloud, kind: str, name: str = "x", account: str = "acme", **desired: Any) -> Rejected:
    with pytest.raises(Rejected) as caught:
        await world.create(f"gateway.{kind}", name, account, **desired)
    assert not await world.exists(f"gateway.{kind}", name, account)
    return caught.value


def section(world: Cloud, name: str) -> Json:
    """Return what the appliances run in one section."""
    found: Json = {}
    for host in world.hosts.values():
        for document in host.guests.documents.values():
            found |= document.get(name, {})
    return found


async def reason(world: Cloud, kind: str, name: str) -> str:
    found = await world.get(f"gateway.{kind}", name, "acme")
    condition: Mapping[str, str] = found["conditions"][0]
    return "" if condition["status"] == "true" else condition["reason"]


def test_a_forward_is_in_force_when_the_router_runs_it_and_gone_when_it_does_not() -> None:
    async def main() -> None:
        async with town("web") as world:
            await world.create("gateway.forward", "ssh", "acme", vm="web", port=2222, vm_port=22, sources=["192.0.2.7"])
            found = await ready(world, "gateway.forward", "ssh")
            vm = await world.get("compute.vm", "web", "acme")
            router = await world.get("gateway.router", "router-local", "acme")
            assert section(world, "forwards") == {
                found["id"]: {
                    "address": router["assigned"]["public_address"],
                    "protocol": "tcp",
                    "port_first": 2222,
                    "port_last": 2222,
                    "to_address": vm["observed"]["addresses"][0],
                    "to_port": 22,
                    "sources": ["192.0.2.7/32"],
                }
            }
            assert found["observed"]["state"] == "in-force"
            assert found["observed"]["public_address"] == router["assigned"]["public_address"]

            await world.patch("gateway.forward", "ssh", "acme", port=2223)
            assert await reason(world, "forward", "ssh") == "Configuring"
            await ready(world, "gateway.forward", "ssh")
            (entry,) = section(world, "forwards").values()
            assert entry["port_first"] == 2223
            await world.create("gateway.forward", "old", "acme", vm="web", port=2222)  # given back

            with pytest.raises(Conflict) as used:
                await world.delete("compute.vm", "web", "acme")
            assert used.value.message.startswith("vm web is used by forward ")

            for name in ("ssh", "old"):
                await world.delete("gateway.forward", name, "acme")

            async def gone() -> bool:
                return not await world.exists("gateway.forward", "ssh", "acme") and not section(world, "forwards")

            await world.until(gone)
            await world.delete("compute.vm", "web", "acme")

    run(main)


def test_a_rule_of_an_idle_router_waits_for_the_first_vm_and_goes_at_once() -> None:
    async def main() -> None:
        async with town() as world:
            for kind, desired in (("firewall", {}), ("firewall", {"network": "default"})):
                await world.create(f"gateway.{kind}", f"x{len(desired)}", "acme", **desired)
            await world.settle()
            assert await reason(world, "firewall", "x0") == await reason(world, "firewall", "x1") == "RouterIdle"
            await world.create("compute.vm", "web", "acme")
            await ready(world, "gateway.firewall", "x1")
            await world.patch("compute.vm", "web", "acme", power="stopped")

            async def idle() -> bool:
                return await reason(world, "firewall", "x0") == "RouterIdle"

            await world.until(idle, limit_s=600.0)
            await world.delete("gateway.firewall", "x0", "acme")
            await world.settle()
            assert not await world.exists("gateway.firewall", "x0", "acme")

    run(main)


def test_bad_forwards_are_refused_with_the_field_and_the_next_step() -> None:
    async def main() -> None:
        async with town("web") as world:
            await world.create("gateway.forward", "web", "acme", vm="web", port=80)
            await world.create("network.network", "bare", "acme", range="10.7.0.0/24", router="none")
            await world.create("compute.vm", "lone", "acme", nics=[{"network": "bare"}])
            cases: list[tuple[Json, str, str, str]] = [
                ({"vm": "no", "port": 1}, "no-such-object", "desired.vm", "there is no vm 'no' in account acme"),
                ({"vm": "web", "port": 80}, "port-taken", "desired.port", "tcp port 80 of the public address of the "),
                ({"vm": "web", "port": 79, "port_last": 81}, "port-taken", "desired.port", "is used by forward web"),
                ({"vm": "web", "port": 9, "port_last": 8}, "invalid", "desired.port_last", "below port 9"),
                ({"vm": "web", "port": 1, "port_last": 1001}, "invalid", "desired.port_last", "1000 are the most"),
                ({"vm": "web", "port": 1, "port_last": 9, "vm_port": 65530}, "invalid", "desired.vm_port", "65535"),
                ({"vm": "web", "port": 1, "sources": ["x"]}, "invalid", "desired.sources[0]", "'x' is not a range"),
                ({"vm": "web", "port": 1, "sources": ["10.0.0.1/8"]}, "invalid", "desired.sources[0]", "10.0.0.0/8?"),
                ({"vm": "web", "port": 1, "network": "bare"}, "invalid", "desired.network", "it is on default"),
                ({"vm": "web", "port": 1, "address": "no"}, "no-such-object", "desired.address", "no address 'no'"),
                ({"vm": "lone", "port": 1}, "invalid", "desired.vm", "network bare has no router, which a forward"),
            ]
            for desired, code, field, said in cases:
                answer = await refused(world, "forward", **desired)
                assert (answer.code, answer.field) == (code, field), desired
                assert said in answer.message, answer.message
            await world.create("gateway.forward", "dns", "acme", vm="web", port=80, protocol="udp")
            answer = await refused(world, "balancer", port=80, members=[{"vm": "web"}])
            assert "is used by forward web" in answer.message

    run(main)


FOUR = {"public_first": "203.0.113.4", "public_last": "203.0.113.7"}


def test_public_addresses_come_from_the_pool_until_it_is_empty() -> None:
    async def main() -> None:
        async with town("web", **FOUR) as world:
            router = (await world.get("gateway.router", "router-local", "acme"))["assigned"]["public_address"]
            for wished, kind, said in (
                ("203.0.113.1", Invalid, "is none of the public addresses of zone local, which are 203.0.113.4 to"),
                ("198.51.100.1", Invalid, "leave it out to get a free one"),
                ("203.0.113", Invalid, "'203.0.113' is not an IPv4 address"),
                (router, Conflict, f"{router} is in use; choose another of 203.0.113.4 to 203.0.113.7"),
            ):
                answer = await refused(world, "address", address=wished)
                assert isinstance(answer, kind)
                assert answer.field == "desired.address"
                assert said in answer.message

            async def one(name: str) -> str:
                try:
                    await world.create("gateway.address", name, "acme")
                except Conflict as error:
                    return f"{error.code}: {error.message}"
                return ""

            won = await asyncio.gather(*(one(f"a{number}") for number in range(6)))
            assert won.count("") == 3
            assert set(won) - {""} == {
                "pool-empty: all 4 public addresses of zone local are in use; delete one that you do not need, "
                "or ask the operator for a larger public range"
            }
            held = await world.list("gateway.address")
            assert len({each["assigned"]["address"] for each in held} | {router}) == 4

    run(main)


def test_an_address_goes_back_to_the_pool_once_no_router_has_it() -> None:
    async def main() -> None:
        async with town("web", **FOUR) as world:
            first = await world.create("gateway.address", "first", "acme", address="203.0.113.7")
            assert first["assigned"]["gateway"] == "203.0.113.1"
            await world.create("gateway.forward", "web", "acme", vm="web", port=80, address="first")
            await ready(world, "gateway.forward", "web")
            assert "203.0.113.7" in section(world, "addresses")
            with pytest.raises(Conflict, match="address first is used by forward web"):
                await world.delete("gateway.address", "first", "acme")
            with pytest.raises(Conflict, match="its range can change once none is"):
                await world.patch(
                    "infra.zone", "local", public_range="198.51.100.0/24", public_first="", public_last=""
                )
            await world.delete("gateway.forward", "web", "acme")

            async def free() -> bool:
                with contextlib.suppress(Conflict, NotFound):
                    await world.delete("gateway.address", "first", "acme")
                return not await world.exists("gateway.address", "first", "acme")

            await world.until(free)
            assert "203.0.113.7" not in section(world, "addresses")
            await world.create("gateway.address", "again", "acme", address="203.0.113.7")

    run(main)


def test_addresses_cost_quota() -> None:
    async def main() -> None:
        async with town() as world:
            await world.patch("tenancy.vdc", "main", "acme", quota={"addresses": 1})
            await world.create("gateway.address", "a", "acme")
            with pytest.raises(QuotaExceeded, match="account acme uses 1 of 1 addresses in vdc main"):
                await world.create("gateway.address", "b", "acme")

    run(main)


def test_a_zone_without_public_addresses_says_so() -> None:
    async def main() -> None:
        async with town("web", public_range="") as world:
            wishes: list[tuple[str, Json]] = [
                ("address", {}),
                ("forward", {"vm": "web", "port": 80}),
                ("balancer", {"members": [{"vm": "web"}], "port": 80}),
                ("vpn", {"mode": "site"}),
            ]
            for kind, desired in wishes:
                answer = await refused(world, kind, **desired)
                assert (answer.code, "zone local has no public addresses" in answer.message) == (
                    "no-public-range",
                    True,
                )

    run(main)


def test_a_balancer_has_its_members_and_says_how_they_are() -> None:
    async def main() -> None:
        async with town("a", "b") as world:
            for desired, field, said in (
                ({"members": []}, "desired.members", "balancer x has no members; name at least one VM with --vm"),
                ({"members": [{"vm": "a"}, {"vm": "a", "port": 80}]}, "desired.members[1].vm", "twice with port 80"),
                ({"members": [{"vm": "no"}]}, "desired.members.0.vm", "there is no vm 'no'"),
            ):
                answer = await refused(world, "balancer", port=80, **desired)
                assert answer.field == field
                assert said in answer.message
            made = await world.create(
                "gateway.balancer", "web", "acme", port=80, members=[{"vm": "a"}, {"vm": "b", "port": 8080}]
            )
            found = await ready(world, "gateway.balancer", "web")
            assert [each["health"] for each in found["observed"]["members"]] == ["unknown", "unknown"]
            entry = section(world, "balancers")[made["id"]]
            assert sorted(each["port"] for each in entry["members"].values()) == [80, 8080]
            assert {each["address"] for each in entry["members"].values()} == {
                (await world.get("compute.vm", name, "acme"))["observed"]["addresses"][0] for name in ("a", "b")
            }

            keys = {each["port"]: key for key, each in entry["members"].items()}
            say(world, {"balancers": {made["id"]: {keys[80]: "up", keys[8080]: "down", "?": 5}, "?": [1]}})

            async def seen() -> bool:
                members = (await world.get("gateway.balancer", "web", "acme"))["observed"]["members"]
                return [each["health"] for each in members] == ["up", "down"]

            await world.until(seen)
            assert (await world.get("gateway.balancer", "web", "acme"))["observed"]["up"] == 1

    run(main)


def say(world: Cloud, status: Json) -> None:
    """Let all appliances report ``status``."""
    for host in world.hosts.values():
        for id in host.guests.documents:
            host.guests.statuses[id] = status


def test_firewalls_are_judged_in_the_order_of_their_names_and_their_rules() -> None:
    async def main() -> None:
        async with town("web") as world:
            rules = [
                {"direction": "ingress", "action": "accept", "protocol": "tcp", "port_first": n} for n in (3, 2, 1)
            ]
            for name in ("web-2", "web", "a"):
                await world.create("gateway.firewall", name, "acme", rules=rules, network="default")
            for name in ("web-2", "web", "a"):
                await ready(world, "gateway.firewall", name)
            keys = sorted(section(world, "firewall"))
            assert [key.split(",")[0] for key in keys] == ["a"] * 3 + ["web"] * 3 + ["web-2"] * 3
            assert [section(world, "firewall")[key]["port_last"] for key in keys] == [3, 2, 1] * 3

            await world.patch("gateway.firewall", "web", "acme", rules=rules[:1])
            await ready(world, "gateway.firewall", "web")
            assert len(section(world, "firewall")) == 7
            await world.delete("gateway.firewall", "web", "acme")

            async def gone() -> bool:
                return len(section(world, "firewall")) == 6 and not await world.exists(
                    "gateway.firewall", "web", "acme"
                )

            await world.until(gone)

    run(main)


@pytest.mark.parametrize(
    ("rule", "field", "said"),
    [
        ({"remotes": ["1.2.3.4/24"]}, "rules[1].remotes[0]", "did you mean 1.2.3.0/24?"),
        ({"locals": ["web"]}, "rules[1].locals[0]", "'web' is not a range"),
        ({"port_first": 80}, "rules[1].protocol", "ports belong to tcp and udp, not to any"),
        ({"protocol": "udp", "port_last": 80}, "rules[1].port_first", "port_last needs a port_first"),
        ({"protocol": "udp", "port_first": 81, "port_last": 80}, "rules[1].port_last", "80 is below port_first 81"),
        ({"port_first": 70_000}, "rules[1].port_first", "65535"),
    ],
)
def test_a_wrong_rule_is_named(rule: Json, field: str, said: str) -> None:
    async def main() -> None:
        async with town() as world:
            good = {"direction": "egress", "action": "drop"}
            answer = await refused(world, "firewall", rules=[good, good | rule])
            assert answer.field == f"desired.{field}"
            assert said in answer.message

    run(main)


def test_a_port_asked_for_by_many_at_once_goes_to_one() -> None:
    async def main() -> None:
        async with town("web") as world:

            async def one(name: str, **more: Any) -> str:
                try:
                    await world.create("gateway.forward", name, "acme", vm="web", **more)
                except Conflict as error:
                    return error.code
                return "made"

            answers = await asyncio.gather(*(one(f"f{n}", port=20 - n, port_last=20 + n) for n in range(8)))
            assert sorted(answers) == ["made", *["port-taken"] * 7]
            await world.settle()
            assert len(section(world, "forwards")) == 1

    run(main)


def test_what_the_router_refuses_is_said_on_the_rule() -> None:
    async def main() -> None:
        async with town("web") as world:
            for host in world.hosts.values():
                host.guests.refusals = dict.fromkeys(host.guests.documents, "section forwards: no")
            await world.create("gateway.forward", "web", "acme", vm="web", port=80)

            async def told() -> bool:
                found = await world.get("gateway.forward", "web", "acme")
                return "section forwards: no" in found["conditions"][0]["message"]

            await world.until(told)
            for host in world.hosts.values():
                host.guests.refusals.clear()
            await ready(world, "gateway.forward", "web")

    run(main)


def test_an_account_goes_with_its_gateways_and_leaves_nothing_claimed() -> None:
    async def main() -> None:
        async with town("a", "b") as world:
            account = await world.get("tenancy.account", "acme")
            await world.create("gateway.address", "front", "acme")
            await world.create("gateway.forward", "ssh", "acme", vm="a", port=22, address="front")
            await world.create("gateway.balancer", "web", "acme", port=80, members=[{"vm": "a"}, {"vm": "b"}])
            await world.create("gateway.firewall", "fw", "acme", rules=[{"direction": "egress", "action": "drop"}])
            await world.create("gateway.vpn", "in", "acme", mode="remote-access", range="10.99.0.0/24")
            for kind, name in (("forward", "ssh"), ("balancer", "web"), ("firewall", "fw"), ("vpn", "in")):
                await ready(world, f"gateway.{kind}", name)
            await world.delete("tenancy.account", "acme")

            async def gone() -> bool:
                return not await world.exists("tenancy.account", "acme")

            await world.until(gone, limit_s=600.0)
            left = await world.store.fetch(
                sa.text("SELECT space, value, owner FROM claim WHERE space NOT LIKE 'name/%'")
            )
            zone = (await world.get("infra.zone", "local"))["id"]
            assert [row for row in left if zone in row[0] or account["id"] in row[0]] == []
            assert await leftovers(world) == {}

    run(main)


def test_an_appliance_is_no_target() -> None:
    async def main() -> None:
        async with town("web") as world:
            (appliance,) = [vm for vm in await world.list("compute.vm", owned=True) if vm["desired"]["appliance"]]
            for kind, wish in (
                ("forward", {"vm": appliance["name"]}),
                ("balancer", {"members": [{"vm": appliance["name"]}]}),
            ):
                error = await refused(world, kind, port=22, **wish)
                assert isinstance(error, Invalid)
                assert "has no NIC" in error.message

    run(main)


def test_a_network_does_not_take_the_range_of_a_vpn() -> None:
    async def main() -> None:
        async with town("web") as world:
            await world.create("gateway.vpn", "road", "acme", mode="remote-access", range="10.9.0.0/24")
            with pytest.raises(Conflict) as caught:
                await world.create("network.network", "second", "acme", range="10.9.0.128/25")
            assert caught.value.code == "overlap"
            assert "10.9.0.0/24 of vpn road" in caught.value.message
            await world.create("network.network", "second", "acme", range="10.10.0.0/24")

    run(main)
