"""How large a VM becomes, and which host takes it."""

from __future__ import annotations

import random

import pytest
from msgspec.structs import replace

from pileus.compute.offering.types import OfferingDesired, limits
from pileus.compute.sizing import size
from pileus.compute.vm.placement import Candidate, Need, explain, fits, rank, refusal, summary
from pileus.compute.vm.plan import Made, NicKey, matched, refuse_bad_keys
from pileus.compute.vm.types import VmDesired
from pileus.drivers.host.guest.base import Seed
from pileus.drivers.host.guest.seed import seed_files
from pileus.kernel.errors import Invalid
from pileus.tenancy.account.types import VmLimits, lowest

OFFERING = OfferingDesired(vcpus=2, memory_mib=512, disk_gib=4, iops_limit=100)
NEED = Need(zone="z", vcpus=2, memory_mib=512, disk_gib=4)


def host(
    name: str, *, zone: str = "z", vcpus: int = 8, mib: int = 4096, gib: int = 100, refuses: str = ""
) -> Candidate:
    """Return a host."""
    return Candidate(host=name, name=name, zone=zone, vcpus=vcpus, memory_mib=mib, disk_gib=gib, refuses=refuses)


def test_an_offering_gives_its_size_and_limits() -> None:
    got = size(VmDesired(offering="small"), OFFERING, image_gib=1)
    assert (got.vcpus, got.memory_mib, got.disk_gib) == (2, 512, 4)
    assert limits(OFFERING) == VmLimits(iops_limit=100)


@pytest.mark.parametrize(
    ("some", "effective"),
    [
        ((), VmLimits()),
        ((VmLimits(), VmLimits(iops_limit=9)), VmLimits(iops_limit=9)),
        (
            (VmLimits(iops_limit=9, rate_limit_kbps=5), VmLimits(iops_limit=7)),
            VmLimits(iops_limit=7, rate_limit_kbps=5),
        ),
        ((VmLimits(throughput_limit_kib_s=3), VmLimits(throughput_limit_kib_s=8)), VmLimits(throughput_limit_kib_s=3)),
    ],
)
def test_of_several_limits_the_lowest_that_is_set_counts(some: tuple[VmLimits, ...], effective: VmLimits) -> None:
    assert lowest(*some) == lowest(*reversed(some)) == effective


WEB, WEB_9 = ("web", "network", "", ()), ("web", "network", "10.1.1.9", ())
DB = ("db", "network", "", ())


@pytest.mark.parametrize(
    ("wished", "ports", "found"),
    [
        ([WEB, DB], {}, ["", ""]),
        ([WEB, DB], {"p0": WEB, "p1": DB}, ["p0", "p1"]),
        ([DB], {"p0": WEB, "p1": DB}, ["p1"]),
        ([DB, WEB], {"p0": WEB, "p1": DB}, ["p1", "p0"]),
        ([WEB, WEB], {"p0": WEB}, ["p0", ""]),
        ([WEB], {"p0": WEB, "p1": WEB}, ["p0"]),
        ([WEB_9, WEB], {"p0": WEB}, ["", "p0"]),
        ([("", "public", "", ())], {"p0": WEB}, [""]),
    ],
)
def test_each_nic_keeps_the_port_that_was_made_for_it(
    wished: list[NicKey], ports: dict[str, NicKey], found: list[str]
) -> None:
    assert matched(wished, {id: Made(key) for id, key in ports.items()}) == found


def test_a_nic_that_names_the_address_it_got_keeps_its_port() -> None:
    ports = {"p0": Made(WEB, "10.1.1.8"), "p1": Made(WEB, "10.1.1.9"), "p2": Made(DB, "10.1.1.9")}
    assert matched([WEB_9], ports) == ["p1"]
    assert matched([WEB, WEB_9], ports) == ["p0", "p1"]
    assert matched([WEB_9, WEB_9], {**ports, "p3": Made(WEB_9, "10.1.1.9")}) == ["p3", "p1"]


def test_the_disk_is_as_asked_else_the_larger_of_offering_and_image() -> None:
    assert size(VmDesired(), OFFERING, image_gib=9).disk_gib == 9
    assert size(VmDesired(disk_gib=12), OFFERING, image_gib=9).disk_gib == 12
    assert size(VmDesired(vcpus=1, memory_mib=64), None, image_gib=0).disk_gib == 1


def test_a_function_and_its_load_say_the_size() -> None:
    got = size(VmDesired(function="web-server", load=500), None, image_gib=1)
    assert (got.vcpus, got.memory_mib, got.disk_gib) == (4, 1536, 8)
    assert size(VmDesired(function="web-server", disk_gib=40), None, image_gib=9).disk_gib == 40
    assert size(VmDesired(function="web-server"), None, image_gib=9).disk_gib == 9


