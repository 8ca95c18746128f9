"""What every way into a guest promises, simulated or real."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from pileus.drivers.host.errors import DriverError
from pileus.drivers.host.guest.base import Console, Guest, Seed, SeedNic

if TYPE_CHECKING:
    from tests.contract.guest.guest_rigs import MACHINE, Rig
else:
    from guest_rigs import MACHINE, Rig

pytestmark = pytest.mark.anyio

LIMIT_S = 20

SEED = Seed(
    instance_id="i-1",
    hostname="web-1",
    nics=(SeedNic(mac="52:54:00:12:34:56", addresses=("10.1.1.10/24",), gateway="10.1.1.1"),),
)


async def read_until(console: Console, wanted: bytes) -> bytes:
    found = b""
    async with asyncio.timeout(LIMIT_S):
        while wanted not in found:
            part = await console.read()
            assert part, f"the console ended after {found!r}"
            found += part
    return found


async def open_served(rig: Rig, guest: Guest) -> Console:
    """Return a console that the guest's side has taken: what is typed has arrived there."""
    console = await guest.console(MACHINE)
    before = len(rig.typed())
    await console.write(b"\n")
    await rig.until_typed(lambda typed: len(typed) > before)
    return console


async def test_a_console_shows_what_is_printed_and_carries_what_is_typed(rig: Rig) -> None:
    await rig.start()
    console = await open_served(rig, rig.guest())
    await rig.print(b"login: ")
    assert await read_until(console, b"login: ") == b"login: "
    await console.write(b"root\n")
    await rig.until_typed(lambda typed: typed.endswith(b"root\n"))


async def test_a_second_open_takes_the_console_over(rig: Rig) -> None:
    await rig.start()
    guest = rig.guest()
    first = await open_served(rig, guest)
    second = await open_served(rig, guest)
    await rig.print(b"hello")
    assert await read_until(second, b"hello") == b"hello"
    async with asyncio.timeout(LIMIT_S):
        assert await first.read() == b""
    with pytest.raises(DriverError, match="closed"):
        await first.write(b"x")


async def test_a_console_can_be_closed_and_opened_again(rig: Rig) -> None:
    await rig.start()
    guest = rig.guest()
    for _ in range(3):
        console = await open_served(rig, guest)
        await console.close()
        await console.close()
        assert await console.read() == b""


async def test_a_reader_gets_the_last_words_and_then_the_end_when_the_machine_dies(rig: Rig) -> None:
    await rig.start()
    console = await open_served(rig, rig.guest())
    await rig.print(b"going down")
    await read_until(console, b"going down")
    await rig.stop()
    async with asyncio.timeout(LIMIT_S):
        assert await console.read() == b""
        assert await console.read() == b""


async def test_a_machine_that_does_not_run_has_no_console(rig: Rig) -> None:
    with pytest.raises(DriverError) as caught:
        await rig.guest().console(MACHINE)
    assert caught.value.reason == "NoConsole"
    await rig.start()
    await rig.stop()
    with pytest.raises(DriverError) as caught:
        await rig.guest().console(MACHINE)
    assert caught.value.reason == "NoConsole"


async def test_the_log_keeps_what_nobody_watched(rig: Rig) -> None:
    await rig.start()
    await rig.print(b"one two three")
    assert await rig.guest().log(MACHINE, 5) == b"three"
    assert await rig.guest().log(MACHINE, 1000) == b"one two three"
    assert await rig.guest().log(MACHINE, 0) == b""


async def test_a_machine_that_never_ran_has_an_empty_log(rig: Rig) -> None:
    assert await rig.guest().log("unknown", 100) == b""


async def test_the_log_is_read_over_a_rotation_and_goes_on_after_it(rig: Rig) -> None:
    await rig.start()
    guest = rig.guest()
    await rig.print(b"a" * 60 + b"b" * 60)
    await guest.rotate(100)
    await rig.print(b"c" * 50)
    assert await guest.log(MACHINE, 60) == b"b" * 10 + b"c" * 50
    assert await guest.log(MACHINE, 1000) == b"a" * 40 + b"b" * 60 + b"c" * 50


