"""What an operator may say of a host's uplinks, and what cannot be is said in words."""

from __future__ import annotations

from pathlib import Path

import click
import pytest

from pileus.cli.commands.agent import Device, command, read_uplinks
from pileus.drivers.host.ovs.base import Uplinks

NONE = {"trunk": "", "tunnel": "", "tunnel_address": "", "tunnel_gateway": "", "public": ""}
ALL = {
    "trunk": "trunk0",
    "tunnel": "tunnel0",
    "tunnel_address": "10.200.1.11/24",
    "tunnel_gateway": "10.200.1.1",
    "public": "public0",
}


def test_all_of_them_or_none_are_taken_as_they_are() -> None:
    assert read_uplinks(**NONE) == Uplinks()
    assert read_uplinks(**ALL) == Uplinks(**ALL)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tunnel_address": ""}, "--tunnel and --tunnel-address go together"),
        ({"tunnel": ""}, "--tunnel and --tunnel-address go together"),
        ({"tunnel": "", "tunnel_address": ""}, "--tunnel-gateway is the way out of a tunnel's network"),
        ({"tunnel_address": "10.200.1.11"}, "with its prefix length, such as 10.200.1.11/24, not '10.200.1.11'"),
        ({"tunnel_address": "10.200.1.0/24"}, "--tunnel-address takes a host's IPv4 address"),
        ({"tunnel_address": "10.200.1.255/24"}, "--tunnel-address takes a host's IPv4 address"),
        ({"tunnel_address": "fd00::1/64"}, "--tunnel-address takes a host's IPv4 address"),
        ({"tunnel_gateway": "gateway"}, "--tunnel-gateway takes an IPv4 address, not 'gateway'"),
        ({"tunnel_gateway": "10.200.2.1"}, "is not another address of 10.200.1.0/24"),
        ({"tunnel_gateway": "10.200.1.11"}, "is not another address of 10.200.1.0/24"),
        ({"trunk": "public0"}, "two of them are the same"),
    ],
)
def test_what_cannot_be_is_refused_in_words(change: dict[str, str], message: str) -> None:
    with pytest.raises(click.UsageError) as refused:
        read_uplinks(**ALL | change)
    assert message in str(refused.value)


def test_an_agent_needs_no_uplinks(tmp_path: Path) -> None:
    context = command.make_context("agent", ["--data", str(tmp_path)])
    assert {name: context.params[name] for name in NONE} == NONE


@pytest.mark.parametrize("name", ["a b", "x" * 16, "eth0/1", "$(id)"])
def test_what_is_no_name_of_a_device_is_refused(name: str) -> None:
    with pytest.raises(click.UsageError, match="no name of a network device"):
        Device().convert(name, None, None)
