"""What users may do to those who have more rights, and what tenants learn of the provider."""

from __future__ import annotations

import pytest

from pileus.kernel.access import Principal, Rule
from pileus.kernel.errors import Denied
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