async def test_a_guest_that_prints_without_end_keeps_twice_the_limit_at_most(rig: Rig) -> None:
    await rig.start()
    guest = rig.guest()
    for turn in range(20):
        await rig.print(b"%04d" % turn * 30)
        await guest.rotate(100)
        assert rig.log_bytes() <= 200
    assert (await guest.log(MACHINE, 8)) == b"00190019"


async def test_a_short_log_is_not_rotated(rig: Rig) -> None:
    await rig.start()
    await rig.print(b"x" * 100)
    await rig.guest().rotate(100)
    await rig.guest().rotate(100)
    assert await rig.guest().log(MACHINE, 1000) == b"x" * 100


async def test_writing_a_seed_again_gives_the_same_path(rig: Rig) -> None:
    guest = rig.guest()
    first = await guest.write_seed(MACHINE, SEED)
    assert first == await guest.write_seed(MACHINE, SEED)
    assert first == await rig.guest().write_seed(MACHINE, SEED)


@pytest.mark.parametrize(
    "seed",
    [
        Seed(instance_id='i"\nlocal-hostname: "evil', hostname="a"),
        Seed(instance_id="", hostname="a"),
        Seed(instance_id="i-1", hostname="a b"),
        Seed(instance_id="i-1", hostname="-a"),
        Seed(instance_id="i-1", hostname="a\nruncmd:"),
        Seed(instance_id="i-1", hostname=".".join(["a" * 40, "b" * 40])),
        Seed(instance_id="i-1", hostname="a", ssh_keys=("ssh-rsa",)),
        Seed(instance_id="i-1", hostname="a", ssh_keys=('ssh-ed25519 AAAAAAAAAAAAAAAA x\n  - "ssh-ed25519 B',)),
        Seed(instance_id="i-1", hostname="a", nics=(SeedNic(mac="52:54", addresses=()),)),
        Seed(instance_id="i-1", hostname="a", nics=(SeedNic(mac="52:54:00:12:34:56", addresses=("10.1.1.10",)),)),
        Seed(instance_id="i-1", hostname="a", nics=(SeedNic(mac="52:54:00:12:34:56", addresses=("10.1.1.300/24",)),)),
        Seed(instance_id="i-1", hostname="a", nics=(SeedNic(mac="52:54:00:12:34:56", addresses=("fe80::1%x/64",)),)),
        Seed(
            instance_id="i-1",
            hostname="a",
            nics=(SeedNic(mac="52:54:00:12:34:56", addresses=("10.1.1.1/24",), gateway="10.1.1.1; reboot"),),
        ),
        Seed(
            instance_id="i-1",
            hostname="a",
            nics=(SeedNic(mac="52:54:00:12:34:56", addresses=("10.1.1.1/24",), dns=("1.1.1.1\n",)),),
        ),
        Seed(instance_id="i-1", hostname="a", user_data="\ud800"),
        Seed(instance_id="i-1", hostname="a", user_data="x" * (1 << 20) + "y"),
    ],
)
async def test_a_seed_that_is_not_what_it_should_be_is_refused(rig: Rig, seed: Seed) -> None:
    with pytest.raises(DriverError) as caught:
        await rig.guest().write_seed(MACHINE, seed)
    assert caught.value.reason == "BadSeed"


async def test_removing_a_machine_leaves_no_log_and_ends_its_console(rig: Rig) -> None:
    await rig.start()
    guest = rig.guest()
    await guest.write_seed(MACHINE, SEED)
    await rig.print(b"x" * 300)
    await guest.rotate(100)
    console = await open_served(rig, guest)
    await guest.remove(MACHINE)
    async with asyncio.timeout(LIMIT_S):
        assert await console.read() == b""
    assert rig.log_bytes() == 0
    assert await guest.log(MACHINE, 100) == b""
    await guest.remove(MACHINE)
    await guest.remove("never-seen")
