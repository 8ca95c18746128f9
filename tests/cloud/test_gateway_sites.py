"""VPNs and links: keys that nobody sees, ranges that do not meet, tunnels that fit each other on both sides."""

from __future__ import annotations

import base64
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from pileus.kernel.errors import Conflict, Rejected
from tests.cloud.world import Cloud, cloud
from tests.virtual_time import clock, run

Json = dict[str, Any]

ZONE: Json = {"router": "single", "router_idle_s": 600}
KEYS = [base64.b64encode(bytes([number]) * 32).decode() for number in range(5)]


@contextlib.asynccontextmanager
async def two_zones(east: Json, west: Json) -> AsyncIterator[Cloud]:
    """Give a cloud of the zones local and west with a host each, and acme's networks ``east`` and ``west`` in them."""
    async with cloud(1, **ZONE, public_range="203.0.113.0/28") as world:
        await world.create("tenancy.account", "acme")
        await world.create("infra.zone", "west", **ZONE, public_range="198.51.100.0/28")
        await world.create("infra.pod", "west", zone="west")
        await world.create("infra.host", "west", pod="west")
        await world.adopt_host("west")
        await world.create("tenancy.vdc", "west", "acme", zone="west")
        await world.create("network.network", "east", "acme", vdc="main", **east)
        await world.create("network.network", "west", "acme", vdc="west", **west)
        yield world


async def populate(world: Cloud) -> None:
    """Start a VM in each zone, so that both routers come up."""
    for name, vdc in (("east", "main"), ("west", "west")):
        await world.create("compute.vm", name, "acme", vdc=vdc, nics=[{"network": name}])
    for name in ("east", "west"):
        await ready(world, "compute.vm", name)


async def ready(world: Cloud, kind: str, name: str) -> Json:
    await world.until(lambda: world.is_ready(kind, name, "acme"))
    return await world.get(kind, name, "acme")


async def refused(world: Cloud, kind: str, **desired: Any) -> Rejected:
    with pytest.raises(Rejected) as caught:
        await world.create(f"gateway.{kind}", "x", "acme", **desired)
    return caught.value


def documents(world: Cloud) -> list[Json]:
    """Return what the appliances run, that of zone local first."""
    found = [document for host in world.hosts.values() for document in host.guests.documents.values()]
    return sorted(found, key=lambda each: "198.51.100" in json.dumps(each["nat"]))


def only(document: Json, section: str) -> Json:
    (entry,) = document.get(section, {"": {}}).values()
    return dict(entry)


def test_clients_of_a_vpn_keep_their_addresses_and_nobody_sees_the_private_key() -> None:
    async def main() -> None:
        async with two_zones({"range": "10.2.0.0/24"}, {"range": "10.3.0.0/24"}) as world:
            clients = [{"name": name, "public_key": key} for name, key in zip("abc", KEYS, strict=False)]
            made = await world.create(
                "gateway.vpn", "in", "acme", mode="remote-access", vdc="main", range="10.99.0.0/29", clients=clients
            )
            assert made["assigned"] is None
            await populate(world)
            found = await ready(world, "gateway.vpn", "in")
            tunnel = only(documents(world)[0], "tunnels")
            assert tunnel["private_key"] not in json.dumps(found)
            assert tunnel["address"] == "10.99.0.1/29"
            assert [each["allowed"] for each in tunnel["peers"].values()] == [[f"10.99.0.{n}/32"] for n in (2, 3, 4)]
            observed = found["observed"]
            assert observed["endpoint"] == "203.0.113.2:51820"
            assert "10.2.0.0/24" in observed["allowed"]
            assert "10.3.0.0/24" not in observed["allowed"]

            await world.patch("gateway.vpn", "in", "acme", clients=[clients[0], clients[2], _client("d", 3)])
            await ready(world, "gateway.vpn", "in")
            tunnel = only(documents(world)[0], "tunnels")
            assert [each["allowed"] for each in tunnel["peers"].values()] == [[f"10.99.0.{n}/32"] for n in (2, 4, 3)]
            many = [{"name": f"c{n}", "public_key": base64.b64encode(bytes([n]) * 32).decode()} for n in range(6)]
            with pytest.raises(Rejected, match="has too few addresses for 6 clients and the router"):
                await world.patch("gateway.vpn", "in", "acme", clients=many)

    run(main)


def _client(name: str, number: int) -> Json:
    return {"name": name, "public_key": KEYS[number]}


