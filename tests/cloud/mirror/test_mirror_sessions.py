"""Sessions: packets find their way over three hosts, whatever dies or moves, and nothing is left of them afterwards."""

from __future__ import annotations

import msgspec
import pytest
from msgspec.structs import replace
from tests.cloud.mirror.mirror_world import IDLE_S, MirrorCloud, leftovers, mirror_cloud
from tests.virtual_time import run

from pileus.drivers.host.mirror.base import SourceSpec
from pileus.kernel.access import Principal, Rule
from pileus.kernel.errors import Conflict, Denied, Invalid, Rejected
from pileus.kernel.transaction import Transaction
from pileus.node.mirror.wire import Arrived, parse

WEB = bytes.fromhex("0250000000020250000000010800450000281234400040060000") + bytes([10, 1, 1, 11, 10, 1, 1, 10])
TO_443 = WEB + (40000).to_bytes(2, "big") + (443).to_bytes(2, "big") + bytes(16)
TO_80 = WEB + (40000).to_bytes(2, "big") + (80).to_bytes(2, "big") + bytes(16)


def is_lost(packet: bytes) -> bool:
    """Tell whether the third or fourth packet of a session gets lost."""
    arrived = parse(packet)
    return isinstance(arrived, Arrived) and arrived.header.sequence in (2, 3)


async def watched(made: MirrorCloud) -> tuple[str, str]:
    """Run a VM that is watched and one that watches, apart; return the ports."""
    web = await made.vm("web", "a1")
    watcher = await made.vm("watcher", "b1")
    await made.world.create("mirror.sniffer", "probe", "acme", vm="watcher")
    return web, watcher


def test_packets_go_over_three_hosts_to_the_sniffer_and_are_counted() -> None:
    async def scene() -> None:
        async with mirror_cloud() as made:
            web, watcher = await watched(made)
            await made.only("a2")
            await made.session("tap", vm="web", sniffer="probe", expression="tcp port 443")
            host = made.host_of(web)
            for number in range(20):
                host.mirror.pass_frame(web, TO_443 + bytes([number]), "ingress")
                host.mirror.pass_frame(web, TO_80, "ingress")
            assert made.host_of(watcher).mirror.delivered[watcher] == [TO_443 + bytes([n]) for n in range(20)]

            async def counted() -> bool:
                counts = await made.counts("tap")
                return counts["delivered"] == 20 and counts["received"] == 20

            await made.world.until(counted)
            counts = await made.counts("tap")
            assert (counts["seen"], counts["matched"], counts["sent"]) == (40, 20, 20)
            assert (counts["lost"], counts["dropped"], counts["forwarded"]) == (0, 0, 20)

    run(scene)


def test_a_deleted_session_leaves_nothing_on_any_host() -> None:
    async def scene() -> None:
        async with mirror_cloud() as made:
            await watched(made)
            await made.session("tap", vm="web", sniffer="probe")
            assert len(made.legs()) == 3
            await made.world.delete("mirror.session", "tap", "acme")
            await made.world.until(made.is_tidy, IDLE_S + 60.0)
            await made.world.delete("mirror.sniffer", "probe", "acme")
            await made.world.settle()
            for vm in ("web", "watcher"):
                await made.world.delete("compute.vm", vm, "acme")
            await made.world.settle()
            assert await leftovers(made.world) == {}

    run(scene)


def test_a_session_ends_when_its_time_is_over_and_keeps_its_counts() -> None:
    async def scene() -> None:
        async with mirror_cloud() as made:
            web = await made.vm("web", "a1")
            await made.only("a2")
            made.tunnel.lose = is_lost
            await made.session("tap", vm="web", duration_s=30)
            for number in range(10):
                made.host_of(web).mirror.pass_frame(web, TO_443 + bytes([number]), "egress")

            async def ended() -> bool:
                return bool((await made.world.get("mirror.session", "tap", "acme"))["observed"]["state"] == "ended")

            await made.world.until(ended, 90.0)
            counts = await made.counts("tap")
            assert (counts["sent"], counts["received"], counts["lost"]) == (10, 8, 2)
            await made.world.until(made.is_tidy, IDLE_S + 60.0)
            assert await made.counts("tap") == counts

    run(scene)


def test_a_second_decapsulator_takes_over_within_five_seconds() -> None:
    async def scene() -> None:
        async with mirror_cloud(decapsulators=2) as made:
            web, watcher = await watched(made)
            await made.session("tap", vm="web", sniffer="probe")

            async def both() -> bool:
                found = await made.world.list("mirror.decapsulator")
                return [each["observed"] and each["observed"]["state"] for each in found] == ["ready", "ready"]

            await made.world.until(both)
            session = await made.world.resource("mirror.session", "tap", "acme")
            node = await made.world.store.get(session.assigned.node)
            before = session.assigned.key
            made.world.hosts[node.host].machines.crash(node.assigned.vm)

            async def elsewhere() -> bool:
                now = await made.world.resource("mirror.session", "tap", "acme")
                return now.assigned.key != before and await made.runs("tap")

            await made.world.until(elsewhere, 5.0)
            made.host_of(web).mirror.pass_frame(web, TO_443, "ingress")
            assert made.host_of(watcher).mirror.delivered[watcher][-1] == TO_443

    run(scene)


