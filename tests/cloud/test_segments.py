"""Networks across hosts: VLANs are joined where they have ports, to the right hosts, and let go with the last."""

from __future__ import annotations

from typing import Any

from pileus.drivers.host.ovs.base import SegmentSpec, Uplinks
from pileus.infra.zone.types import vlan_space
from pileus.kernel.store import statements as sql
from pileus.kernel.store.lists import Filter
from pileus.lab.simulated import SimulatedHost
from tests.cloud.world import Cloud, cloud
from tests.virtual_time import clock, run


def uplinks(address: str, *, trunk: bool = True) -> Uplinks:
    """Return the uplinks of a host with this tunnel address."""
    return Uplinks(
        trunk="trunk0" if trunk else "", tunnel="tunnel0", tunnel_address=f"{address}/24", tunnel_gateway="10.9.9.1"
    )


async def add_host(world: Cloud, name: str, pod: str, links: Uplinks) -> str:
    """Make a host of a pod, with its agent."""
    id = (await world.create("infra.host", name, pod=pod))["id"]
    world.hosts[id] = SimulatedHost(clock, seed=world.seed, uplinks=links)
    await world.start_agent(id)
    return str(id)


async def build(world: Cloud) -> dict[str, str]:
    """Make a second pod, and hosts with uplinks; return the hosts' ids by name."""
    await world.create("infra.pod", "other")
    ids = {
        "a1": await add_host(world, "a1", "local", uplinks("10.0.1.11")),
        "a2": await add_host(world, "a2", "local", uplinks("10.0.1.12")),
        "b1": await add_host(world, "b1", "other", uplinks("10.0.2.11")),
    }
    await world.patch("infra.host", "host0", scheduling="cordoned")
    await world.create("tenancy.account", "acme")
    await world.settle()
    return ids


async def run_on(world: Cloud, vm: str, host: str, account: str = "acme") -> None:
    """Run a VM of an account on a host."""
    for name in ("a1", "a2", "b1"):
        await world.patch("infra.host", name, scheduling="enabled" if name == host else "cordoned")
    await world.settle()
    await world.create("compute.vm", vm, account)
    await world.until(lambda: world.is_ready("compute.vm", vm, account))
    assert (await world.get("compute.vm", vm, account))["assigned"]["host"] == (
        (await world.get("infra.host", host))["id"]
    )


def joined(world: Cloud, ids: dict[str, str]) -> dict[str, dict[int, SegmentSpec]]:
    """Return what the switches have joined."""
    return {name: dict(world.hosts[id].switch.segments) for name, id in ids.items()}


def peers(world: Cloud, ids: dict[str, str]) -> dict[str, dict[int, tuple[str, ...]]]:
    """Return the tunnel ends of every VLAN on every host."""
    return {
        name: {vlan: spec.peers for vlan, spec in specs.items()} for name, specs in joined(world, ids).items() if specs
    }


async def vlan_of(world: Cloud, account: str) -> int:
    """Return the account's VLAN ID."""
    ports = await world.store.list(
        Filter(kind="network.port", account_id=(await world.get("tenancy.account", account))["id"])
    )
    return int(ports[0].assigned.vlan)


def test_a_vlan_is_joined_where_it_has_ports_and_left_with_the_last() -> None:
    async def main() -> None:
        async with cloud() as world:
            ids = await build(world)
            await run_on(world, "v1", "a1")
            vlan = await vlan_of(world, "acme")
            assert peers(world, ids) == {"a1": {vlan: ()}}
            await run_on(world, "v2", "a2")
            assert peers(world, ids) == {"a1": {vlan: ()}, "a2": {vlan: ()}}
            assert all(specs[vlan].trunk for specs in joined(world, ids).values() if specs)
            await run_on(world, "v3", "b1")
            await world.settle()
            across = {
                "a1": {vlan: ("10.0.2.11",)},
                "a2": {vlan: ("10.0.2.11",)},
                "b1": {vlan: ("10.0.1.11", "10.0.1.12")},
            }
            assert peers(world, ids) == across
            assert len({specs[vlan].vni for specs in joined(world, ids).values()}) == 1
            await run_on(world, "v4", "b1")
            await world.delete("compute.vm", "v3", "acme")
            await world.settle()
            assert peers(world, ids) == across, "a port of it is left there"
            await world.delete("compute.vm", "v1", "acme")
            await world.settle()
            assert peers(world, ids) == {"a2": {vlan: ("10.0.2.11",)}, "b1": {vlan: ("10.0.1.12",)}}
            await world.delete("compute.vm", "v2", "acme")
            await world.delete("compute.vm", "v4", "acme")
            await world.settle()
            assert peers(world, ids) == {}
            assert await world.store.list(Filter(kind="network.segment")) == []
            zone = (await world.get("infra.zone", "local"))["id"]
            assert (await world.store.fetch(sql.CLAIM_OWNER, space=vlan_space(zone), value=str(vlan))) == []

    run(main)


def test_a_zone_of_tunnels_joins_everything_by_them() -> None:
    async def main() -> None:
        async with cloud(isolation="vxlan") as world:
            ids = await build(world)
            for number, host in enumerate(("a1", "a2", "b1")):
                await run_on(world, f"v{number}", host)
            await world.settle()
            found = [spec for specs in joined(world, ids).values() for spec in specs.values()]
            assert [(spec.trunk, spec.peers) for spec in found] == [
                (False, ("10.0.1.12", "10.0.2.11")),
                (False, ("10.0.1.11", "10.0.2.11")),
                (False, ("10.0.1.11", "10.0.1.12")),
            ]

    run(main)


