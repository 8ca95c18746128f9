"""Who may have what done: generated from verbs, roles and accounts; what no rule allows is denied."""

from __future__ import annotations

import itertools
from typing import Any, get_args

import msgspec
import pytest
from tests.cloud.monitor.monitor_world import ACCOUNT, FAILED, MONITOR
from tests.cloud.world import Cloud, cloud
from tests.virtual_time import run

from pileus.kernel.access import Principal, Rule
from pileus.kernel.errors import Denied, Invalid, PileusError
from pileus.kernel.reading import Call
from pileus.monitor.policy.plan import NEEDS
from pileus.monitor.policy.types import Verb

VERBS = get_args(Verb)
MORE: dict[str, dict[str, Any]] = {
    "configure": {"document": {"a": {"b": 1}}},
    "webhook": {"url": "https://example.com/"},
    **{f"{word}-application": {"application": "web"} for word in ("restart", "suspend", "resume", "terminate")},
}
MONITORING = Rule(kinds=("monitor.*",), verbs=("get", "create", "update", "delete"))


async def user(world: Cloud, account: str, *rules: Rule) -> Principal:
    found = await world.resource("tenancy.account", account)
    return Principal(user_id="u", user="ann", account_id=found.id, account=account, role="r", rules=rules)


async def outcome(world: Cloud, principal: Principal, kind: str, name: str, **desired: Any) -> str:
    body = msgspec.json.encode({"name": name, "desired": desired})
    try:
        await world.servers[0].surface.create(Call(principal=principal, account=""), kind, body)
    except PileusError as refused:
        return type(refused).__name__
    return "made"


def test_every_verb_needs_the_rights_that_it_takes_by_hand() -> None:
    assert set(NEEDS) == set(VERBS)

    async def main() -> None:
        async with cloud(1) as world:
            for account in (ACCOUNT, "other"):
                await world.create("tenancy.account", account)
            await world.create("monitor.monitor", MONITOR, ACCOUNT)
            numbers = itertools.count()
            seen: dict[tuple[str, str, str], str] = {}
            for verb in VERBS:
                do = [{"do": verb, **MORE.get(verb, {})}]
                await world.create("compute.vm", f"vm-{verb}", ACCOUNT)  # one of its own: the one before may be gone
                needed = tuple(Rule(kinds=(kind,), verbs=(allowed,)) for allowed, kind in NEEDS[verb])
                roles: dict[str, tuple[Rule, ...]] = {
                    "none": (),
                    "reader": (Rule(kinds=("*",), verbs=("get",)),),
                    "monitoring": (MONITORING,),
                    "enough": (MONITORING, *needed),
                }
                for (role, rules), account in itertools.product(roles.items(), (ACCOUNT, "other")):
                    who = await user(world, account, *rules)
                    wish = {"monitor": MONITOR, "when": [FAILED], "do": do}
                    policy = await outcome(world, who, "monitor.policy", f"p{next(numbers)}", **wish)
                    action = await outcome(world, who, "monitor.action", f"a{next(numbers)}", vm=f"vm-{verb}", do=do)
                    seen[verb, role, account] = policy
                    assert action == policy, (verb, role, account, action, policy)
            for (verb, role, account), found in seen.items():
                if role in ("none", "reader"):
                    wanted = "Denied"
                elif account == "other":
                    wanted = "Invalid"  # neither monitor nor VM is there, as far as it is told
                elif role == "enough" or not NEEDS[verb]:
                    wanted = "made"
                else:
                    wanted = "Denied"
                assert found == wanted, (verb, role, account, found)

    run(main)


def test_who_may_not_act_cannot_widen_what_policies_act_on() -> None:
    async def main() -> None:
        async with cloud(1) as world:
            await world.create("tenancy.account", ACCOUNT)
            await world.create("monitor.monitor", MONITOR, ACCOUNT, labels={"tier": "test"})
            await world.create(
                "monitor.policy", "p", ACCOUNT, monitor=MONITOR, when=[FAILED], do=[{"do": "terminate"}]
            )  # fmt: skip
            who = await user(world, ACCOUNT, MONITORING)
            surface = world.servers[0].surface
            for kind, name, wish in (
                ("monitor.monitor", MONITOR, {"labels": {}}),
                ("monitor.policy", "p", {"mode": "enforce"}),
                ("monitor.policy", "p", {"do": [{"do": "ask"}]}),
            ):
                with pytest.raises(Denied):
                    await surface.patch(Call(principal=who), kind, name, msgspec.json.encode({"desired": wish}))
            with pytest.raises(Invalid, match="bogus"):
                await world.create(
                    "monitor.policy", "q", ACCOUNT, monitor=MONITOR, when=[{"field": "bogus.x"}], do=[{"do": "ask"}]
                )  # fmt: skip

    run(main)
