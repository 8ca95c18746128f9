"""What a router's programs are told: the meaning of each file, not its every word."""

from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from pileus.node.router import balancing, firewall, links, names, pair, tunnels
from pileus.node.router.links import Device, Seen
from pileus.node.router.model import Config, Reader

if TYPE_CHECKING:
    from tests.unit.node.router.test_router_refusals import MAC, OTHER, whole
else:
    from test_router_refusals import MAC, OTHER, whole


def config(**sections: Any) -> Config:
    return Reader().read({**whole(), **sections})


def alone(**sections: Any) -> Config:
    """Return the same without the pair, tunnel and stretch."""
    return config(**{"redundancy": {}, "tunnels": {}, "stretches": {}, **sections})


def lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines()]


def forward(**more: Any) -> dict[str, Any]:
    return {**whole()["forwards"]["f1"], **more}


def test_a_transaction_replaces_the_tables_and_denies_by_default() -> None:
    found = lines(firewall.ruleset(alone()))
    assert found[:2] == ["table inet router", "delete table inet router"]
    for chain in ("input", "forward"):
        assert f"chain {chain} {{ type filter hook {chain} priority filter; policy drop;" in found
    assert not [line for line in found if "public" in line and "accept" in line]
    assert "ip daddr 203.0.113.5 tcp dport 80 accept" in found
    assert "ip daddr 10.1.1.0/24 ip saddr 198.51.100.0/24 tcp dport 25 drop" in found


def test_forwards_for_everybody_are_found_in_one_look_up() -> None:
    forwards = {
        "moved": forward(),
        "kept": forward(port_first=5000, port_last=5010, to_port=5000),
        "shifted": forward(protocol="udp", port_first=1, port_last=2, to_port=11),
        "limited": forward(port_first=23, port_last=23, to_port=23, sources=["192.0.2.0/24", "192.0.2.8/32"]),
    }
    text = firewall.ruleset(alone(forwards=forwards))
    assert "elements = { 203.0.113.5 . 22 : 10.1.1.10 . 2022 }" in text
    assert "elements = { 203.0.113.5 . 5000-5010 : 10.1.1.10 }" in text
    assert "elements = { 203.0.113.5 . 1 : 10.1.1.10 . 11, 203.0.113.5 . 2 : 10.1.1.10 . 12 }" in text
    assert "ip saddr { 192.0.2.0/24 } ip daddr 203.0.113.5 tcp dport 23 dnat ip to 10.1.1.10" in lines(text)


def test_rules_keep_their_order_and_their_side() -> None:
    egress = {**whole()["firewall"]["a,0"], "direction": "egress", "action": "accept"}
    found = lines(firewall.ruleset(alone(firewall={"b,1": {**egress, "action": "drop"}, "b,0": egress})))
    start = found.index("chain egress {")
    both = "ip saddr 10.1.1.0/24 ip daddr 198.51.100.0/24 tcp dport 25"
    assert found[start + 1 : start + 3] == [f"{both} accept", f"{both} drop"]
    assert found[found.index("chain ingress {") + 1] == "}"


def test_without_a_source_nothing_leaves_untranslated() -> None:
    assert 'oifname "public" ip saddr != @own snat ip to 203.0.113.5' in firewall.ruleset(alone())
    bare = firewall.ruleset(alone(nat={}))
    assert "snat" not in bare.replace("srcnat", "")
    assert 'oifname "public" ip saddr != @own drop' in bare


def test_only_the_other_one_of_the_pair_and_the_tunnels_other_end_are_heard() -> None:
    text = firewall.ruleset(config())
    assert "ip saddr 169.254.1.2 ip protocol 112 accept" in text
    assert 'iifname "wg0" ip saddr 169.254.64.2 udp dport 4789 accept' in text
    assert "ip daddr @own udp dport { 51820 } accept" in text
    assert "112" not in firewall.ruleset(alone())


