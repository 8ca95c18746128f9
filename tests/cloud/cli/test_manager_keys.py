"""A fleet manager and its key, from the command line."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from pileus.cli import contexts
from pileus.cli.failure import OK
from pileus.fleet.manager.types import ManagerObserved

if TYPE_CHECKING:
    from tests.cloud.cli.cli_world import Cloud
    from tests.cloud.cli.conftest import Run
else:
    Cloud = Run = Any


def test_a_managers_key_is_made_used_and_named(pileus: Run, account: str, cloud: Cloud) -> None:
    assert pileus("create", "manager", f"{account}-fw", "--serves", "firewall").code == OK
    made = pileus("create", "key", f"{account}-fw-1", "--manager", f"{account}-fw")
    assert made.code == OK, made.err
    both = pileus("create", "key", "k", "--manager", f"{account}-fw", "--user", "admin")
    assert both.code != OK
    assert "exactly one" in both.err
    ca = cloud.started.ca
    contexts.put("fw", contexts.Context(server=cloud.started.url, ca=ca, key=made.out.strip()))
    said = pileus("--context", "fw", "whoami").out
    assert said.splitlines()[0].startswith(f"manager {account}-fw of the cloud, to which 0 accounts consent, at ")
    assert "  may update: fleet.manager" in said
    contexts.put("local", cloud.operator)
    consent = pileus("create", "consent", "fw", "--account", account, "--manager", f"{account}-fw", "--nodes-max", "3")
    assert consent.code == OK, consent.err
    assert pileus("get", "consent", "--account", account, "--manager", f"{account}-fw", "-o", "name").out.strip()


def test_a_callback_that_fails_is_seen(pileus: Run, account: str, cloud: Cloud) -> None:
    name = f"{account}-dns"
    assert pileus("create", "manager", name, "--callback-url", "https://dns.example.com/notices").code == OK
    since = "2026-11-21T10:00:00.000Z"
    facts = ManagerObserved(webhook_key="whpk_x", waiting=3, failing_since=since, message="no connection")

    async def fail() -> None:
        store = cloud.started.parts.store
        manager = await store.find("fleet.manager", "", name)
        assert manager is not None
        await store.write(lambda tx: tx.update(manager, observed=facts))

    asyncio.run_coroutine_threadsafe(fail(), cloud.loop).result(10)
    sheet = pileus("describe", "manager", name).out
    assert f"notices waiting: 3, since {since}; its observed message says why" in sheet
    assert "no connection" in sheet
    assert "CallbackFails" in sheet
    assert "whpk_x" in sheet
    wide = pileus("get", "manager", name, "-o", "wide").out.splitlines()
    assert [word in wide[0] for word in ("CALLBACK", "WAITING", "FAILING_SINCE")] == [True] * 3
    assert since in wide[1]
