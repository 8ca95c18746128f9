"""Nodes that an account asks for: made of a package, in its network, on its quota; replaced in place; quarantined."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from tests.appliances import System, descriptor
from tests.cloud.world import Cloud, cloud, leftovers
from tests.virtual_time import run

from pileus.kernel.errors import Conflict, Denied, Invalid, QuotaExceeded
from pileus.kernel.kind import Resource
from pileus.kernel.quota import space
from pileus.kernel.store.lists import Filter
from pileus.node.document import document_hash

ACCOUNT, MANAGER = "acme", "firewalls"


async def furnish(world: Cloud, **package: Any) -> None:
    """Make an account that consented to a manager with one package."""
    await world.create("tenancy.account", ACCOUNT)
    await world.create("fleet.manager", MANAGER)
    await world.create("fleet.consent", MANAGER, ACCOUNT, manager=MANAGER, nodes_max=3)
    await add_package(world, "fw-1", "1", "appliance", **package)


PROPERTIES = """<ProductSection ovf:class="app"><Info>App</Info>
<Property ovf:key="zone" ovf:type="string" ovf:userConfigurable="true" ovf:qualifiers="MinLen(1)"/></ProductSection>"""
UEFI = descriptor(
    {"fw.vmdk": 1024}, {"root": ("fw.vmdk", 1 << 30)}, (System(name="fw", disks=("root",), firmware="efi"),)
).decode()


async def add_package(world: Cloud, name: str, version: str, image: str, **fields: Any) -> None:
    wish = {"role": "firewall", "vcpus": 1, "memory_mib": 64, "nics": 1, **fields}
    await world.create("fleet.package", name, manager=MANAGER, version=version, image=image, **wish)


async def add_node(world: Cloud, name: str = "edge", **fields: Any) -> None:
    wish = {"manager": MANAGER, "nics": [{"network": "default"}], **fields}
    await world.create("fleet.node", name, ACCOUNT, **wish)


async def ready(world: Cloud, name: str = "edge") -> Resource:
    await world.until(lambda: world.is_ready("fleet.node", name, ACCOUNT))
    return await world.resource("fleet.node", name, ACCOUNT)


async def vm_of(world: Cloud, node: Resource) -> Resource:
    return await world.store.get(node.assigned.vm)


def document(world: Cloud, node: Resource) -> dict[str, Any]:
    return world.hosts[node.host].guests.documents[node.assigned.vm]


def test_a_node_runs_in_the_accounts_network_and_has_its_document() -> None:
    async def main() -> None:
        async with cloud(2) as world:
            await furnish(world)
            rules = {"rules": {"web": {"port": 80}}}
            await add_node(world, document=rules)
            node = await ready(world)
            vm = await vm_of(world, node)
            assert vm.assigned.vcpus == 1
            assert vm.assigned.memory_mib == 64
            assert vm.observed.addresses[0].startswith("10.1.1.")
            assert document(world, node) == rules
            assert node.observed.hash == document_hash(rules)
            assert [each["name"] for each in await world.list("compute.vm")] == []
            seed = world.hosts[node.host].guests.seeds[vm.id]
            assert seed.role == "firewall"
            assert seed.nics[0].addresses == (f"{vm.observed.addresses[0]}/24",)

            await world.patch("fleet.node", "edge", ACCOUNT, document={"rules": {"ssh": {"port": 22}}})
            assert not await world.is_ready("fleet.node", "edge", ACCOUNT), "it does not run that yet"

            async def has_both() -> bool:
                return set(document(world, node)["rules"]) == {"web", "ssh"}

            await world.until(has_both)
            await world.delete("fleet.node", "edge", ACCOUNT)
            await world.until(lambda: _gone(world, "edge"))
            await world.settle()
            assert await leftovers(world) == {}

    run(main)


async def _gone(world: Cloud, name: str) -> bool:
    return not await world.exists("fleet.node", name, ACCOUNT)


def test_a_wish_that_is_edited_keeps_its_package_and_the_document_that_its_editor_does_not_see() -> None:
    async def main() -> None:
        async with cloud(1) as world:
            await furnish(world)
            rules = {"rules": {"web": {"port": 80}}}
            await add_node(world, document=rules)
            shown = await world.get("fleet.node", "edge", ACCOUNT)
            assert "document" not in shown["desired"]
            shown["desired"]["power"] = "stopped"
            assert shown["desired"].pop("package") == "fw-1"
            await add_package(world, "fw-2", "2", "appliance")
            body = msgspec.json.encode({"name": "edge", "desired": shown["desired"]})
            await world.servers[0].surface.replace(world.call(ACCOUNT), "fleet.node", "edge", body)
            node = await world.resource("fleet.node", "edge", ACCOUNT)
            assert (node.desired.document, node.desired.power) == (rules, "stopped")
            assert node.desired.package == "fw-1"

    run(main)


def test_a_new_package_gives_the_node_another_disk_and_leaves_it_its_address() -> None:
    async def main() -> None:
        async with cloud(2) as world:
            await furnish(world)
            await add_node(world, document={"rules": {"web": {"port": 80}}}, nics=[{"address": "10.1.1.77"}])
            node = await ready(world)
            before = await vm_of(world, node)
            assert before.observed.addresses == ("10.1.1.77",)
            (port,) = before.assigned.ports
            await world.add_image("appliance-2")
            await add_package(world, "fw-2", "2", "appliance-2", memory_mib=96)
            await world.patch("fleet.node", "edge", ACCOUNT, package="fw-2")
            assert not await world.is_ready("fleet.node", "edge", ACCOUNT), "it is not made of that yet"

            async def is_replaced() -> bool:
                vm = await vm_of(world, node)
                is_new = vm.assigned.image != before.assigned.image and vm.observed.power == "running"
                return is_new and await world.is_ready("fleet.node", "edge", ACCOUNT)

            await world.until(is_replaced)
            after = await vm_of(world, node)
            assert after.assigned.ports == (port,)
            assert after.observed.addresses == ("10.1.1.77",)
            assert after.assigned.memory_mib == 96
            assert after.assigned.volumes != before.assigned.volumes
            await world.settle()
            volumes = await world.store.list(Filter(kind="storage.volume", owner=after.id))
            assert [volume.id for volume in volumes] == list(after.assigned.volumes)
            assert document(world, await ready(world)) == {"rules": {"web": {"port": 80}}}

    run(main)


def test_a_node_that_is_stopped_is_stopped_and_starts_again() -> None:
    async def main() -> None:
        async with cloud(1) as world:
            await furnish(world)
            await add_node(world)
            node = await ready(world)
            await world.patch("fleet.node", "edge", ACCOUNT, power="stopped")

            async def is_off() -> bool:
                return bool((await vm_of(world, node)).observed.power == "stopped")

            await world.until(is_off)
            condition = (await world.resource("fleet.node", "edge", ACCOUNT)).ready
            assert condition is not None
            assert condition.reason == "Stopped"
            await world.patch("fleet.node", "edge", ACCOUNT, power="running")
            await ready(world)

            async def is_up() -> bool:
                return bool((await vm_of(world, node)).observed.power == "running")

            await world.until(is_up)

    run(main)


def test_a_hostile_node_is_left_alone_until_it_is_readmitted() -> None:
    async def main() -> None:
        async with cloud(1) as world:
            await furnish(world)
            await add_node(world)
            node = await ready(world)
            guests = world.hosts[node.host].guests
            guests.quarantined[node.assigned.vm] = "it sent 1 GiB of garbage"
            world.running[node.host]._converger.wake(node.id)

            async def is_quarantined() -> bool:
                condition = (await world.resource("fleet.node", "edge", ACCOUNT)).ready
                return condition is not None and condition.reason == "Quarantined"

            await world.until(is_quarantined)
            assert "1 GiB of garbage" in (await world.resource("fleet.node", "edge", ACCOUNT)).assigned.quarantined
            del guests.quarantined[node.assigned.vm]
            await world.settle()
            assert await is_quarantined()
            await world.patch("fleet.node", "edge", ACCOUNT, readmit_serial=1)
            await ready(world)

    run(main)


def test_a_vm_of_the_account_becomes_a_node_by_reference_and_stays_when_the_node_goes() -> None:
    async def main() -> None:
        async with cloud(1) as world:
            await furnish(world)
            agent = {"commands": [{"name": "load", "path": "/usr/sbin/nft", "repeatable": True}],
                     "document": "/etc/fw.json", "apply": "load"}  # fmt: skip
            await world.create(
                "fleet.package", "guests", manager=MANAGER, version="g", channel="qga", guest_agent=agent, nics=0
            )
            await world.create("compute.vm", "web", ACCOUNT)
            await world.until(lambda: world.is_ready("compute.vm", "web", ACCOUNT))
            await world.create("fleet.node", "edge", ACCOUNT, manager=MANAGER, package="guests", vm="web")
            with pytest.raises(Conflict, match="vm web is node edge already"):
                await world.create("fleet.node", "again", ACCOUNT, manager=MANAGER, package="guests", vm="web")
            node = await ready(world)
            web = await world.resource("compute.vm", "web", ACCOUNT)
            assert node.assigned.vm == web.id
            assert web.assigned.channel == "qga"
            await world.delete("fleet.node", "edge", ACCOUNT)
            await world.until(lambda: _gone(world, "edge"))
            web = await world.resource("compute.vm", "web", ACCOUNT)
            assert web.assigned.channel == ""
            assert web.observed.power == "running"

    run(main)


def test_a_foreign_guest_takes_what_its_new_package_allows_and_nothing_of_the_old_one() -> None:
    async def main() -> None:
        async with cloud(1) as world:
            await furnish(world)
            for version in ("a", "b"):
                agent = {"commands": [{"name": f"do-{version}", "path": "/usr/sbin/nft", "repeatable": True}],
                         "document": "/etc/fw.json", "apply": f"do-{version}"}  # fmt: skip
                await world.create(
                    "fleet.package", version, manager=MANAGER, version=version, channel="qga", guest_agent=agent, nics=0
                )
            await world.create("compute.vm", "web", ACCOUNT)
            await world.until(lambda: world.is_ready("compute.vm", "web", ACCOUNT))
            with pytest.raises(Invalid, match="is stopped by itself"):
                await add_node(world, package="a", vm="web", nics=[], power="stopped")
            await add_node(world, package="a", vm="web", nics=[])
            node = await ready(world)
            with pytest.raises(Invalid, match="only channel qga"):
                await world.patch("fleet.node", "edge", ACCOUNT, package="fw-1")
            assert node.vdc == (await vm_of(world, node)).vdc
            await world.patch("fleet.node", "edge", ACCOUNT, package="b")
            await world.settle()
            allowed = world.hosts[node.host].guests.allowed[node.assigned.vm]
            assert allowed is not None
            assert [command.name for command in allowed.commands] == ["do-b"]
            await ready(world)

    run(main)


def test_a_package_of_the_same_image_gives_the_node_its_other_role() -> None:
    async def main() -> None:
        async with cloud(1) as world:
            await furnish(world)
            await add_node(world)
            node = await ready(world)
            await add_package(world, "fw-2", "2", "appliance", role="names")
            await world.patch("fleet.node", "edge", ACCOUNT, package="fw-2")
            seeds = world.hosts[node.host].guests.seeds

            async def is_other() -> bool:
                is_told = seeds[node.assigned.vm].role == "names"
                return is_told and await world.is_ready("fleet.node", "edge", ACCOUNT)

            await world.until(is_other)

    run(main)


def test_a_node_has_no_larger_disk_than_its_account_is_charged() -> None:
    async def main() -> None:
        async with cloud(1) as world:
            await furnish(world)
            await world.add_image("large", 4 * 2**30)
            await add_package(world, "fw-2", "2", "large")
            await add_node(world, package="fw-2")
            node = await ready(world)
            for package, size_gib in (("fw-1", 1), ("fw-2", 4)):
                before = await vm_of(world, node)
                await world.patch("fleet.node", "edge", ACCOUNT, package=package)

                async def is_replaced(before: Resource = before) -> bool:
                    vm = await vm_of(world, node)
                    is_new = vm.assigned.volumes != before.assigned.volumes
                    return bool(is_new and vm.observed.power == "running")

                await world.until(is_replaced)
                await world.settle()
                (disk,) = await world.store.list(Filter(kind="storage.volume", owner=node.assigned.vm))
                _, used = await world.store.write(lambda tx: tx.budget(space(node.vdc, "disk_gib")))
                assert (disk.desired.size_gib, used) == (size_gib, size_gib)

    run(main)


@pytest.mark.parametrize(
    ("nic", "words"),
    [
        ({"address": "10.1.1.255"}, "10.1.1.255"),
        ({"address": "10.1.1.77", "extra_addresses": ["10.1.1.77"]}, "is given twice"),
        ({"network": ""}, "say which network"),
    ],
)
def test_a_node_has_the_addresses_that_a_vm_may_have(nic: dict[str, Any], words: str) -> None:
    async def main() -> None:
        async with cloud(1) as world:
            await furnish(world)
            with pytest.raises(Invalid, match=words):
                await add_node(world, nics=[nic])

    run(main)


def test_where_a_node_runs_is_not_said_by_naming_another_object() -> None:
    async def main() -> None:
        async with cloud(1) as world:
            await furnish(world)
            account = await world.resource("tenancy.account", ACCOUNT)
            with pytest.raises(Invalid, match="apart_from is for the cloud's routers"):
                await add_node(world, apart_from=account.id)

    run(main)


def test_an_account_has_as_many_nodes_of_a_manager_as_its_consent_says_now() -> None:
    async def main() -> None:
        async with cloud(1) as world:
            await furnish(world)
            for number in range(3):
                await add_node(world, f"edge{number}")
            await world.patch("fleet.consent", MANAGER, ACCOUNT, nodes_max=2)
            await world.delete("fleet.node", "edge0", ACCOUNT)
            await world.until(lambda: _gone(world, "edge0"))
            with pytest.raises(QuotaExceeded, match="have 2 nodes, and it has 2"):
                await add_node(world, "edge3")
            for name in ("edge1", "edge2"):
                await world.delete("fleet.node", name, ACCOUNT)
            await world.patch("fleet.consent", MANAGER, ACCOUNT, nodes_max=0)
            await world.settle()
            with pytest.raises(QuotaExceeded, match="have 0 nodes"):
                await add_node(world, "edge3")

    run(main)


def test_what_an_account_did_not_allow_is_refused_before_anything_exists() -> None:
    async def main() -> None:
        async with cloud(1) as world:
            await furnish(world)
            await world.create("fleet.manager", "strangers")
            with pytest.raises(Denied, match="has not consented to manager strangers"):
                await add_node(world, manager="strangers")
            with pytest.raises(Invalid, match="package fw-1 has 1 NICs, 0 were given"):
                await add_node(world, nics=[])
            for number in range(3):
                await add_node(world, f"edge{number}")
            with pytest.raises(QuotaExceeded, match="have 3 nodes, and it has 3"):
                await add_node(world, "edge3")
            vdc = (await world.store.list(Filter(kind="tenancy.vdc")))[0]
            await world.patch("tenancy.vdc", vdc.name, ACCOUNT, quota={"vms": 3})
            await world.delete("fleet.node", "edge0", ACCOUNT)
            await world.until(lambda: _gone(world, "edge0"))
            await world.create("compute.vm", "web", ACCOUNT)
            with pytest.raises(QuotaExceeded, match="uses 3 of 3 vms"):
                await add_node(world, "edge3")

    run(main)


def test_a_package_says_once_and_for_all_what_it_is() -> None:
    async def main() -> None:
        async with cloud(1) as world:
            await furnish(world)
            with pytest.raises(Conflict, match="version 1 of manager firewalls is package fw-1 already"):
                await add_package(world, "other", "1", "appliance")
            with pytest.raises(Invalid, match="cannot be changed"):
                await world.patch("fleet.package", "fw-1", version="3")
            with pytest.raises(Invalid, match="says nothing of what may be done there"):
                await add_package(world, "foreign", "2", "appliance", channel="qga", role="")
            with pytest.raises(Invalid, match="through its first NIC"):
                await add_package(world, "frames", "2", "appliance", channel="nic", nics=0)
            with pytest.raises(Invalid, match="OVF package is refused: descriptor:1"):
                await add_package(world, "torn", "2", "appliance", descriptor="<Envelope")
            with pytest.raises(Invalid, match="starts by uefi, and image appliance is for bios"):
                await add_package(world, "modern", "2", "appliance", descriptor=UEFI)
            agent = {"commands": [{"name": "rm", "path": "rm"}]}
            with pytest.raises(Invalid, match=r"guest_agent"):
                await add_package(world, "bad", "2", "appliance", channel="qga", role="", guest_agent=agent)

    run(main)


def test_a_node_tells_its_guest_the_properties_of_its_package() -> None:
    text = descriptor(
        {"fw.vmdk": 1024}, {"root": ("fw.vmdk", 1 << 30)}, (System(name="fw", disks=("root",), sections=PROPERTIES),)
    ).decode()

    async def main() -> None:
        async with cloud(1) as world:
            await furnish(world)
            with pytest.raises(Invalid, match="package fw-1 has no OVF descriptor, and so no properties"):
                await add_node(world, package="fw-1", properties={"app.zone": "dmz"})
            await add_package(world, "fw-2", "2", "appliance", descriptor=text)
            with pytest.raises(
                Invalid, match=r'do not fit package fw-2: descriptor:\d+: property "app.zone" needs a value'
            ):
                await add_node(world, package="fw-2")
            with pytest.raises(Invalid, match=r'there is no property "app\.zones"'):
                await add_node(world, package="fw-2", properties={"app.zones": "dmz"})
            await add_node(world, package="fw-2", properties={"app.zone": "dmz & more"})
            node = await ready(world)
            told = world.hosts[node.host].guests.seeds[node.assigned.vm].ovf_environment
            assert '<Property oe:key="app.zone" oe:value="dmz &amp; more"/>' in told
            with pytest.raises(Invalid, match="needs a value"):
                await world.patch("fleet.node", "edge", ACCOUNT, properties={"app.zone": None})

    run(main)
