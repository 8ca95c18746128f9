"""Routers: up before the account's first VM, gone some time after the last, on two hosts when a network asks for it."""

from __future__ import annotations

from typing import Any

import pytest

from pileus.fleet.node.controller import NodeController
from pileus.gateway.router.types import RouterAssigned, RouterObserved
from pileus.infra.zone.types import public_space
from pileus.kernel.errors import Conflict
from pileus.kernel.kind import Resource
from pileus.kernel.outcome import Outcome
from pileus.kernel.store.lists import Filter
from pileus.kernel.store.store import Store
from tests.cloud.world import Cloud, cloud, leftovers
from tests.virtual_time import clock, run

PUBLIC: dict[str, Any] = {"router": "single", "router_idle_s": 60, "public_range": "203.0.113.0/29"}


async def _router(world: Cloud, account: str) -> Resource:
    return await world.resource("gateway.router", "router-local", account)


def _is_ready(resource: Resource) -> bool:
    return resource.ready is not None and resource.ready.status == "true"


async def _nodes(world: Cloud, router: Resource) -> list[Resource]:
    return await world.store.list(Filter(kind="fleet.node", owner=router.id))


def _documents(world: Cloud) -> list[dict[str, dict[str, Any]]]:
    return [document for host in world.hosts.values() for document in host.guests.documents.values()]


def test_the_first_vm_starts_after_its_router_serves_the_network() -> None:
    async def main() -> None:
        async with cloud(2, **PUBLIC) as world:
            await world.create("tenancy.account", "acme")
            await world.settle()
            assert (await _router(world, "acme")).observed.state == "idle"
            assert not _documents(world)

            await world.create("compute.vm", "web", "acme")
            await world.until(lambda: world.is_ready("compute.vm", "web", "acme"))
            router = await _router(world, "acme")
            observed: RouterObserved = router.observed
            assert observed.state == "ready"
            (node,) = await _nodes(world, router)
            appliance = await world.store.get(node.assigned.vm)
            web = await world.resource("compute.vm", "web", "acme")
            assert appliance.observed.started_at <= web.observed.started_at
            (document,) = _documents(world)
            (host,) = document["hosts"].values()
            assert host["address"] == web.observed.addresses[0]
            assert host["names"] == ["web"]
            assert document["addresses"]["10.1.1.1"]["link"] == "guest"
            assert document["nat"]["source"]["address"] == router.assigned.public_address

    run(main)


def test_a_router_is_collected_some_time_after_the_last_vm_also_over_a_restart_of_the_server() -> None:
    async def main() -> None:
        async with cloud(2, **PUBLIC) as world:
            await world.create("tenancy.account", "acme")
            await world.create("compute.vm", "web", "acme")
            await world.until(lambda: world.is_ready("compute.vm", "web", "acme"))
            await world.patch("compute.vm", "web", "acme", power="stopped")
            stopped_at = clock()

            async def is_counting() -> bool:
                return bool((await _router(world, "acme")).assigned.idle_since)

            await world.until(is_counting)
            await world.stop_server()
            await world.start_server()

            async def is_idle() -> bool:
                return bool((await _router(world, "acme")).observed.state == "idle" and not _documents(world))

            await world.until(is_idle, limit_s=180)
            assert 60 <= clock() - stopped_at <= 120
            router = await _router(world, "acme")
            assert router.assigned.public_address == ""
            assert await world.store.list(Filter(kind="fleet.node")) == []
            held = await world.store.write(lambda tx: tx.claims(public_space(router.assigned.zone), router.id))
            assert held == []
            (vm,) = await world.list("compute.vm")
            assert vm["name"] == "web"

            # The same VM again: its router comes first, again.
            await world.patch("compute.vm", "web", "acme", power="running")
            await world.until(lambda: world.is_ready("compute.vm", "web", "acme"))
            assert (await _router(world, "acme")).observed.state == "ready"

    run(main)


