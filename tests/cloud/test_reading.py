"""What callers read: within their rights, of what they asked for, and nothing is kept from them."""

from __future__ import annotations

import msgspec
import pytest

from pileus.kernel.access import Principal, Rule
from pileus.kernel.errors import Conflict, Denied, NotFound
from pileus.kernel.reading import Call, ListQuery
from tests.cloud.world import Cloud, cloud
from tests.virtual_time import run

ALL = Rule(kinds=("*",), verbs=("get", "create", "update", "delete"))


async def tenant(world: Cloud, account: str, *rules: Rule) -> Principal:
    """Return a user of the account with these rules."""
    id = (await world.get("tenancy.account", account))["id"]
    return Principal(user_id="u", user="u", account_id=id, account=account, role="r", rules=rules)


async def event_kinds(world: Cloud, principal: Principal) -> set[str]:
    """Return the kinds of all events that the caller gets."""
    answer = await world.servers[0].surface.events(Call(principal=principal), None, 0, 1000)
    return {item["kind"] for item in msgspec.json.decode(answer.body)["items"]}


@pytest.mark.parametrize("account", ["acme", ""])
def test_events_are_only_of_kinds_that_the_caller_may_get(account: str) -> None:
    async def main() -> None:
        async with cloud() as world:
            await world.create("tenancy.account", "acme")
            await world.create("compute.vm", "web", "acme", nics=[])
            await world.settle()
            user = await tenant(world, "acme", Rule(kinds=("compute.*",), verbs=("get",)))
            user = msgspec.structs.replace(user, account_id=user.account_id if account else "", account=account)
            found = await event_kinds(world, user)
            assert "compute.vm" in found
            assert {kind for kind in found if not kind.startswith("compute.")} == set()
            with pytest.raises(Denied):
                await event_kinds(world, msgspec.structs.replace(user, rules=()))

    run(main)


def test_an_idempotency_key_is_of_one_account_and_a_dry_run_is_another_request() -> None:
    async def main() -> None:
        async with cloud() as world:
            surface = world.servers[0].surface
            body = b'{"name":"web","desired":{"nics":[]}}'
            for account in ("acme", "beta"):
                await world.create("tenancy.account", account)
            await surface.create(world.call("acme", idempotency_key="k"), "compute.vm", body)
            for other in (
                world.call("beta", idempotency_key="k"),
                world.call("acme", idempotency_key="k", dry_run=True),
            ):
                with pytest.raises(Conflict) as refused:
                    await surface.create(other, "compute.vm", body)
                assert refused.value.code == "idempotency-key-used"
            again = await surface.create(world.call("acme", idempotency_key="k"), "compute.vm", body)
            assert again.status == 201

    run(main)


def test_a_tenant_who_watches_hears_that_a_public_image_went() -> None:
    async def main() -> None:
        async with cloud() as world:
            await world.create("tenancy.account", "acme")
            await world.create("storage.image", "public")
            await world.settle()
            watch = world.servers[0].surface.watch(
                Call(principal=await tenant(world, "acme", ALL)), "storage.image", ListQuery(), None
            )
            while (await anext(watch))[0] != "synced":
                pass
            await world.delete("storage.image", "public")
            while (event := await anext(watch))[0] == "put":
                pass
            assert event[0] == "gone"
            assert msgspec.json.decode(event[2])["name"] == "public"

    run(main)


def test_nobody_is_sent_to_a_list_that_it_may_not_see() -> None:
    async def main() -> None:
        async with cloud() as world:
            await world.create("tenancy.account", "acme")
            surface = world.servers[0].surface
            user = Call(principal=await tenant(world, "acme", ALL))
            for call, kind, where, hint in (
                (user, "infra.host", " in account acme", ""),
                (user, "compute.vm", " in account acme", "; `pileus get vm` lists what there is"),
                (user, "tenancy.user", " in account acme", "; `pileus get user` lists what there is"),
                (world.call(), "infra.host", "", "; `pileus get host` lists what there is"),
            ):
                with pytest.raises(NotFound) as refused:
                    await surface.get(call, kind, "nosuch")
                short = kind.partition(".")[2]
                assert refused.value.message == f"there is no {short} 'nosuch'{where}{hint}"
            with pytest.raises(NotFound) as refused:
                await surface.list(user, "compute.vm", ListQuery(host="nosuch"))
            assert refused.value.message == "there is no host 'nosuch' in account acme"

    run(main)