def test_bad_vpns_are_refused() -> None:
    async def main() -> None:
        async with two_zones({"range": "10.2.0.0/24"}, {"range": "10.2.0.0/25"}) as world:
            remote = {"mode": "remote-access", "vdc": "main"}
            site = {"mode": "site", "vdc": "main"}
            outside = {"public_key": KEYS[0], "ranges": ["10.8.0.0/16"], "endpoint": "192.0.2.1:51820"}
            await world.create("gateway.vpn", "far", "acme", mode="site", vdc="west")
            await world.create("gateway.vpn", "near", "acme", mode="site", vdc="main", outside=outside)
            await world.create("gateway.vpn", "pop", "acme", mode="remote-access", vdc="main", range="10.97.0.0/24")
            for desired, field, said in (
                (remote, "range", "needs a range for its clients"),
                (remote | {"range": "10.2.0.128/25"}, "range", "10.2.0.128/25 overlaps 10.2.0.0/24 of network east"),
                (remote | {"range": "10.97.0.0/25"}, "range", "overlaps 10.97.0.0/24 of vpn pop"),
                (remote | {"range": "10.8.1.0/24"}, "range", "overlaps 10.8.0.0/16 of vpn near"),
                (remote | {"range": "10.9.0.0"}, "range", "has no prefix length"),
                (remote | {"range": "10.9.0.0/24", "peer": "far"}, "peer", "a remote-access VPN has clients"),
                (
                    remote | {"range": "10.9.0.0/24", "clients": [_client("a", 0), _client("a", 1)]},
                    "clients[1].name",
                    "there are two clients 'a'",
                ),
                (
                    remote | {"range": "10.9.0.0/24", "clients": [_client("a", 0), _client("b", 0)]},
                    "clients[1].public_key",
                    "b has the same key as a",
                ),
                (
                    remote | {"range": "10.9.0.0/24", "clients": [{"name": "a", "public_key": "no"}]},
                    "clients[0].public_key",
                    "`wg pubkey` prints one",
                ),
                (site | {"range": "10.9.0.0/24"}, "range", "no range"),
                (site | {"peer": "near"}, "peer", "vpn near joins no zones"),
                (site | {"peer": "far"}, "peer", "network east (10.2.0.0/24) overlaps network west (10.2.0.0/25)"),
                (site | {"peer": "no"}, "peer", "there is no vpn 'no'"),
                (site | {"outside": outside | {"endpoint": "here:1"}}, "outside.endpoint", "is not an endpoint"),
                (site | {"outside": outside | {"ranges": ["10.2.0.0/16"]}}, "outside.ranges", "network east"),
                (site | {"outside": outside | {"ranges": []}}, "outside.ranges", "say what is reached"),
                (site | {"outside": {"ranges": ["10.3.0.0/16"]}}, "outside.public_key", "no WireGuard public key"),
                (site | {"vdc": "west", "peer": "far"}, "peer", "is in the same zone, zone west"),
            ):
                answer = await refused(world, "vpn", **desired)
                assert answer.field == f"desired.{field}", (desired, answer.message)
                assert said in answer.message

    run(main)


def test_two_tunnels_of_a_router_never_have_the_same_port() -> None:
    async def main() -> None:
        async with two_zones({"range": "10.2.0.0/24"}, {"range": "10.3.0.0/24"}) as world:
            await world.create("gateway.vpn", "first", "acme", mode="site", vdc="main", port=4000)
            answer = await refused(world, "vpn", mode="site", vdc="main", port=4000)
            assert answer.message.startswith("udp port 4000 of the router is used by vpn first")
            answer = await refused(world, "vpn", mode="site", vdc="main", port=53)
            assert answer.message == "udp port 53 is the router's own; choose another"

    run(main)


