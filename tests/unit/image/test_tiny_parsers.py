"""The awk programs of the tiny image, run by the same busybox that runs them in the guest."""

from __future__ import annotations

import random
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

import pileus.image
from pileus.drivers.host.guest.base import Seed, SeedNic
from pileus.drivers.host.guest.seed import seed_files

PROGRAMS = Path(pileus.image.__file__).parent / "tiny"


def awk(program: str, text: str) -> str:
    if shutil.which("busybox") is None:
        pytest.skip("the guest's parsers need busybox")
    argv = ["busybox", "awk", "-F", "\t", "-f", str(PROGRAMS / program)]
    done = subprocess.run(argv, input=text.encode(), capture_output=True, check=True, timeout=20)
    return done.stdout.decode(errors="surrogateescape")


def flatten(text: str) -> list[tuple[str, str]]:
    return [(line.partition("\t")[0], line.partition("\t")[2]) for line in awk("yaml.awk", text).splitlines()]


def flat(value: object, path: str = "") -> list[tuple[str, str]]:
    """Return what the guest's parser shall make of the parsed document."""
    if isinstance(value, dict):
        return [pair for key, one in value.items() for pair in flat(one, f"{path}/{key}" if path else str(key))]
    if isinstance(value, list):
        return [pair for number, one in enumerate(value) for pair in flat(one, f"{path}/{number}")]
    return [(path, str(value))]


@pytest.mark.parametrize(
    "text",
    [
        'a: "b"\nc: d\n',
        "list:\n  - one\n  - two\nafter: x\n",
        "list:\n- one\n- two words\nafter: x\n",
        "a:\n  b:\n    c: d\n  e: f\ng: h\n",
        "routes:\n  - to: x\n    via: y\n  - to: z\n    via: w\n",
        "routes:\n- to: x\n  via: y\n- to: z\n",
        "a: [one, 'two, three', \"four\"]\n",
        'runcmd:\n  - [ls, -l, "a b"]\n  - echo hi\n  - - nested\n    - block\n',
        "# comment\n---\na: b # not this\n\nc: 'd # this'\n",
        "a: it''s\nb: 'it''s'\nc: \"say \\\"hi\\\"\"\n",
        "\"quoted\": v\n'single': w\n",
        "run:\n  - echo http://x/y:z\n  - 'echo \"a: b\"'\n",
        "a: b\r\nc: d\r\n",
    ],
)
def test_plain_yaml_is_read_as_a_yaml_parser_reads_it(text: str) -> None:
    assert flatten(text) == flat(yaml.load(text, Loader=yaml.BaseLoader))


def test_what_is_not_understood_is_named_and_skipped() -> None:
    text = "runcmd:\n  - |\n    echo one\n\n    echo two\n  - echo three\nmap: {a: b}\nempty: {}\nafter: x\n"
    assert flatten(text) == [("!ignored", "runcmd/0"), ("runcmd/1", "echo three"), ("!ignored", "map"), ("after", "x")]


def test_garbage_neither_stops_the_parser_nor_makes_it_loop() -> None:
    number = random.randrange(1 << 32)
    print(f"seed {number}")
    chance = random.Random(number)
    lines = ["".join(chance.choices("ab:- \"'[],#|>{}\t\\%$\x01é", k=chance.randrange(30))) for _ in range(4000)]
    for line in awk("yaml.awk", "\n".join(lines)).splitlines():
        assert "\t" in line
    awk("network.awk", awk("yaml.awk", "ethernets:\n" + "\n".join(f"  {line}" for line in lines)))


def test_the_guest_reads_the_network_that_the_host_wrote() -> None:
    nics = (
        SeedNic(
            mac="52:54:00:AA:34:56", addresses=("10.1.1.10/24", "fd00::5/64"), gateway="10.1.1.1", dns=("9.9.9.9",)
        ),
        SeedNic(mac="52:54:00:12:34:57", addresses=()),
        SeedNic(mac="52:54:00:12:34:58", addresses=("fd01::5/64",), gateway="fe80::1"),
    )
    text = seed_files(Seed(instance_id="i", hostname="h", nics=nics))["network-config"].decode()
    assert awk("network.awk", awk("yaml.awk", text)).splitlines() == [
        "nic 52:54:00:aa:34:56 ",
        "address fd00::5/64",
        "address 10.1.1.10/24",
        "dns 9.9.9.9",
        "route 0.0.0.0/0 10.1.1.1",
        "nic 52:54:00:12:34:57 ",
        "dhcp",
        "nic 52:54:00:12:34:58 ",
        "address fd01::5/64",
        "route ::/0 fe80::1",
    ]


def test_the_guest_reads_network_config_as_people_write_it() -> None:
    text = """network:
  version: 2
  ethernets:
    id0:
      match: {macaddress: '00:00:00:00:00:00'}
      addresses: [10.0.0.1/24]
    id1:
      gateway4: 10.1.1.1
      match:
        macaddress: '52:54:00:12:34:56'
      mtu: 1400
      addresses: [10.1.1.10/24]
      nameservers:
        search: [example.org]
        addresses: [9.9.9.9]
      routes:
      - to: default
        via: 10.1.1.254
      - to: 10.8.0.0/16
        via: 10.1.1.253
"""
    assert awk("network.awk", awk("yaml.awk", text)).splitlines() == [
        "nic 52:54:00:12:34:56 1400",
        "address 10.1.1.10/24",
        "route 0.0.0.0/0 10.1.1.1",
        "search example.org",
        "dns 9.9.9.9",
        "route 0.0.0.0/0 10.1.1.254",
        "route 10.8.0.0/16 10.1.1.253",
    ]


def test_only_words_of_addresses_and_names_come_out_of_network_config() -> None:
    bad = "$(reboot)"
    text = f"ethernets:\n  a:\n    match:\n      macaddress: '52:54:00:12:34:56'\n    mtu: {bad}\n    addresses:\n"
    text += f"      - {bad}\n      - 10.0.0.1/24;reboot\n    gateway4: {bad}\n    gateway6: '::1 dev lo'\n"
    text += f"    routes:\n      - to: {bad}\n        via: 10.0.0.1\n      - to: 10.0.0.0/8\n        via: {bad}\n"
    text += f"    nameservers:\n      addresses: [{bad}]\n      search: ['a b', {bad}]\n"
    assert awk("network.awk", awk("yaml.awk", text)).splitlines() == ["nic 52:54:00:12:34:56 "]