@pytest.mark.parametrize("account", ["acme", "globex"])
def test_nobody_watches_what_is_not_its_own(account: str) -> None:
    async def scene() -> None:
        async with mirror_cloud() as made:
            await watched(made)
            vm = await made.world.get("compute.vm", "web", "acme")
            other = "globex" if account == "acme" else "acme"
            if account == "globex":
                with pytest.raises(Invalid, match="there is no vm"):
                    await made.world.create("mirror.session", "s", account, vm=vm["id"])
                with pytest.raises(Invalid, match="there is no vm"):
                    await made.world.create("mirror.sniffer", "s", account, vm=vm["id"])
                return
            await made.vm("theirs", "a1", other)
            with pytest.raises(Invalid, match="there is no vm 'theirs'"):
                await made.world.create("mirror.session", "s", account, vm="theirs")

    run(scene)


def test_what_would_go_in_circles_or_be_too_much_is_refused() -> None:
    async def refused(made: MirrorCloud, error: type[Rejected], words: str, **desired: object) -> None:
        with pytest.raises(error, match=words):
            await made.world.create("mirror.session", "bad", "acme", **desired)

    async def scene() -> None:
        async with mirror_cloud() as made:
            await watched(made)
            await refused(made, Conflict, "copied again, without end", vm="watcher")
            await refused(made, Invalid, "there is no NIC 3", vm="web", nic=3)
            await refused(made, Invalid, "prot", vm="web", expression="prot 80")
            await refused(made, Invalid, "no sniffer", vm="web", sniffer="nobody")
            await made.world.create("mirror.filter", "f", "acme", rules=[{"protocol": "tcp", "port_first": 443}])
            await refused(made, Invalid, "not both", vm="web", expression="tcp", filter="f")
            for number in range(8):
                await made.world.create("mirror.session", f"s{number}", "acme", vm="web", filter="f")
            await refused(made, Conflict, "8 mirror sessions, which is the most", vm="web")
            with pytest.raises(Conflict, match="given its own packets"):
                await made.world.create("mirror.sniffer", "loop", "acme", vm="web")

    run(scene)


def test_where_an_approval_is_wanted_nothing_is_copied_before_it() -> None:
    async def scene() -> None:
        async with mirror_cloud(mirroring="approval") as made:
            web = await made.vm("web", "a1")
            await made.world.create("mirror.session", "tap", "acme", vm="web")
            await made.world.settle()
            found = await made.world.get("mirror.session", "tap", "acme")
            assert found["conditions"][0]["reason"] == "ApprovalNeeded"
            assert made.legs() == []
            await made.world.patch("mirror.session", "tap", "acme", approval="granted")
            await made.world.until(lambda: made.runs("tap"))
            await made.world.patch("infra.zone", "local", mirroring="forbidden")

            async def silent() -> bool:
                return made.legs() == []

            await made.world.until(silent)
            made.host_of(web).mirror.pass_frame(web, TO_443, "ingress")
            with pytest.raises(Denied, match="forbids mirroring"):
                await made.world.create("mirror.session", "other", "acme", vm="web")

    run(scene)


def test_a_session_follows_its_vm_to_another_host() -> None:
    async def scene() -> None:
        async with mirror_cloud() as made:
            web, watcher = await watched(made)
            await made.only("a2")
            await made.session("tap", vm="web", sniffer="probe")
            made.host_of(web).mirror.pass_frame(web, TO_443, "ingress")

            async def received(number: int) -> bool:
                counts = await made.counts("tap")
                return counts["sent"] == counts["received"] == counts["delivered"] == number

            await made.world.until(lambda: received(1))
            await move(made, "web", "a2")
            await made.world.until(lambda: has_source_on(made, made.ids["a2"]))
            made.world.hosts[made.ids["a2"]].mirror.pass_frame(web, TO_80, "ingress")
            assert made.host_of(watcher).mirror.delivered[watcher] == [TO_443, TO_80]

            await made.world.until(lambda: received(2))
            assert (await made.counts("tap"))["lost"] == 0
            assert not made.world.hosts[made.ids["a1"]].mirror.legs

    run(scene)


