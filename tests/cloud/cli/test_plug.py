"""attach and detach against a real server: what the wish becomes, and what is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from pileus.cli.failure import NOT_FOUND, OK, REFUSED, USAGE

if TYPE_CHECKING:
    from tests.cloud.cli.conftest import Run
else:
    Run = Any


@pytest.fixture
def web(pileus: Run, account: str) -> str:
    """A running VM with one NIC, beside a second network and a volume."""
    for more in (
        ("network", "back", "--range", "10.2.0.0/24"),
        ("volume", "more", "--size-gib", "1"),
        ("vm", "web"),
    ):
        assert pileus("create", *more, "--account", account).code == OK
    return "web"


def wish(pileus: Run, account: str) -> tuple[list[tuple[str, str]], list[str]]:
    """Return networks and addresses of the VM's NICs, and its further volumes."""
    desired = pileus("get", "vm", "web", "--account", account, "-o", "json").json["desired"]
    nics = [(nic["network"], nic["address"]) for nic in desired["nics"]]
    return nics, [volume["volume"] for volume in desired["volumes"]]


@pytest.mark.parametrize("form", [("vm/web",), ("vm", "web"), ("web",)])
def test_a_nic_comes_and_goes(pileus: Run, account: str, web: str, form: tuple[str, ...]) -> None:
    ran = pileus("attach", *form, "--network", "back", "--address", "10.2.0.9", "--account", account)
    assert (ran.code, ran.out) == (OK, f"network back shall be attached to vm web of account {account}\n"), ran.err
    assert wish(pileus, account)[0] == [("default", ""), ("back", "10.2.0.9")]
    ran = pileus("detach", *form, "--network", "default", "--account", account)
    assert (ran.code, ran.out) == (OK, f"network default shall be detached from vm web of account {account}\n"), ran.err
    assert wish(pileus, account)[0] == [("back", "10.2.0.9")]


def test_of_several_nics_in_a_network_the_address_says_which(pileus: Run, account: str, web: str) -> None:
    for address in ("10.2.0.8", "10.2.0.9"):
        assert pileus("attach", web, "--network", "back", "--address", address, "--account", account).code == OK
    ran = pileus("detach", web, "--network", "back", "--account", account)
    assert ran.code == USAGE
    assert "has 2 NICs in network back" in ran.err
    assert "say which with --address" in ran.err
    assert pileus("detach", web, "--network", "back", "--address", "10.2.0.8", "--account", account).code == OK
    assert wish(pileus, account)[0] == [("default", ""), ("back", "10.2.0.9")]
    ran = pileus("detach", web, "--network", "back", "--address", "10.2.0.8", "--account", account)
    assert ran.code == NOT_FOUND
    assert "has no NIC in network back with address 10.2.0.8; it has default (), back (10.2.0.9)" in ran.err


def test_a_volume_comes_and_goes(pileus: Run, account: str, web: str) -> None:
    ran = pileus("attach", web, "--volume", "more", "--account", account)
    assert (ran.code, ran.out) == (OK, f"volume more shall be attached to vm web of account {account}\n"), ran.err
    again = pileus("attach", web, "--volume", "more", "--account", account)
    assert (again.code, again.err) == (
        USAGE,
        f"error: volume more is attached to vm web of account {account} already\n",
    )
    assert wish(pileus, account)[1] == ["more"]
    assert pileus("detach", web, "--volume", "more", "--account", account).code == OK
    assert wish(pileus, account)[1] == []
    ran = pileus("detach", web, "--volume", "more", "--account", account)
    assert ran.code == NOT_FOUND
    assert "has no volume more; it has none but its root volume" in ran.err


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("attach", "web"), USAGE, "say one thing: --network NAME or --volume NAME"),
        (("attach", "web", "--network", "back", "--volume", "more"), USAGE, "say one thing"),
        (("attach", "web", "more", "--network", "back"), USAGE, "say one thing"),
        (("attach", "web", "--volume", "more", "--address", "10.2.0.9"), USAGE, "--address is for --network"),
        (("attach", "network/back", "--volume", "more"), USAGE, "only a vm has NICs and disks"),
        (("attach", "web", "--network", "bakc"), REFUSED, "there is no network 'bakc' in account"),
        (("detach", "web", "--network", "bakc"), NOT_FOUND, "back"),
        (("attach", "web", "--volume", "les"), NOT_FOUND, "there is no volume"),
        (("detach", "nobody", "--network", "back"), NOT_FOUND, "there is no vm"),
        (("attach", "web", "--network", "back", "--address", "10.3.0.9"), REFUSED, "outside the network's range"),
    ],
)
def test_what_cannot_be_is_refused(
    pileus: Run, account: str, web: str, words: tuple[str, ...], code: int, said: str
) -> None:
    before = wish(pileus, account)
    ran = pileus(*words, "--account", account)
    assert (ran.code, ran.out) == (code, "")
    assert said in ran.err
    assert wish(pileus, account) == before
