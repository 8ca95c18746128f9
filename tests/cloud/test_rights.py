"""What users may do to those who have more rights, and what tenants learn of the provider."""

from __future__ import annotations

import re

import msgspec
import pytest

from pileus.kernel.access import Principal, Rule
from pileus.kernel.errors import Conflict, Denied, Invalid
from pileus.kernel.reading import Call
from tests.cloud.world import Cloud, cloud
from tests.virtual_time import run

ALL = (Rule(kinds=("*",), verbs=("get", "create", "update", "delete", "console")),)


async def tenant(world: Cloud, *rules: Rule) -> Call:
    """Return a call by a user of the account acme with these rights."""
    account = await world.get("tenancy.account", "acme")
    principal = Principal(
        user_id="someone", user="someone", account_id=account["id"], account="acme", role="some", rules=rules
    )
    return Call(principal=principal)


def test_nobody_changes_or_removes_a_user_a_role_or_a_key_with_more_rights() -> None:
    async def main() -> None:
        async with cloud() as world:
            await world.create("tenancy.account", "acme")
            await world.create("tenancy.role", "strong", "acme", rules=[{"kinds": ["*"], "verbs": ["create", "get"]}])
            await world.create("tenancy.role", "weak", "acme", rules=[])
            for name, role in (("boss", "strong"), ("guest", "weak")):
                await world.create("tenancy.user", name, "acme", role=role)
                await world.create("tenancy.key", name, "acme", user=name)
            await world.create("tenancy.user", "keyless", "acme", role="strong")
            surface = world.servers[0].surface
            helper = await tenant(world, Rule(kinds=("tenancy.*",), verbs=("get", "create", "update", "delete")))
            for body in (b'{"desired":{"role":"weak"}}', b'{"desired":{"state":"disabled"}}'):
                with pytest.raises(Denied):
                    await surface.patch(helper, "tenancy.user", "boss", body)
            with pytest.raises(Denied):
                await surface.patch(helper, "tenancy.role", "strong", b'{"desired":{"rules":[]}}')
            await world.create("tenancy.role", "unused", "acme", rules=[{"kinds": ["*"], "verbs": ["console"]}])
            for kind, name in (("tenancy.key", "boss"), ("tenancy.user", "keyless"), ("tenancy.role", "unused")):
                with pytest.raises(Denied):
                    await surface.delete(helper, kind, name)
                assert await world.exists(kind, name, "acme")
            assert (await world.get("tenancy.user", "boss", "acme"))["desired"]["role"] == "strong"
            await surface.patch(helper, "tenancy.user", "guest", b'{"desired":{"state":"disabled"}}')
            await surface.delete(helper, "tenancy.key", "guest")
            owner = await tenant(world, *ALL)
            await surface.patch(owner, "tenancy.user", "boss", b'{"desired":{"role":"weak"}}')
            await surface.delete(owner, "tenancy.key", "boss")

    run(main)


def test_a_tenant_learns_of_no_host_by_name_or_size_and_an_operator_of_all() -> None:
    async def main() -> None:
        async with cloud(hosts=2) as world:
            await world.create("tenancy.account", "acme")
            await world.patch("tenancy.vdc", "main", "acme", quota={"memory_mib": 9_000_000, "vcpus": 1000})
            owner, surface = await tenant(world, *ALL), world.servers[0].surface
            await world.create("compute.vm", "huge", "acme", nics=[], vcpus=16, memory_mib=4_000_000)
            await world.create("compute.vm", "web", "acme", nics=[])
            await world.until(lambda: world.is_ready("compute.vm", "web", "acme"))
            told = [(await surface.get(owner, "compute.vm", "huge")).body]
            plans = []
            for memory_mib in (512, 4_000_000):
                body = {"name": "new", "desired": {"nics": [], "vcpus": 1, "memory_mib": memory_mib}}
                for call in (owner, world.call("acme")):
                    dry = msgspec.structs.replace(call, dry_run=True)
                    answer = await surface.create(dry, "compute.vm", msgspec.json.encode(body))
                    plans.append(msgspec.json.encode(msgspec.json.decode(answer.body)["decisions"]).decode())
            told += plans[::2]
            await world.patch("compute.vm", "web", "acme", power="stopped")
            await world.until(lambda: world.is_ready("compute.vm", "web", "acme"))
            with pytest.raises(Conflict) as refused:
                await world.patch("compute.vm", "web", "acme", offering="", vcpus=16, memory_mib=4_000_000)
            assert refused.value.code == "no-capacity"
            told.append(refused.value.message)
            await world.cut_link((await world.get("compute.vm", "web", "acme"))["host"])

            async def silent() -> bool:
                vm = await world.get("compute.vm", "web", "acme")
                return bool(vm["conditions"][0]["reason"] == "HostSilent")

            await world.until(silent)
            told.append((await world.get("compute.vm", "web", "acme"))["conditions"][0]["message"])
            for text in told:
                assert "host0" not in text
                assert "host1" not in text
                assert " free" not in text
                assert not re.search(r"\d (memory_mib|MiB)", text)
            assert "NoMemory" in told[0]
            assert "NoMemory" in told[2]
            assert '"chosen"' in told[1]
            for operators in plans[1::2]:
                assert "host host" in operators
            assert "MiB free, 4000000 needed" in plans[3]

    run(main)