def test_nothing_is_left_of_a_deleted_account_with_a_router() -> None:
    async def main() -> None:
        async with cloud(2, **PUBLIC) as world:
            await world.create("tenancy.account", "acme")
            await world.create("compute.vm", "web", "acme")
            await world.until(lambda: world.is_ready("compute.vm", "web", "acme"))
            await world.delete("tenancy.account", "acme")

            async def is_gone() -> bool:
                return not await world.exists("tenancy.account", "acme")

            await world.until(is_gone, limit_s=300)
            await world.settle()
            assert await leftovers(world) == {}
            assert await world.store.list(Filter(kind="gateway.router")) == []

    run(main)


def test_a_pair_lies_on_two_hosts_and_both_have_every_address() -> None:
    async def main() -> None:
        async with cloud(3, **{**PUBLIC, "router": "redundant"}) as world:
            await world.create("tenancy.account", "acme")
            await world.create("compute.vm", "web", "acme")
            await world.until(lambda: world.is_ready("compute.vm", "web", "acme"))

            async def are_ready() -> bool:
                return bool((await _router(world, "acme")).observed.state == "ready")

            await world.until(are_ready)
            nodes = await _nodes(world, await _router(world, "acme"))
            assert len({node.host for node in nodes}) == 2
            first, second = _documents(world)
            assert first["redundancy"]["pair"]["peer"] != second["redundancy"]["pair"]["peer"]
            assert first["addresses"] == second["addresses"]
            assert all(entry["shared"] for entry in first["addresses"].values())

    run(main)


def test_routers_go_to_routing_hosts_where_there_are_any() -> None:
    async def main() -> None:
        async with cloud(3, **PUBLIC) as world:
            for host in ("host0", "host1"):
                await world.patch("infra.host", host, roles=["compute", "storage"])
            await world.create("tenancy.account", "acme")
            await world.create("compute.vm", "web", "acme")
            await world.until(lambda: world.is_ready("compute.vm", "web", "acme"))
            (node,) = await _nodes(world, await _router(world, "acme"))
            assert (await world.store.get(node.host)).name == "host2"

    run(main)


def test_no_account_waits_for_the_router_of_another() -> None:
    async def main() -> None:
        async with cloud(4, **{**PUBLIC, "public_range": "203.0.113.0/24"}) as world:
            names = [f"tenant{number}" for number in range(30)]
            for name in names:
                await world.create("tenancy.account", name)
            for name in names:
                await world.create("compute.vm", "web", name)
            for name in names:
                await world.until(lambda name=name: world.is_ready("compute.vm", "web", name))  # type: ignore[misc]
            routers = [(await _router(world, name)).assigned for name in names]
            addresses: list[str] = [each.public_address for each in routers if isinstance(each, RouterAssigned)]
            assert len(set(addresses)) == 30
            assert "" not in addresses
            ports = await world.store.list(Filter(kind="network.port"), limit=1000)
            macs = [port.assigned.mac for port in ports]
            assert len(set(macs)) == len(macs)
            vlans: dict[int, set[str]] = {}
            for port in ports:
                if port.assigned.vlan:
                    vlans.setdefault(port.assigned.vlan, set()).add(port.account)
            assert all(len(accounts) == 1 for accounts in vlans.values())

    run(main)


def test_without_an_appliance_image_the_vm_says_what_to_do() -> None:
    async def main() -> None:
        async with cloud(1, **{**PUBLIC, "router_image": "missing"}) as world:
            await world.create("tenancy.account", "acme")
            await world.create("compute.vm", "web", "acme")
            await world.settle()
            vm = await world.get("compute.vm", "web", "acme")
            assert vm["conditions"][0]["reason"] == "NetworkNotServed"
            assert "pileus image build missing" in vm["conditions"][0]["message"]

    run(main)