def test_accounts_do_not_share_segments_and_each_goes_with_its_account() -> None:
    async def main() -> None:
        async with cloud() as world:
            ids = await build(world)
            await world.create("tenancy.account", "globex")
            for account in ("acme", "globex"):
                await run_on(world, "v1", "a1", account)
                await run_on(world, "v2", "b1", account)
            acme, globex = await vlan_of(world, "acme"), await vlan_of(world, "globex")
            assert {name: set(each) for name, each in joined(world, ids).items() if each} == {
                "a1": {acme, globex},
                "b1": {acme, globex},
            }
            vnis = {spec.vni for specs in joined(world, ids).values() for spec in specs.values()}
            assert len(vnis) == 2
            await world.delete("tenancy.account", "acme")
            await world.settle()
            assert not await world.exists("tenancy.account", "acme")
            assert {name: set(each) for name, each in joined(world, ids).items() if each} == {
                "a1": {globex},
                "b1": {globex},
            }

    run(main)


def test_a_host_that_moves_in_the_underlay_is_met_at_its_new_address() -> None:
    async def main() -> None:
        async with cloud() as world:
            ids = await build(world)
            await run_on(world, "v1", "a1")
            await run_on(world, "v2", "b1")
            vlan = await vlan_of(world, "acme")
            await world.stop_agent(ids["b1"])
            world.hosts[ids["b1"]]._uplinks = uplinks("10.0.2.99")
            await world.start_agent(ids["b1"])
            await world.until(lambda: met(world, ids, vlan, "10.0.2.99"))
            await world.patch("infra.zone", "local", isolation="vxlan")
            await world.settle()
            assert not any(spec.trunk for specs in joined(world, ids).values() for spec in specs.values())

    run(main)


async def met(world: Cloud, ids: dict[str, str], vlan: int, address: str) -> bool:
    """Tell whether a1 reaches the address."""
    return joined(world, ids)["a1"][vlan].peers == (address,)


def test_hosts_that_get_uplinks_later_join_what_they_have() -> None:
    async def main() -> None:
        async with cloud() as world:
            await world.create("tenancy.account", "acme")
            await world.create("compute.vm", "v1", "acme")
            await world.until(lambda: world.is_ready("compute.vm", "v1", "acme"))
            assert await world.list("network.segment") == []
            (host,) = world.hosts
            await world.stop_agent(host)
            world.hosts[host]._uplinks = uplinks("10.0.1.5")
            await world.start_agent(host)
            await world.until(lambda: one_joined(world))

    run(main)


async def one_joined(world: Cloud) -> bool:
    """Tell whether there is one segment, and it is ready."""
    found = await world.list("network.segment")
    return [each["conditions"][0]["status"] for each in found] == ["true"]


def test_zones_never_share_a_tunnel_number() -> None:
    async def main() -> None:
        async with cloud() as world:
            await world.create("infra.zone", "west")
            await world.create("infra.pod", "west", zone="west")
            await add_host(world, "w1", "west", uplinks("10.0.3.11"))
            await add_host(world, "a1", "local", uplinks("10.0.1.11"))
            await world.patch("infra.host", "host0", scheduling="cordoned")
            await world.settle()
            for zone in ("local", "west"):
                account = f"acme-{zone}"
                await world.create("tenancy.account", account)
                if not await world.exists("tenancy.vdc", "main", account):
                    await world.create("tenancy.vdc", "main", account, zone=zone)
                    await world.create("network.network", "default", account)
                await world.create("compute.vm", "v", account)
                await world.settle()
                condition = (await world.get("compute.vm", "v", account))["conditions"][0]
                assert condition["status"] == "true", condition
            found: list[dict[str, Any]] = [each["assigned"] for each in await world.list("network.segment")]
            assert len({each["vlan"] for each in found}) == 1
            assert len({each["vni"] for each in found}) == 2
            assert [each["peers"] for each in found] == [[], []]

    run(main)


def test_a_vm_starts_once_its_vlan_is_joined_and_also_when_it_cannot_be() -> None:
    async def main() -> None:
        async with cloud() as world:
            ids = await build(world)
            switch = world.hosts[ids["a1"]].switch
            switch.latencies_s = {**switch.latencies_s, "join": 5.0}
            for name in ("a2", "b1"):
                await world.patch("infra.host", name, scheduling="cordoned")
            await world.settle()
            began = clock()
            await world.create("compute.vm", "v1", "acme")
            await world.until(lambda: world.is_ready("compute.vm", "v1", "acme"))
            assert clock() - began > 5.0
            broken = world.hosts[ids["a2"]].switch
            broken.missing.add("trunk0")
            await run_on(world, "v2", "a2")
            segments = {each["name"]: each["conditions"][0] for each in await world.list("network.segment")}
            condition = segments[f"a2-vlan{await vlan_of(world, 'acme')}"]
            assert (condition["status"], condition["reason"]) == ("false", "UplinkMissing")
            await world.delete("compute.vm", "v2", "acme")
            await world.settle()
            assert broken.segments == {}

    run(main)


def test_tenants_see_no_segments() -> None:
    async def main() -> None:
        async with cloud() as world:
            await build(world)
            await run_on(world, "v1", "a1")
            assert [each["account"] for each in await world.list("network.segment")] == [""]

    run(main)
