"""Where a manager's notices may go: a table of addresses, as an operator and as anybody else writes them."""

from __future__ import annotations

import pytest

from pileus.fleet.manager.plan import built_in, check_callback
from pileus.fleet.manager.types import BUILTIN
from pileus.kernel.errors import Invalid

PUBLIC = [
    "https://fleet.example.com/notices",
    "https://fleet.example.com:8443/notices?for=pileus",
    "https://8.8.8.8/",
    "https://[2606:4700:4700::1111]/",
    "https://xn--bcher-kva.example/",
    "https://127.0.0.1.example.com/",
]
OPERATORS = [
    "http://127.0.0.1:9000/hook",
    "http://127.8.8.8/",
    "http://[::1]:9000/",
    "http://localhost:9000/",
    "https://10.1.2.3/",
    "https://192.168.0.10:8443/hook",
    "https://localhost/",
    "https://[fd00::1]/",
]
NOBODYS = [
    "ftp://fleet.example.com/",
    "http://fleet.example.com/",
    "http://10.0.0.1/",
    "//fleet.example.com/",
    "https://",
    "https:///notices",
    "https://fleet.example.com:0/",
    "https://fleet.example.com:99999/",
    "https://user:password@fleet.example.com/",
    "https://fleet.example.com@127.0.0.1/",
    "https://fleet.example.com/#here",
    "https://fleet.example.com\\@127.0.0.1/",
    "https://fleet example.com/",
    "https://fleet.example.com/\n",
    "https://127.1/",
    "https://2130706433/",
    "https://0x7f000001/",
    "https://0177.0.0.1/",
    "https://example.0x7f/",
    "https://a..b/",
    "https://-a.example.com/",
    "https://fleet.example.com./",
    "https://[::1/",
    "https://bücher.example/",
]
PRIVATE = [
    "https://127.0.0.1/",
    "https://0.0.0.0/",
    "https://10.0.0.1/",
    "https://172.16.0.1/",
    "https://192.168.1.1/",
    "https://100.64.0.1/",
    "https://169.254.169.254/latest/meta-data",
    "https://224.0.0.1/",
    "https://255.255.255.255/",
    "https://[::1]/",
    "https://[::]/",
    "https://[fe80::1]/",
    "https://[fd00::1]/",
    "https://[ff02::1]/",
    "https://[::ffff:127.0.0.1]/",
    "https://[::ffff:10.0.0.1]/",
    "https://[2002:7f00:1::]/",
    "https://localhost/",
    "https://LOCALHOST/",
    "https://db.localhost/",
]


def allowed(url: str, *, by_operator: bool) -> bool:
    """Tell whether the address is taken; a refusal that does not name the field counts as none."""
    try:
        check_callback(url, by_operator=by_operator)
    except Invalid as error:
        return error.field != "desired.callback_url"
    return True


@pytest.mark.parametrize("url", PUBLIC)
def test_anybody_may_name_a_public_https_address(url: str) -> None:
    assert allowed(url, by_operator=False)
    assert allowed(url, by_operator=True)


@pytest.mark.parametrize("url", OPERATORS)
def test_only_an_operator_leads_notices_into_its_own_networks(url: str) -> None:
    assert allowed(url, by_operator=True)
    assert not allowed(url, by_operator=False)


@pytest.mark.parametrize("url", NOBODYS)
def test_what_may_be_read_in_two_ways_or_is_not_protected_is_nobodys(url: str) -> None:
    assert not allowed(url, by_operator=True)
    assert not allowed(url, by_operator=False)


@pytest.mark.parametrize("url", PRIVATE)
def test_a_tenants_manager_is_not_told_at_an_address_inside(url: str) -> None:
    assert not allowed(url, by_operator=False)


@pytest.mark.parametrize("name", BUILTIN)
def test_a_built_in_manager_stands_for_itself(name: str) -> None:
    made = built_in(name, "id")
    assert (made.id, made.manager, made.account_id, made.desired.state) == ("id", "id", "", "active")