def test_a_newer_image_replaces_the_nodes_one_after_the_other() -> None:
    async def main() -> None:
        async with cloud(3, **{**PUBLIC, "router": "redundant"}) as world:
            await world.create("tenancy.account", "acme")
            await world.create("compute.vm", "web", "acme")
            await world.until(lambda: world.is_ready("compute.vm", "web", "acme"))
            await world.add_image("appliance-2")
            wanted = await world.resource("storage.image", "appliance-2")
            await world.patch("infra.zone", "local", router_image="appliance-2")

            async def is_replaced() -> bool:
                nodes = await _nodes(world, await _router(world, "acme"))
                good = [node for node in nodes if node.assigned.footprint.image == wanted.id and _is_ready(node)]
                assert any(_is_ready(node) for node in nodes)
                return len(good) == 2

            await world.until(is_replaced, limit_s=300)

    run(main)


def test_a_router_goes_with_the_last_network_and_nothing_holds_the_vdc() -> None:
    async def main() -> None:
        async with cloud(1, **PUBLIC) as world:
            await world.create("tenancy.account", "acme")
            await world.settle()
            await world.delete("network.network", "default", "acme")

            async def is_gone() -> bool:
                return not await world.store.list(Filter(kind="gateway.router"))

            await world.until(is_gone)
            await world.create("network.network", "other", "acme")
            await world.settle()
            assert (await _router(world, "acme")).observed.state == "idle"
            await world.delete("network.network", "other", "acme")
            await world.until(is_gone)
            await world.delete("tenancy.vdc", "main", "acme")
            await world.until(lambda: _is_missing(world, "tenancy.vdc", "main"))

    run(main)


def test_a_router_that_gets_a_public_nic_goes_on_serving(monkeypatch: pytest.MonkeyPatch) -> None:
    wished: list[dict[str, dict[str, Any]]] = []
    decide = NodeController.reconcile

    async def watched(self: NodeController, resource: Resource, store: Store) -> Outcome:
        wished.append(resource.desired.document)
        return await decide(self, resource, store)

    async def main() -> None:
        async with cloud(1, router="single") as world:
            await world.create("tenancy.account", "acme")
            await world.create("compute.vm", "web", "acme")
            await world.until(lambda: world.is_ready("compute.vm", "web", "acme"))
            monkeypatch.setattr(NodeController, "reconcile", watched)
            await world.patch("infra.zone", "local", public_range="203.0.113.0/29")

            async def has_public_link() -> bool:
                (node,) = await _nodes(world, await _router(world, "acme"))
                return "public" in node.desired.document["links"] and _is_ready(node)

            await world.until(has_public_link)
            assert all(document.get("networks") for document in wished)

    run(main)


def test_a_router_goes_on_while_the_wished_image_is_not_there() -> None:
    async def main() -> None:
        async with cloud(1, **PUBLIC) as world:
            await world.create("tenancy.account", "acme")
            await world.create("compute.vm", "web", "acme")
            await world.until(lambda: world.is_ready("compute.vm", "web", "acme"))
            before = await _nodes(world, await _router(world, "acme"))
            await world.create("storage.image", "appliance-2", sha256="0" * 64)
            for image in ("missing", "appliance-2"):
                await world.patch("infra.zone", "local", router_image=image)
                await world.create("compute.vm", f"with-{image}", "acme")
                await world.until(lambda name=image: world.is_ready("compute.vm", f"with-{name}", "acme"))  # type: ignore[misc]
                router = await _router(world, "acme")
                assert router.observed.state == "ready"
                assert [node.id for node in await _nodes(world, router)] == [node.id for node in before]
                (document,) = _documents(world)
                assert f"with-{image}" in {name for host in document["hosts"].values() for name in host["names"]}

    run(main)


async def _is_missing(world: Cloud, kind: str, name: str) -> bool:
    return not await world.exists(kind, name, "acme")


def test_a_pair_lies_on_two_hosts_also_when_one_is_much_larger() -> None:
    async def main() -> None:
        async with cloud(1, **{**PUBLIC, "router": "redundant"}) as world:
            await world.add_host("large", cpus=128, memory_mib=1_000_000)
            await world.settle()
            await world.create("tenancy.account", "acme")
            await world.create("compute.vm", "web", "acme")
            await world.until(lambda: world.is_ready("compute.vm", "web", "acme"))

            async def is_ready() -> bool:
                return bool((await _router(world, "acme")).observed.state == "ready")

            await world.until(is_ready)
            nodes = await _nodes(world, await _router(world, "acme"))
            assert len({node.host for node in nodes}) == 2

    run(main)