def test_what_was_approved_is_not_changed_behind_the_operators_back() -> None:
    async def scene() -> None:
        async with mirror_cloud(mirroring="approval") as made:
            await made.vm("web", "a1")
            await made.world.create("mirror.filter", "pings", "acme", expression="icmp")
            await made.world.create("mirror.session", "tap", "acme", vm="web", filter="pings", approval="granted")
            await made.world.until(lambda: made.runs("tap"))
            acme = Principal(
                user_id="ann", user="ann", account_id=(await made.world.get("tenancy.account", "acme"))["id"],
                account="acme", role="admin", rules=(Rule(kinds=("*",), verbs=("get", "update", "console")),),
            )  # fmt: skip
            for kind, name, change in (
                ("mirror.session", "tap", {"duration_s": 0}),
                ("mirror.filter", "pings", {"expression": "ip"}),
            ):
                await made.world.patch("mirror.session", "tap", "acme", approval="granted")
                body = msgspec.json.encode({"desired": change})
                await made.world.servers[0].surface.patch(made.world.call("acme", acme), kind, name, body)
                assert (await made.world.get("mirror.session", "tap", "acme"))["desired"]["approval"] == ""
            reader = replace_rules(acme, ("get", "update"))
            call, body = made.world.call("acme", reader), msgspec.json.encode({"desired": {"rate_limit_kbps": 0}})
            with pytest.raises(Denied, match="console"):
                await made.world.servers[0].surface.patch(call, "mirror.session", "tap", body)

    run(scene)


def replace_rules(principal: Principal, verbs: tuple[str, ...]) -> Principal:
    """Return the caller with other rights."""
    return replace(principal, rules=(Rule(kinds=("*",), verbs=verbs),))


def test_a_session_that_may_not_run_holds_no_place_and_keeps_nothing() -> None:
    async def scene() -> None:
        async with mirror_cloud() as made:
            await made.vm("web", "a1")
            await made.session("tap", vm="web", duration_s=0)
            await made.world.patch("infra.zone", "local", mirroring="forbidden")
            await made.world.until(made.is_tidy, IDLE_S + 60.0)
            await made.world.patch("infra.zone", "local", mirroring="allowed")
            await made.world.until(lambda: made.runs("tap"))

    run(scene)


def test_an_account_that_has_the_platforms_name_is_left_alone() -> None:
    async def scene() -> None:
        async with mirror_cloud() as made:
            with pytest.raises(Invalid, match="choose another name"):
                await made.world.create("tenancy.account", "platform")

    run(scene)


def test_another_nic_is_never_watched_instead() -> None:
    async def scene() -> None:
        async with mirror_cloud() as made:
            await made.world.create("network.network", "back", "acme", range="10.5.0.0/24")
            await made.vm("web", "a1", nics=[{"network": "default"}, {"network": "back"}])
            await made.session("tap", vm="web", nic=0)
            await made.world.patch("compute.vm", "web", "acme", nics=[{"network": "back"}])

            async def says_so() -> bool:
                found = await made.world.get("mirror.session", "tap", "acme")
                return bool(found["conditions"][0]["reason"] == "NoNic" and not made.legs())

            await made.world.until(says_so)

    run(scene)


def test_a_session_whose_sniffer_lost_its_nic_waits_without_a_place() -> None:
    async def scene() -> None:
        async with mirror_cloud() as made:
            await watched(made)
            await made.session("tap", vm="web", sniffer="probe", duration_s=0)
            await made.world.patch("compute.vm", "watcher", "acme", nics=[])
            await made.world.until(made.is_tidy, IDLE_S + 60.0)
            found = await made.world.get("mirror.session", "tap", "acme")
            assert found["conditions"][0]["reason"] == "SnifferNotReady"

    run(scene)


async def move(made: MirrorCloud, name: str, to: str) -> None:
    """Bring a VM to another host as an evacuation does: it has ended on the one, and its disk is on the other."""
    world, target = made.world, made.ids[to]
    vm = await world.resource("compute.vm", name, "acme")
    old = world.hosts[vm.host].machines
    await world.stop_agent(vm.host)
    old.crash(vm.id)
    old.machines.pop(vm.id, None)
    pools = {pool["host"]: pool["id"] for pool in await world.list("storage.pool")}

    async def write(tx: Transaction) -> None:
        there = await tx.get(vm.id)
        for id in there.assigned.volumes:
            volume = await tx.get(id)
            await tx.update(volume, assigned=replace(volume.assigned, host=target, pool=pools[target]))
        await tx.update(there, assigned=replace(there.assigned, host=target))
        for id in there.assigned.ports:
            await tx.enqueue(id)

    await world.store.write(write)
    await world.start_agent(vm.host)


async def has_source_on(made: MirrorCloud, host: str) -> bool:
    """Tell whether packets are copied on the host."""
    return any(isinstance(kept.spec, SourceSpec) for kept in made.world.hosts[host].mirror.legs.values())