@pytest.mark.parametrize("naming", ["east", "west", "both"])
def test_one_side_that_names_the_other_joins_two_zones(naming: str) -> None:
    async def main() -> None:
        async with two_zones({"range": "10.2.0.0/24"}, {"range": "10.3.0.0/24"}) as world:
            await world.delete("network.network", "default", "acme")
            await populate(world)
            await world.create("gateway.vpn", "east", "acme", mode="site", vdc="main")
            await world.settle()
            alone = await world.get("gateway.vpn", "east", "acme")
            assert alone["conditions"][0]["reason"] == "NoPeer"
            peer = {"peer": "east"} if naming != "east" else {}
            await world.create("gateway.vpn", "west", "acme", mode="site", vdc="west", **peer)
            if naming != "west":
                await world.patch("gateway.vpn", "east", "acme", peer="west")
            begun = clock()
            east, west = [await ready(world, "gateway.vpn", name) for name in ("east", "west")]
            await world.settle()
            assert clock() - begun < 5.0
            here, there = [only(document, "tunnels") for document in documents(world)]
            for tunnel, own, other in ((here, east, west), (there, west, east)):
                ((key, entry),) = tunnel["peers"].items()
                assert key == other["observed"]["public_key"] != own["observed"]["public_key"]
                assert entry["allowed"] == other["observed"]["allowed"] == own["observed"]["remotes"]
                assert entry["endpoint"] == other["observed"]["endpoint"]
                assert tunnel["address"] == ""
            assert east["observed"]["allowed"] == ["10.2.0.0/24"]

            # A network that comes later is reached too.
            await world.create("network.network", "late", "acme", vdc="west", range="10.4.0.0/24")

            async def reached() -> bool:
                ((_, entry),) = only(documents(world)[0], "tunnels")["peers"].items()
                return bool(entry["allowed"] == ["10.3.0.0/24", "10.4.0.0/24"])

            await world.until(reached)
            again = {"vdc": "west", "peer": "east"} if naming == "west" else {"vdc": "main", "peer": "west"}
            with pytest.raises(Conflict, match="joins the two zones already"):
                await world.create("gateway.vpn", "more", "acme", mode="site", **again)

    run(main)


STRETCHED: tuple[Json, Json] = (
    {"range": "10.5.0.0/24", "first": "10.5.0.10", "last": "10.5.0.99"},
    {"range": "10.5.0.0/24", "gateway": "10.5.0.2", "first": "10.5.0.100", "last": "10.5.0.199"},
)


def test_a_link_stretches_a_network_and_each_router_speaks_for_the_other_sides_guests() -> None:
    async def main() -> None:
        async with two_zones(*STRETCHED) as world:
            await populate(world)
            made = await world.create("gateway.link", "lan", "acme", network="east", peer_network="west")
            assert made["assigned"] is None
            await ready(world, "gateway.link", "lan")
            here, there = documents(world)
            near, far = only(here, "stretches"), only(there, "stretches")
            assert (near["local"], near["remote"]) == (far["remote"], far["local"]) == ("169.254.64.1", "169.254.64.2")
            assert near["vni"] == far["vni"]
            assert near["range"] == far["range"] == "10.5.0.0/24"
            assert (near["network"], far["network"]) == (
                (await world.get("network.network", "east", "acme"))["id"],
                (await world.get("network.network", "west", "acme"))["id"],
            )
            ((_, peer),) = only(here, "tunnels")["peers"].items()
            assert peer == {"allowed": ["169.254.64.2/32"], "endpoint": "198.51.100.2:51820", "keepalive_s": 25}

            async def spoken_for() -> bool:
                ports = await world.list("network.port")
                stations = {each["mac"] for port in ports for each in port["desired"].get("stations", [])}
                guests = {port["assigned"]["mac"] for port in ports if port["assigned"]["network"]}
                return stations == guests and len(guests) == 2

            await world.until(spoken_for)
            answer = await refused(world, "link", network="east", peer_network="west")
            assert answer.message == "network east is stretched already, by link lan"
            with pytest.raises(Conflict, match="network west is used by "):
                await world.delete("network.network", "west", "acme")
            await world.delete("gateway.link", "lan", "acme")

            async def gone() -> bool:
                left = any(document.get("stretches") or document.get("tunnels") for document in documents(world))
                return not left and not await world.exists("gateway.link", "lan", "acme")

            await world.until(gone)

    run(main)


@pytest.mark.parametrize(
    ("west", "said"),
    [
        ({"range": "10.5.0.0/25"}, "east has 10.5.0.0/24, network west has 10.5.0.0/25"),
        ({"range": "10.5.0.0/24"}, "have the same gateway, 10.5.0.1"),
        ({"range": "10.5.0.0/24", "gateway": "10.5.0.2"}, "give out the same addresses, 10.5.0.10 to 10.5.0.99 and "),
        (
            {"range": "10.5.0.0/24", "gateway": "10.5.0.50", "first": "10.5.0.100"},
            "gives out 10.5.0.50, which is the gateway of network west",
        ),
        ({"range": "10.5.0.0/24", "router": "none"}, "network west has no router, which a link needs"),
    ],
)
def test_networks_that_cannot_be_one_are_not_linked(west: Json, said: str) -> None:
    async def main() -> None:
        async with two_zones(STRETCHED[0], west) as world:
            answer = await refused(world, "link", network="east", peer_network="west")
            assert said in answer.message
            answer = await refused(world, "link", network="east", peer_network="default")
            assert "are in the same zone" in answer.message

    run(main)