def test_a_vm_says_that_no_public_address_is_left_and_starts_when_one_is() -> None:
    async def main() -> None:
        async with cloud(2, **{**PUBLIC, "public_range": "203.0.113.0/30"}) as world:
            for account in ("acme", "umbrella"):
                await world.create("tenancy.account", account)
            await world.create("compute.vm", "web", "acme")
            await world.until(lambda: world.is_ready("compute.vm", "web", "acme"))
            await world.create("compute.vm", "web", "umbrella")

            async def says_so() -> bool:
                (ready, *_) = (await world.get("compute.vm", "web", "umbrella"))["conditions"]
                return "no public address is left" in ready["message"]

            await world.until(says_so)
            assert (await world.get("gateway.router", "router-local", "umbrella"))["conditions"][0]["reason"] == (
                "NoPublicAddress"
            )
            await world.delete("compute.vm", "web", "acme")
            await world.until(lambda: world.is_ready("compute.vm", "web", "umbrella"), limit_s=300)

    run(main)


def test_single_routers_of_a_zone_are_renewed_a_few_at_a_time() -> None:
    async def main() -> None:
        async with cloud(3, **{**PUBLIC, "public_range": "203.0.113.0/27"}) as world:
            names = [f"tenant{number}" for number in range(8)]
            for name in names:
                await world.create("tenancy.account", name)
                await world.create("compute.vm", "web", name)
            for name in names:
                await world.until(lambda name=name: world.is_ready("compute.vm", "web", name))  # type: ignore[misc]
            await world.add_image("appliance-2")
            wanted = await world.resource("storage.image", "appliance-2")
            await world.patch("infra.zone", "local", router_image="appliance-2")
            most = 0

            async def are_renewed() -> bool:
                nonlocal most
                nodes = await world.store.list(Filter(kind="fleet.node"), limit=100)
                good = [node for node in nodes if _is_ready(node) and not node.deleting]
                most = max(most, len(names) - len(good))
                return len(good) == len(names) and all(node.assigned.footprint.image == wanted.id for node in good)

            await world.until(are_renewed, limit_s=600)
            assert most <= 3

    run(main)


def test_a_network_does_not_take_the_zones_public_range() -> None:
    async def main() -> None:
        async with cloud(1, **{**PUBLIC, "public_range": "10.64.0.0/24"}) as world:
            await world.create("tenancy.account", "acme")
            with pytest.raises(Conflict, match=r"overlaps the zone's public range 10\.64\.0\.0/24"):
                await world.create("network.network", "inside", "acme", range="10.64.0.128/25")

    run(main)


def test_a_pair_with_a_silent_host_is_degraded_and_a_new_rule_is_in_force_on_the_other() -> None:
    async def main() -> None:
        async with cloud(3, **{**PUBLIC, "router": "redundant"}) as world:
            await world.create("tenancy.account", "acme")
            await world.create("compute.vm", "web", "acme")
            await world.until(lambda: world.is_ready("compute.vm", "web", "acme"))

            async def is_ready() -> bool:
                return bool((await _router(world, "acme")).observed.state == "ready")

            await world.until(is_ready)
            web = await world.resource("compute.vm", "web", "acme")
            nodes = await _nodes(world, await _router(world, "acme"))
            silent = next(node.host for node in nodes if node.host != web.host)
            await world.stop_agent(silent)

            async def is_degraded() -> bool:
                return bool((await _router(world, "acme")).observed.state == "degraded")

            await world.until(is_degraded)
            await world.create("gateway.forward", "http", "acme", port=80, vm="web")
            await world.until(lambda: world.is_ready("gateway.forward", "http", "acme"), limit_s=20)
            await world.start_agent(silent)
            await world.until(is_ready)

    run(main)