@pytest.mark.parametrize(
    ("desired", "offering", "message"),
    [
        (VmDesired(offering="small", vcpus=1), OFFERING, "give an offering, or vcpus with memory_mib, not both"),
        (
            VmDesired(offering="small", iops_limit=9),
            OFFERING,
            "an offering says its limits; give iops_limit, or an offering",
        ),
        (VmDesired(vcpus=1), None, "vcpus and memory_mib belong together; give both, or an offering"),
        (VmDesired(memory_mib=64), None, "vcpus and memory_mib belong together; give both, or an offering"),
        (VmDesired(disk_gib=2), OFFERING, "the image needs a disk of 3 GiB, 2 were asked"),
        (VmDesired(load=5), None, "load is that of a function; say which, or leave it out"),
        (VmDesired(function="cache"), OFFERING, "give a function, or an offering, or vcpus with memory_mib, only one"),
        (
            VmDesired(function="cache", memory_mib=64),
            None,
            "give a function, or an offering, or vcpus with memory_mib, only one",
        ),
    ],
)
def test_a_size_that_makes_no_sense_is_refused(
    desired: VmDesired, offering: OfferingDesired | None, message: str
) -> None:
    with pytest.raises(Invalid) as refused:
        size(desired, offering, image_gib=3)
    assert refused.value.message == message
    assert refused.value.field is not None


@pytest.mark.parametrize(
    ("candidate", "need", "reason"),
    [
        (host("a", zone="y"), NEED, "OtherZone"),
        (host("a", refuses="Cordoned"), NEED, "Cordoned"),
        (host("a"), Need(zone="z", vcpus=1, memory_mib=1, disk_gib=1, only_host="b"), "VolumeElsewhere"),
        (host("a", mib=511), NEED, "NoMemory"),
        (host("a", vcpus=1), NEED, "NoVcpus"),
        (host("a", gib=3), NEED, "NoDisk"),
        (host("a", mib=512, vcpus=2, gib=4), NEED, None),
        (host("a"), replace(NEED, uefi="yes"), "NoUefi"),
        (replace(host("a"), uefi="yes"), replace(NEED, uefi="yes"), None),
    ],
)
def test_a_host_refuses_for_the_reason_that_it_has(candidate: Candidate, need: Need, reason: str | None) -> None:
    found = refusal(candidate, need)
    assert (found.reason if found else None) == reason
    assert fits(candidate, need) == (reason is None)


def test_the_host_with_most_memory_free_comes_first_whatever_the_order() -> None:
    seed = 7
    print(f"seed {seed}")
    chance = random.Random(seed)
    hosts = [host(f"h{number:03}", mib=chance.randrange(100, 9000)) for number in range(300)]
    best = rank(hosts, NEED, limit=8)
    expected = sorted(
        (each for each in hosts if each.memory_mib >= 512), key=lambda each: (-each.memory_mib, each.host)
    )
    assert best == expected[:8]
    chance.shuffle(hosts)
    assert rank(hosts, NEED, limit=8) == best


def test_no_host_that_refuses_is_ever_ranked() -> None:
    hosts = [host("a", refuses="Cordoned"), host("b", mib=1), host("c", zone="y")]
    assert rank(hosts, NEED) == []
    assert summary(explain(hosts, NEED)) == (
        "no host takes it: Cordoned, NoMemory, OtherZone; ask for less, or wait until there is room"
    )
    assert summary([]) == "there is no host yet"


KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI" + "A" * 43


@pytest.mark.parametrize("text", [KEY, KEY + " ann@home", f"  {KEY} a: b # c\n"])
def test_a_public_key_line_is_taken_and_a_seed_can_say_it(text: str) -> None:
    refuse_bad_keys([text])
    assert "public-keys" in seed_files(Seed(instance_id="i", hostname="a", ssh_keys=(text,)))["meta-data"].decode()


@pytest.mark.parametrize(
    "text",
    ["nonsense", "", "ssh-rsa", "ssh-ed25519 AAAA", KEY.replace("ed25519", "rsa", 1), KEY[:-2] + "=", KEY + "\n" + KEY],
)
def test_what_is_no_public_key_line_is_refused_and_the_message_says_which(text: str) -> None:
    with pytest.raises(Invalid) as refused:
        refuse_bad_keys([KEY, text])
    assert refused.value.field == "desired.ssh_keys[1]"
    assert refused.value.message == "desired.ssh_keys[1] is not a public key line such as 'ssh-ed25519 AAAA… name'"