def test_the_role_operator_is_for_users_of_the_cloud_only() -> None:
    async def main() -> None:
        async with cloud() as world:
            await world.create("tenancy.account", "acme")
            await world.create("tenancy.user", "ann", "acme", role="reader")
            for work in (
                world.create("tenancy.user", "bob", "acme", role="operator"),
                world.patch("tenancy.user", "ann", "acme", role="operator"),
            ):
                with pytest.raises(Invalid) as refused:
                    await work
                assert refused.value.field == "desired.role"
                assert refused.value.message == (
                    "role operator is for the cloud's own users; take owner, member or reader"
                )
            assert not await world.exists("tenancy.user", "bob", "acme")
            assert (await world.get("tenancy.user", "ann", "acme"))["desired"]["role"] == "reader"
            await world.create("tenancy.user", "second", role="operator")

    run(main)


@pytest.mark.parametrize(
    ("kinds", "verbs", "field", "message"),
    [
        (["vm"], ["get"], "kinds", "'vm' is not a kind's full name; say compute.vm"),
        (["compute.*", "vms"], ["get"], "kinds", "'vms' is not a kind's full name; say compute.vm"),
        (["cumpute.*"], ["get"], "kinds", "'cumpute.*' names no capability; there are compute.*, "),
        (["compute.vn"], ["get"], "kinds", "'compute.vn' is not a kind; say *, a capability such as compute.*, or "),
        (["compute"], ["get"], "kinds", "'compute' is not a kind; say *, "),
        (["*"], ["get", "list"], "verbs", "'list' is not a verb; say get, create, update, delete or console"),
    ],
)
def test_a_role_names_kinds_in_full_and_verbs_that_there_are(
    kinds: list[str], verbs: list[str], field: str, message: str
) -> None:
    async def main() -> None:
        async with cloud() as world:
            await world.create("tenancy.account", "acme")
            good = {"kinds": ["*", "network.*", "compute.vm"], "verbs": ["get", "console"]}
            await world.create("tenancy.role", "watcher", "acme", rules=[good])
            for work in (
                world.create("tenancy.role", "other", "acme", rules=[good, {"kinds": kinds, "verbs": verbs}]),
                world.patch("tenancy.role", "watcher", "acme", rules=[good, {"kinds": kinds, "verbs": verbs}]),
            ):
                with pytest.raises(Invalid) as refused:
                    await work
                assert refused.value.field == f"desired.rules[1].{field}"
                assert refused.value.message.startswith(message)

    run(main)


def test_a_vm_with_a_key_that_no_guest_could_take_is_never_made() -> None:
    async def main() -> None:
        async with cloud() as world:
            await world.create("tenancy.account", "acme")
            with pytest.raises(Invalid) as refused:
                await world.create("compute.vm", "web", "acme", nics=[], ssh_keys=["nonsense"])
            assert refused.value.field == "desired.ssh_keys[0]"
            assert not await world.exists("compute.vm", "web", "acme")

    run(main)


def test_a_range_that_is_taken_is_refused_with_the_flag_that_says_another() -> None:
    async def main() -> None:
        async with cloud() as world:
            await world.create("tenancy.account", "acme")
            with pytest.raises(Conflict) as refused:
                await world.create("network.network", "second", "acme")
            assert refused.value.message == (
                "10.1.1.0/24 overlaps 10.1.1.0/24 of network default, which is in the same zone; "
                "say another with --range"
            )

    run(main)
