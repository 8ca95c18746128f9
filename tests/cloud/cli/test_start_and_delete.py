"""The verbs that end what runs or is kept: power and deletion, run against a real server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from pileus.cli.failure import NOT_FOUND, OK, USAGE

if TYPE_CHECKING:
    from tests.cloud.cli.cli_world import Cloud
    from tests.cloud.cli.conftest import Run
else:
    Cloud = Run = Any


@pytest.fixture
def web(pileus: Run, account: str) -> str:
    """A running VM."""
    ran = pileus("create", "vm", "web", "--account", account, "--label", "tier=front", "--wait")
    assert (ran.code, ran.out) == (OK, f"vm web of account {account} is ready\n"), ran.err
    return "web"


def vm(pileus: Run, account: str, name: str = "web") -> Any:
    return pileus("get", "vm", name, "--account", account, "-o", "json").json


def test_vm_verbs_change_power_and_boot_serial(pileus: Run, account: str, web: str) -> None:
    def after(verb: str) -> tuple[str, str, int]:
        ran = pileus(verb, "vm", web, "--account", account, "--wait")
        assert ran.code == OK, ran.err
        there = vm(pileus, account)
        return there["desired"]["power"], there["observed"]["power"], there["observed"]["boot_serial"]

    assert after("stop") == ("stopped", "stopped", 0)
    assert after("start") == ("running", "running", 0)
    assert after("start") == ("running", "running", 0), "starting what runs booted it again"
    assert after("pause") == ("paused", "paused", 0)
    assert after("resume") == ("running", "running", 0)
    assert after("reboot") == ("running", "running", 1)


def test_starting_what_runs_already_changes_nothing_and_says_so(pileus: Run, account: str, web: str) -> None:
    before = vm(pileus, account)
    for more in ((), ("--wait",)):
        ran = pileus("start", "vm", web, "--account", account, *more)
        assert (ran.code, ran.out) == (OK, f"vm web of account {account} is running already\n"), ran.err
    after = vm(pileus, account)
    assert (after["generation"], after["desired"]) == (before["generation"], before["desired"])


def test_starting_a_vm_whose_guest_powered_itself_off_boots_it_once_more(
    pileus: Run, account: str, cloud: Cloud
) -> None:
    name = f"off-{account}"
    assert pileus("create", "vm", name, "--account", account, "--wait").code == OK
    cloud.vms.ended[name] = 0
    # Any change has its host look again.
    assert pileus("patch", "vm", name, "--account", account, "--shutdown-timeout-s", "5").code == OK
    goal = "jsonpath={.observed.power}=stopped"
    assert pileus("wait", "vm", name, "--account", account, "--for", goal).code == OK
    ran = pileus("start", "vm", name, "--account", account, "--wait")
    assert (ran.code, ran.out) == (OK, f"vm {name} of account {account} is running\n"), ran.err
    there = vm(pileus, account, name)
    assert (there["observed"]["power"], there["observed"]["boot_serial"]) == ("running", 1)


def test_starting_what_nobody_knows_to_be_off_does_not_reset_it(pileus: Run, account: str, cloud: Cloud) -> None:
    name = f"held-{account}"
    cloud.vms.held.add(name)
    assert pileus("create", "vm", name, "--account", account).code == OK
    assert pileus("start", "vm", name, "--account", account).code == OK
    cloud.vms.held.discard(name)
    assert pileus("wait", "vm", name, "--account", account).code == OK
    assert vm(pileus, account, name)["desired"]["boot_serial"] == 0


def test_deleting_several_at_once(pileus: Run, account: str, web: str) -> None:
    assert pileus("create", "vm", "two", "--account", account).code == OK
    assert pileus("delete", "vm", "web", "nothing", "--account", account, "-y").code == NOT_FOUND
    assert pileus("get", "vm", "-o", "name", "--account", account).out == "web\ntwo\n", "one that was named is gone"
    assert pileus("delete", "vm", "web", "two", "--account", account, "-y", "--wait").code == OK
    assert pileus("get", "vm", "-o", "name", "--account", account).out == ""


@pytest.mark.parametrize("kind", ["account", "vdc"])
def test_without_a_terminal_an_account_or_vdc_is_not_deleted_unasked(pileus: Run, account: str, kind: str) -> None:
    words = ("account", account) if kind == "account" else ("vdc", "main", "--account", account)
    ran = pileus("delete", *words)
    assert (ran.code, ran.out) == (USAGE, "")
    assert ran.err == f"error: not a terminal: say -y to delete {kind} {words[1]}\n"
    assert pileus("get", *words).code == OK
    assert pileus("delete", "account", account, "-y", "--wait").code == OK
    assert pileus("get", "account", account).code == NOT_FOUND