def test_across_a_stretch_go_only_frames_of_the_range_and_nothing_of_the_gateway() -> None:
    bridged = firewall.ruleset(config()).partition("table bridge router {")[2]
    found = lines(bridged)
    accepts = [line for line in found if line.endswith("accept")]
    assert len(accepts) == 4
    assert all("10.1.1.0/24" in line for line in accepts)
    for word in ("arp saddr ip", "arp daddr ip", "ip saddr", "ip daddr"):
        assert found.index(f'oifname "vx7" {word} 10.1.1.1 drop') < found.index(accepts[2])
    assert 'iifname "vx7" udp dport { 67, 68 } drop' in found
    assert "table bridge router {" not in firewall.ruleset(alone())


def test_the_kernel_takes_the_rules() -> None:
    if shutil.which("nft") is None:
        pytest.skip("looking at rules needs nftables")
    for each in (config(), alone(forwards={"a": forward(to_port=22)}), Reader().read({})):
        done = subprocess.run(
            ["unshare", "-rn", "nft", "-c", "-f", "-"],
            input=firewall.ruleset(each),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0 or "not supported" in done.stderr or "Operation not permitted" in done.stderr, (
            done.stderr
        )


def test_leases_and_names_of_several_networks() -> None:
    networks = {
        **whole()["networks"],
        "n2": {"range": "10.2.0.0/16", "gateway": "10.2.0.1", "domain": "b.acme.internal", "dns": ["192.0.2.1"]},
    }
    hosts = {**whole()["hosts"], "52:54:00:01:00:02": {"network": "n2", "address": "10.2.3.4", "names": ["db", "sql"]}}
    hosts["52:54:00:01:00:03"] = {"network": "n2", "address": "10.2.3.5", "names": []}
    both = config(networks=networks, hosts=hosts)
    settings = lines(names.settings(both))
    assert "dhcp-range=set:n1,10.2.0.0,static,255.255.0.0,12h" in settings
    assert "dhcp-option=tag:n0,option:dns-server,10.1.1.1" in settings
    assert "dhcp-option=tag:n1,option:dns-server,192.0.2.1" in settings
    assert {"local=/a.acme.internal/", "local=/b.acme.internal/", "dhcp-ignore=tag:!known", "no-resolv"} <= set(
        settings
    )
    assert names.leases(both).splitlines()[1:] == ["52:54:00:01:00:02,10.2.3.4,db", "52:54:00:01:00:03,10.2.3.5"]
    assert "10.2.3.4 db.b.acme.internal db sql.b.acme.internal sql\n" in names.hosts(both)
    assert names.resolvers(both) == "server=192.0.2.53\n"


def test_a_guest_more_changes_nothing_that_needs_a_restart() -> None:
    hosts = {**whole()["hosts"], "52:54:00:01:00:02": {"network": "n1", "address": "10.1.1.11", "names": ["db"]}}
    assert names.settings(config()) == names.settings(config(hosts=hosts, resolvers={}))


def test_a_balancer_checks_its_members_and_says_who_asked() -> None:
    found = lines(balancing.settings(config().balancers))
    start = found.index("listen b0")
    assert found[start + 1 : start + 4] == ["bind 203.0.113.5:80", "mode http", "balance source"]
    assert "http-request set-header X-Forwarded-For %[src]" in found
    assert "http-check send meth GET uri /health" in found
    assert "server m0 10.1.1.10:80 check inter 2000ms fastinter 500ms fall 2 rise 2" in found
    stats = "# pxname,svname,status\nb0,FRONTEND,OPEN\nb0,m0,DOWN 1/2\nb0,BACKEND,UP\n"
    assert balancing.health(stats, config().balancers) == {"b1": {"v1:80": "down"}}
    assert balancing.health("", config().balancers) == {"b1": {}}


def test_a_tunnel_and_what_is_known_of_its_peers() -> None:
    (tunnel,) = config().tunnels
    text = lines(tunnels.settings(tunnel))
    assert text[0] == "[Interface]"
    assert {"ListenPort = 51820", "AllowedIPs = 10.2.0.0/16", "Endpoint = 198.51.100.9:51820"} <= set(text)
    dump = f"wg0\tx\ty\t51820\toff\nwg0\t{OTHER}\t(none)\t198.51.100.9:51820\t10.2.0.0/16\t1000\t5\t6\t25\n"
    assert tunnels.health(dump, config().tunnels, 1020) == {"t1": {OTHER: "up"}}
    assert tunnels.health(dump, config().tunnels, 1300) == {"t1": {OTHER: "down"}}


def test_the_shared_addresses_and_the_way_out_move_together() -> None:
    here = config()
    assert here.pair is not None
    text = pair.keepalived(here, here.pair)
    assert "10.1.1.1/24 dev guests" in text
    assert "203.0.113.5/24 dev public" in text
    assert "0.0.0.0/0 via 203.0.113.1 dev public onlink" in text
    assert "nopreempt" in text
    yielding = pair.keepalived(here, here.pair._replace(yields=True))
    assert "nopreempt" not in yielding
    assert "priority 1\n" in yielding
    sync = pair.conntrackd(here, here.pair)
    assert "IPv4_Destination_Address 169.254.1.2" in sync
    assert "IPv4_address 203.0.113.5\n" in sync


NICS = {
    "eth0": Device("eth0", MAC, False, "", frozenset()),
    "eth1": Device("eth1", "52:54:00:00:00:02", False, "", frozenset()),
}


def named(**addresses: frozenset[str]) -> Seen:
    """Return a machine whose NICs have their names and are up."""
    macs = {"guest": MAC, "public": "52:54:00:00:00:02"}
    made = {name: Device(name, mac, True, "", addresses.get(name, frozenset())) for name, mac in macs.items()}
    return Seen(devices=made, routes=frozenset())


def test_nics_are_found_by_their_macs_and_missing_ones_waited_for() -> None:
    steps = links.names(alone(), Seen(devices=NICS, routes=frozenset()))
    assert "link set eth0 name guest" in steps.commands
    assert "link set eth1 name public" in steps.commands
    only = links.names(alone(), Seen(devices={"eth0": NICS["eth0"]}, routes=frozenset()))
    assert [text for text in only.waiting if "52:54:00:00:00:02" in text]
    wrong = Seen(
        devices={"guest": NICS["eth1"]._replace(name="guest"), "public": NICS["eth0"]._replace(name="public")},
        routes=frozenset(),
    )
    assert [line for line in links.names(alone(), wrong).commands if " name " in line] == [
        "link set guest name notguest",
        "link set public name guest",
        "link set notguest name public",
    ]
    assert links.names(alone(), named()).commands == []


def test_addresses_and_routes_are_changed_only_where_they_differ() -> None:
    now = named(guest=frozenset({"10.1.1.1/24", "10.9.9.9/24"}))
    found = links.addresses(alone(), now, keeps_shared=False)
    assert found.commands == [
        "address delete 10.9.9.9/24 dev guest",
        "address add 203.0.113.5/24 dev public",
        "route replace default via 203.0.113.1 dev public proto static onlink",
    ]
    assert found.added == [("public", "203.0.113.5")]
    done = named(guest=frozenset({"10.1.1.1/24"}), public=frozenset({"203.0.113.5/24"}))
    done = done._replace(routes=frozenset({("default", "203.0.113.1", "public")}))
    assert links.addresses(alone(), done, keeps_shared=False).commands == []


def test_what_a_pair_shares_is_left_to_keepalived_and_taken_away_before_it_starts() -> None:
    here = config(tunnels={}, stretches={})
    held = named(guest=frozenset({"10.1.1.1/24", "169.254.1.1/30"}), public=frozenset({"203.0.113.5/24"}))
    assert links.addresses(here, held, keeps_shared=True).commands == []
    gone = links.addresses(here, held, keeps_shared=False).commands
    assert gone == ["address delete 10.1.1.1/24 dev guest", "address delete 203.0.113.5/24 dev public"]


def test_a_stretch_puts_the_guest_nic_into_a_bridge_and_its_end_takes_it_out() -> None:
    steps = links.devices(config(), named())
    assert "link add wg0 type wireguard" in steps.commands
    assert f"link add guests address {MAC} type bridge stp_state 0 mcast_snooping 0 forward_delay 0" in steps.commands
    assert "link set guest master guests" in steps.commands
    assert "link set vx7 master guests" in steps.commands
    made = named().devices | {name: Device(name, "", True, "", frozenset()) for name in ("guests", "vx7", "wg0")}
    commands = links.devices(alone(), Seen(devices=made, routes=frozenset())).commands
    assert commands == ["link delete guests", "link delete vx7", "link delete wg0"]
