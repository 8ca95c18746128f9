"""What a router takes from a document and what not: hostile names never become a line of configuration."""

from __future__ import annotations

import contextlib
import copy
import json
import string
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pileus.node.role import RoleRefused
from pileus.node.router import balancing, firewall, names, pair, tunnels
from pileus.node.router.model import Config, Reader

KEY, OTHER = "A" * 42 + "E=", "B" * 42 + "A="
MAC = "52:54:00:00:00:01"


def whole() -> dict[str, Any]:
    """Return a document with every section."""
    check = {"protocol": "http", "path": "/health", "interval_ms": 2000, "fall": 2, "rise": 2}
    balancer = {"address": "203.0.113.5", "port": 80, "protocol": "http", "algorithm": "source", "sources": []}
    peers = {OTHER: {"allowed": ["10.2.0.0/16"], "endpoint": "198.51.100.9:51820", "keepalive_s": 25}}
    tunnel = {"interface": "wg0", "private_key": KEY, "port": 51820, "address": "169.254.64.1/30", "peers": peers}
    ports = {"port_first": 22, "port_last": 22, "to_port": 2022}
    return {
        "node": {"self": {"hostname": "router-1"}},
        "links": {"guest": {"mac": MAC}, "public": {"mac": "52:54:00:00:00:02"}},
        "addresses": {
            "10.1.1.1": {"link": "guest", "prefix": 24, "shared": True},
            "203.0.113.5": {"link": "public", "prefix": 24, "gateway": "203.0.113.1", "shared": True},
        },
        "networks": {"n1": {"range": "10.1.1.0/24", "gateway": "10.1.1.1", "domain": "a.acme.internal", "dns": []}},
        "resolvers": {"192.0.2.53": {}},
        "hosts": {"52:54:00:01:00:01": {"network": "n1", "address": "10.1.1.10", "names": ["web"]}},
        "nat": {"source": {"address": "203.0.113.5"}},
        "forwards": {
            "f1": {"address": "203.0.113.5", "protocol": "tcp", "to_address": "10.1.1.10", "sources": [], **ports}
        },
        "balancers": {"b1": {**balancer, "members": {"v1:80": {"address": "10.1.1.10", "port": 80}}, "check": check}},
        "firewall": {
            "a,0": {"direction": "ingress", "action": "drop", "network": "n1", "protocol": "tcp",
                    "remotes": ["198.51.100.0/24"], "locals": [], "port_first": 25, "port_last": 25}
        },
        "tunnels": {"t1": tunnel},
        "stretches": {
            "s1": {"network": "n1", "range": "10.1.1.0/24", "tunnel": "t1", "vni": 7, "local": "169.254.64.1",
                   "remote": "169.254.64.2"}
        },
        "redundancy": {"pair": {"router_id": 7, "priority": 100, "own": "169.254.1.1/30", "peer": "169.254.1.2"}},
    }  # fmt: skip


def read(document: dict[str, Any]) -> Config:
    return Reader().read(document)


def everything(config: Config) -> str:
    """Return all that is written into files or given to programs."""
    part = config.pair
    assert part is not None
    texts = [firewall.ruleset(config), names.settings(config), names.leases(config), names.hosts(config)]
    texts += [names.resolvers(config), balancing.settings(config.balancers), *map(tunnels.settings, config.tunnels)]
    return "\n".join([*texts, pair.keepalived(config, part), pair.conntrackd(config, part)])


def leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the paths of all texts in a document, keys of entries included as the path of their entry."""
    if isinstance(value, dict):
        return [found for key, below in value.items() for found in leaves(below, (*path, key))]
    if isinstance(value, list):
        return [found for place, below in enumerate(value) for found in leaves(below, (*path, place))]
    return [path] if isinstance(value, str) else []


def put(document: dict[str, Any], path: tuple[Any, ...], value: object) -> dict[str, Any]:
    changed = copy.deepcopy(document)
    inner: Any = changed
    for step in path[:-1]:
        inner = inner[step]
    inner[path[-1]] = value
    return changed


HOSTILE = ["x\ny", "a b", 'a"b', "a;b", "a{b", "a#b", "../x", "$(x)", "-x", "é", "a\0b", "x" * 300, "a,b\n", "%[x]"]


@pytest.mark.parametrize("path", leaves(whole()), ids=lambda path: "/".join(map(str, path)))
def test_a_hostile_text_in_any_field_is_refused_by_its_name(path: tuple[Any, ...]) -> None:
    for text in HOSTILE:
        with pytest.raises(RoleRefused) as caught:
            read(put(whole(), path, text))
        assert str(path[0]) in caught.value.message
        assert len(caught.value.message) < 400


KEYED = ["links", "addresses", "networks", "resolvers", "hosts", "balancers", "tunnels", "stretches"]


@pytest.mark.parametrize("section", KEYED)
@pytest.mark.parametrize("key", HOSTILE)
def test_a_hostile_key_is_refused(section: str, key: str) -> None:
    document = whole()
    entry = next(iter(document[section].values()))
    document[section] = {key: entry}
    if section in ("networks", "tunnels"):
        document |= {"hosts": {}, "firewall": {}, "stretches": {}}
    with pytest.raises(RoleRefused):
        read(document)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    ),
    st.sampled_from(sorted(whole())),
)
def test_whatever_a_section_holds_it_is_read_or_refused(value: Any, section: str) -> None:
    with contextlib.suppress(RoleRefused):
        read({**whole(), section: value})


@given(st.text(alphabet=string.printable, max_size=70))
def test_a_name_that_passes_has_only_characters_of_a_label(name: str) -> None:
    document = put(whole(), ("hosts", "52:54:00:01:00:01", "names"), [name])
    try:
        config = read(document)
    except RoleRefused:
        return
    assert set(name) <= set(string.ascii_lowercase + string.digits + "-")
    assert f"10.1.1.10,{name}\n" in names.leases(config)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("balancers", "b1", "port"), 0),
        (("balancers", "b1", "port"), "80"),
        (("balancers", "b1", "check", "interval_ms"), True),
        (("firewall", "a,0", "port_last"), 24),
        (("firewall", "a,0", "protocol"), "icmp"),
        (("firewall", "a,0", "network"), "n2"),
        (("hosts", "52:54:00:01:00:01", "network"), "n2"),
        (("hosts", "52:54:00:01:00:01"), []),
        (("networks", "n1", "gateway"), "10.9.9.9"),
        (("forwards", "f1", "to_port"), 65536),
        (("stretches", "s1", "tunnel"), "t2"),
        (("stretches", "s1", "vni"), 1 << 24),
        (("redundancy", "pair", "priority"), 255),
        (("tunnels", "t1", "peers", OTHER, "endpoint"), "198.51.100.9:70000"),
    ],
)
def test_a_value_that_cannot_be_is_refused(path: tuple[Any, ...], value: object) -> None:
    with pytest.raises(RoleRefused):
        read(put(whole(), path, value))


def test_two_forwards_of_one_port_are_refused_and_a_far_shift_of_many_too() -> None:
    forward = whole()["forwards"]["f1"]
    both = {"a": forward | {"port_first": 20, "port_last": 30, "to_port": 20}, "b": forward}
    with pytest.raises(RoleRefused, match="port 22"):
        read({**whole(), "forwards": both})
    read({**whole(), "forwards": {**both, "b": forward | {"protocol": "udp"}}})
    with pytest.raises(RoleRefused, match="moved"):
        read({**whole(), "forwards": {"a": forward | {"port_first": 1, "port_last": 5000, "to_port": 9}}})


def test_sections_that_are_missing_are_empty_and_newer_fields_are_let_be() -> None:
    assert read({}).networks == {}
    assert read({"later": {"x": {"y": 1}}, "node": {"self": {"hostname": "a", "colour": "red"}}}).hostname == "a"


def test_what_was_read_once_is_read_again_only_where_it_changed() -> None:
    reader = Reader()
    first = reader.read(whole())
    second = reader.read(put(whole(), ("hosts", "52:54:00:01:00:01", "names"), ["www"]))
    assert second.firewall is first.firewall
    assert second.guests[0].names == ("www",)


def test_no_text_of_the_document_but_known_characters_gets_anywhere() -> None:
    text = everything(read(whole()))
    assert "v1:80" not in text
    assert "b1" not in balancing.settings(read(whole()).balancers)
    assert json.dumps(text).isascii()
