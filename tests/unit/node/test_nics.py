"""Addresses of an appliance whose role does not set them up itself."""

from __future__ import annotations

import subprocess
import uuid
from pathlib import Path

import pytest

from pileus.node.nics import Nic, commands, find
from pileus.node.seed import Seed, load_seed, seed_text

NIC = Nic("02:50:00:00:00:07", ("10.1.1.7/24", "10.1.1.8/24"), "10.1.1.1", ("10.1.1.1",))


def test_a_seed_carries_the_addresses(tmp_path: Path) -> None:
    seed = Seed("m", b"k" * 32, "serial", "firewall", NIC.mac, (NIC, Nic("02:50:00:00:00:09")))
    (tmp_path / "seed").write_bytes(seed_text(seed))
    assert load_seed(tmp_path / "seed") == seed


def test_an_interface_is_found_by_its_mac_whatever_it_is_called(tmp_path: Path) -> None:
    for name, mac in (("lo", "00:00:00:00:00:00"), ("ens4", "02:50:00:00:00:07")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "address").write_text(f"{mac}\n")
    assert find("02:50:00:00:00:07".upper(), tmp_path) == "ens4"
    assert find("02:50:00:00:00:08", tmp_path) == ""


def test_the_commands_give_a_kernel_the_addresses_and_the_way_out_and_may_be_repeated() -> None:
    if subprocess.run(["ip", "netns", "list"], capture_output=True, check=False).returncode:
        pytest.skip("needs ip netns")
    name = f"nics-{uuid.uuid4().hex[:8]}"
    inside = ["ip", "netns", "exec", name]
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        subprocess.run([*inside, "ip", "link", "add", "eth0", "type", "veth", "peer", "name", "eth1"], check=True)
        subprocess.run([*inside, "ip", "link", "set", "eth1", "up"], check=True)
        for command in [*commands("eth0", NIC), *commands("eth0", NIC)]:
            subprocess.run([*inside, *command], check=True)
        shown = subprocess.run([*inside, "ip", "-br", "address"], check=True, capture_output=True, text=True).stdout
        routes = subprocess.run([*inside, "ip", "route"], check=True, capture_output=True, text=True).stdout
    finally:
        subprocess.run(["ip", "netns", "del", name], check=True)
    assert "10.1.1.7/24 10.1.1.8/24" in shown
    assert "default via 10.1.1.1 dev eth0" in routes
