"""The tiny image as tenants see it: booted under QEMU without acceleration, watched on its console."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pileus.drivers.host.guest.base import Seed, SeedNic
from pileus.drivers.host.guest.iso import make_iso
from pileus.drivers.host.paths import HostPaths
from pileus.image.build import build
from pileus.image.tiny_build import TINY
from pileus.image.types import BuildError

if TYPE_CHECKING:
    from tests.vm.tiny_machine import LIMIT_S, MAC, NAME, TinyMachine
else:
    from tiny_machine import LIMIT_S, MAC, NAME, TinyMachine

pytestmark = pytest.mark.anyio

NIC = SeedNic(mac=MAC, addresses=("10.9.1.10/24",), gateway="10.9.1.1", dns=("10.9.1.2",))
CARD = ("-netdev", "hubport,id=hub-nic0,hubid=0", "-device", f"virtio-net-pci,netdev=hub-nic0,mac={MAC}")

LOOK_AROUND = """#!/bin/sh
echo "address: $(ip -o -4 address show eth0 | awk '{ print $4 }')"
echo "route: $(ip route | grep ^default)"
echo "dns: $(cat /etc/resolv.conf)"
echo "page: $(wget -q -O - http://127.0.0.1/)"
echo "ssh: $(nc 127.0.0.1 22 < /dev/null | head -n 1)"
echo "root MiB: $(df -m / | awk 'NR == 2 { print $2 }')"
echo "memory MiB: $(free -m | awk 'NR == 2 { print $2 }')"
sleep 1000 &
printf 'last words without a line end'
exit 3
"""


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The image, built once for all tests, or taken from the folder in PILEUS_TINY_IMAGE."""
    if shutil.which("qemu-system-x86_64") is None or shutil.which("xorriso") is None:
        pytest.skip("booting the image needs qemu-system-x86 and xorriso")
    if "PILEUS_TINY_IMAGE" in os.environ:
        return Path(os.environ["PILEUS_TINY_IMAGE"])
    folder = tmp_path_factory.mktemp("tiny")
    try:
        build(TINY, folder, print)
    except BuildError as exc:
        if exc.reason in ("MissingPackages", "NoPackageSource"):
            pytest.skip(str(exc))
        raise
    return folder


@pytest.fixture
def paths(tmp_path: Path) -> Iterator[HostPaths]:
    with tempfile.TemporaryDirectory(prefix="pt") as run:
        yield HostPaths(state=tmp_path / "state", run=Path(run))


@pytest.fixture
async def machine(image: Path, paths: HostPaths) -> AsyncIterator[TinyMachine]:
    made = TinyMachine(image, paths)
    yield made
    await made.stop()


async def test_it_comes_up_with_network_web_server_and_ssh_and_then_runs_the_users_script(machine: TinyMachine) -> None:
    await machine.write_seed(Seed(instance_id="i-1", hostname="web-1", nics=(NIC,), user_data=LOOK_AROUND))
    await machine.start(*CARD)
    assert await machine.ready() == "web-1"
    await machine.until(r"^PILEUS-USER-DATA exit 3$")
    ready, _, printed = machine.said.partition("PILEUS-READY")
    assert "address:" not in ready
    lines = printed.splitlines()[1:]
    assert lines[:5] == [
        "address: 10.9.1.10/24",
        "route: default via 10.9.1.1 dev eth0 onlink ",
        "dns: nameserver 10.9.1.2",
        "page: hello from web-1",
        lines[4],
    ]
    assert lines[4].startswith("ssh: SSH-2.0-dropbear")
    assert int(lines[5].removeprefix("root MiB: ")) > 900
    assert int(lines[6].removeprefix("memory MiB: ")) < 128
    # No prompt got in between: the last words stand as the script wrote them, and the prompt comes after its end.
    assert lines[7:9] == ["last words without a line end", "PILEUS-USER-DATA exit 3"]
    assert "10.9.1.10" in await machine.shell("ip address")
    print({wanted: round(seconds, 2) for wanted, seconds in machine.seconds_to.items()})


async def test_what_is_written_survives_power_off_and_the_script_runs_once_per_instance(machine: TinyMachine) -> None:
    script = "#!/bin/sh\necho run-$(cat /root/runs 2> /dev/null | wc -l)\necho x >> /root/runs\n"
    await machine.write_seed(Seed(instance_id="i-1", hostname="first", user_data=script))
    await machine.start()
    await machine.until(r"^run-0$")
    await machine.until(r"^PILEUS-USER-DATA exit 0$")
    key = await machine.shell("md5sum /etc/dropbear/ed25519")
    await machine.shell("echo kept > /root/kept; echo mine > /www/index.html")
    print(f"power button: {await machine.press_power():.2f} s")

    await machine.start()
    assert await machine.ready() == "first"
    assert (await machine.shell("cat /root/kept /www/index.html")).split() == ["kept", "mine"]
    assert await machine.shell("md5sum /etc/dropbear/ed25519") == key
    assert (await machine.shell("wc -l < /root/runs")).strip() == "1"
    assert "recovery complete" not in await machine.shell("dmesg")  # the file system was left clean
    await machine.shell("sync")
    await machine.stop()

    await machine.write_seed(Seed(instance_id="i-2", hostname="second", user_data=script))
    await machine.start()
    assert await machine.ready() == "second"
    await machine.until(r"^run-1$")
    await machine.until(r"^PILEUS-USER-DATA exit 0$")
    assert await machine.shell("md5sum /etc/dropbear/ed25519") != key
    assert (await machine.shell("cat /root/kept /www/index.html")).split() == ["kept", "mine"]


async def test_the_power_button_ends_it_within_two_seconds_with_a_busy_script(machine: TinyMachine) -> None:
    script = "#!/bin/sh\ntrap '' TERM\necho in\nsleep 1000\n"
    await machine.write_seed(Seed(instance_id="i-1", hostname="a", user_data=script))
    await machine.start()
    await machine.until(r"^in$")
    seconds = await machine.press_power()
    print(f"power button: {seconds:.2f} s, load {os.getloadavg()[0]:.1f}")
    assert seconds < 2 * max(1.0, os.getloadavg()[0])


async def test_the_power_button_lets_programs_finish_what_they_do_on_term(machine: TinyMachine) -> None:
    script = "#!/bin/sh\ntrap 'usleep 300000; echo flushed > /root/flushed; exit' TERM\necho in\nsleep 1000\n"
    await machine.write_seed(Seed(instance_id="i-1", hostname="a", user_data=script))
    await machine.start()
    await machine.until(r"^in$")
    await machine.press_power()
    await machine.start()
    await machine.ready()
    assert (await machine.shell("cat /root/flushed")).strip() == "flushed"


@pytest.mark.parametrize("kind", ["q35", pytest.param("pc", marks=pytest.mark.long)])
async def test_it_boots_from_its_own_disk_and_grows_with_it(machine: TinyMachine, kind: str) -> None:
    await machine.write_seed(Seed(instance_id="i-1", hostname="disk-1"))
    await machine.start(direct=False, machine=kind)
    assert await machine.ready() == "disk-1"
    assert int(await machine.shell("df -m / | awk 'NR == 2 { print $2 }'")) > 900
    await machine.press_power()
    await asyncio.to_thread(subprocess.run, ["qemu-img", "resize", "-q", str(machine.disk), "3G"], check=True)
    await machine.start(direct=False, machine=kind)
    await machine.ready()
    assert int(await machine.shell("df -m / | awk 'NR == 2 { print $2 }'")) > 2900
    print({wanted: round(seconds, 2) for wanted, seconds in machine.seconds_to.items()})


async def test_cloud_config_gives_keys_and_commands(machine: TinyMachine) -> None:
    config = """#cloud-config
ssh_authorized_keys:
  - ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAICloudConfig you@there
packages: [nginx]
runcmd:
- echo "a: b" # a comment of YAML
- [ echo, "it's $HOME", 'x  y' ]
- 'touch /root/done'
"""
    key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIMetaDataKey1 me@home"
    await machine.write_seed(Seed(instance_id="i-1", hostname="a", ssh_keys=(key,), user_data=config))
    await machine.start()
    await machine.until(r"^PILEUS-USER-DATA exit 0$")
    assert "\nPILEUS-USER-DATA ignored packages\na: b\nit's $HOME x  y\n" in machine.said
    assert "/root/done" in await machine.shell("ls /root/done")
    keys = (await machine.shell("cat /root/.ssh/authorized_keys")).splitlines()
    assert keys == [key, "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAICloudConfig you@there"]


async def test_nothing_in_a_hostile_seed_is_run_and_the_machine_still_comes_up(
    machine: TinyMachine, tmp_path: Path
) -> None:
    folder = tmp_path / "seed"
    folder.mkdir()
    bad = "$(touch /owned)`touch /owned`;touch /owned"
    (folder / "meta-data").write_text(f'instance-id: "{bad}"\nlocal-hostname: {bad}\npublic-keys:\n- {bad}\n')
    network = f"version: 2\nethernets:\n  {bad}:\n    match: {{macaddress: '{bad}'}}\n    addresses: ['{bad}']\n"
    network += f"  b:\n    match:\n      macaddress: {MAC}\n    mtu: {bad}\n    addresses: ['{bad}', 10.9.1.10/24]\n"
    (folder / "network-config").write_text(network + f"    gateway4: {bad}\n    nameservers:\n      search: [{bad}]\n")
    (folder / "user-data").write_bytes(b"\x1f\x8b" + os.urandom(200) + bad.encode())
    await make_iso(folder, "cidata", machine.paths.seed(NAME))
    await machine.start(*CARD)
    assert await machine.ready() == "tiny"
    await machine.until(r"^PILEUS-USER-DATA ignored: neither a #! script nor #cloud-config$")
    assert "10.9.1.10/24" in await machine.shell("ip address show eth0")
    assert "owned" not in await machine.shell("ls /")
    assert "lost+found" in await machine.shell("ls /")


async def test_without_a_seed_it_comes_up_with_its_own_name(machine: TinyMachine) -> None:
    await machine.start()
    assert await machine.ready() == "tiny"
    assert (await machine.shell("cat /proc/sys/kernel/hostname")).strip() == "tiny"


async def test_a_seed_in_a_cd_drive_is_found(machine: TinyMachine) -> None:
    await machine.write_seed(Seed(instance_id="i-1", hostname="from-cd"))
    seed = str(machine.paths.seed(NAME))
    drive = ("-drive", f"if=none,id=cd,file={seed},format=raw,readonly=on,media=cdrom")
    await machine.start("no-seed", *drive, "-device", "virtio-scsi-pci", "-device", "scsi-cd,drive=cd")
    assert await machine.ready() == "from-cd"


async def test_a_plugged_nic_gets_its_address_by_dhcp_and_a_plugged_disk_can_be_used(machine: TinyMachine) -> None:
    # The machine is its own DHCP server: its first NIC serves the second one over a hub inside QEMU.
    server = """#!/bin/sh
printf 'start 10.9.1.50\\nend 10.9.1.50\\ninterface eth0\\noption dns 10.9.1.7\\noption router 10.9.1.1\\n' > /run/d
printf 'lease_file /run/leases\\npidfile /run/udhcpd.pid\\n' >> /run/d
: > /run/leases
udhcpd /run/d
"""
    await machine.write_seed(Seed(instance_id="i-1", hostname="a", nics=(NIC,), user_data=server))
    ports = [word for n in (1, 2) for word in ("-device", f"pcie-root-port,id=port{n},chassis={n},slot={n}")]
    await machine.start(*CARD, *ports, "-netdev", "hubport,id=hub-nic1,hubid=0")
    await machine.until(r"^PILEUS-USER-DATA exit 0$")
    await machine.qmp(
        "device_add", driver="virtio-net-pci", id="nic1", bus="port1", netdev="hub-nic1", mac="52:54:00:12:34:57"
    )
    waiting = "until grep -q nameserver.10.9.1.7 /etc/resolv.conf; do usleep 100000; done"
    await machine.shell(waiting)
    assert "10.9.1.50/24" in await machine.shell("ip -o address show eth1")
    # Its default route stands behind the one of network-config.
    assert (await machine.shell("ip route | head -n 1")).startswith("default via 10.9.1.1 dev eth0 onlink")

    extra = machine.paths.state / "extra.qcow2"
    await asyncio.to_thread(subprocess.run, ["qemu-img", "create", "-q", "-f", "qcow2", str(extra), "64M"], check=True)
    file = {"driver": "file", "filename": str(extra)}
    await machine.qmp("blockdev-add", **{"driver": "qcow2", "node-name": "extra", "file": file})
    await machine.qmp("device_add", driver="virtio-blk-pci", id="disk1", bus="port2", drive="extra")
    await machine.shell("until [ -b /dev/vdc ]; do usleep 100000; done; mkfs.ext4 -q /dev/vdc")
    printed = await machine.shell("mount /dev/vdc /mnt && echo plugged > /mnt/a && cat /mnt/a; umount /mnt")
    assert printed.splitlines()[-1] == "plugged"
    await machine.qmp("device_del", id="nic1")
    await machine.qmp("device_del", id="disk1")
    await machine.shell("while [ -e /sys/class/net/eth1 ] || [ -b /dev/vdc ]; do usleep 100000; done")


@pytest.fixture
async def wire() -> AsyncIterator[str]:
    """A network namespace with a tap, 10.9.1.1/24, for one machine."""
    if os.geteuid() != 0 or shutil.which("ip") is None or shutil.which("ssh") is None:
        pytest.skip("talking to the machine from outside needs root, iproute2 and openssh-client")
    name = f"pileus-tiny-{os.getpid()}"

    async def run(*argv: str) -> None:
        await asyncio.to_thread(subprocess.run, argv, check=True)

    await run("ip", "netns", "add", name)
    try:
        await run("ip", "-n", name, "tuntap", "add", "tap0", "mode", "tap")
        await run("ip", "-n", name, "address", "add", "10.9.1.1/24", "dev", "tap0")
        await run("ip", "-n", name, "link", "set", "tap0", "up")
        yield name
    finally:
        await run("ip", "netns", "delete", name)


async def test_its_owner_gets_in_by_ssh_with_the_key_and_nobody_with_a_password(
    image: Path, paths: HostPaths, wire: str, tmp_path: Path
) -> None:
    key = tmp_path / "key"
    await asyncio.to_thread(subprocess.run, ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    inside = ["ip", "netns", "exec", wire]
    machine = TinyMachine(image, paths, prefix=inside)
    public = await asyncio.to_thread(key.with_suffix(".pub").read_text)
    await machine.write_seed(Seed(instance_id="i-1", hostname="web-1", ssh_keys=(public,), nics=(NIC,)))
    tap = ("-netdev", "tap,id=net0,ifname=tap0,script=no,downscript=no,vnet_hdr=off")
    options = ["-F", "none", "-o", "StrictHostKeyChecking=no", "-o", f"UserKnownHostsFile={tmp_path}/known"]
    options += ["-o", "ConnectTimeout=60", "-o", "NumberOfPasswordPrompts=0", "-o", "IdentitiesOnly=yes"]

    async def ssh(*words: str) -> subprocess.CompletedProcess[str]:
        argv = [*inside, "ssh", *options, *words, "root@10.9.1.10", "hostname; id -u"]
        return await asyncio.to_thread(subprocess.run, argv, capture_output=True, text=True, timeout=LIMIT_S)

    try:
        await machine.start(*tap, "-device", f"virtio-net-pci,netdev=net0,mac={MAC}")
        await machine.ready()
        done = await ssh("-i", str(key))
        assert done.stdout.split() == ["web-1", "0"], done.stderr
        refused = await ssh("-o", "PubkeyAuthentication=no")
        assert refused.returncode == 255
        assert "Permission denied (publickey)" in refused.stderr
    finally:
        await machine.stop()


async def test_without_network_config_its_nic_gets_an_address_by_dhcp(
    image: Path, paths: HostPaths, wire: str, tmp_path: Path
) -> None:
    if shutil.which("busybox") is None:
        pytest.skip("the test's DHCP server is busybox")
    config = tmp_path / "udhcpd.conf"
    lines = ["start 10.9.1.60", "end 10.9.1.60", "interface tap0", "option router 10.9.1.1", "option mtu 1400"]
    lines += [f"lease_file {tmp_path}/leases", f"pidfile {tmp_path}/pid", "option dns 10.9.1.7"]
    await asyncio.to_thread(config.write_text, "\n".join(lines) + "\n")
    await asyncio.to_thread((tmp_path / "leases").touch)
    inside = ["ip", "netns", "exec", wire]
    server = await asyncio.create_subprocess_exec(*inside, "busybox", "udhcpd", "-f", str(config))
    machine = TinyMachine(image, paths, prefix=inside)
    tap = ("-netdev", "tap,id=net0,ifname=tap0,script=no,downscript=no,vnet_hdr=off")
    try:
        await machine.write_seed(Seed(instance_id="i-1", hostname="a"))
        await machine.start(*tap, "-device", f"virtio-net-pci,netdev=net0,mac={MAC}")
        await machine.ready()
        printed = await machine.shell("ip address show eth0; ip route; cat /etc/resolv.conf")
        for wanted in ("10.9.1.60/24", "mtu 1400", "default via 10.9.1.1 dev eth0", "nameserver 10.9.1.7"):
            assert wanted in printed
    finally:
        await machine.stop()
        server.kill()
        await server.wait()


async def test_two_builds_give_the_same_bytes(image: Path, tmp_path: Path) -> None:
    try:
        again = await asyncio.to_thread(build, TINY, tmp_path / "again", print)
    except BuildError as exc:
        pytest.skip(str(exc))
    for name, expected in again.sha256.items():
        content = await asyncio.to_thread((image / name).read_bytes)
        assert hashlib.sha256(content).hexdigest() == expected, name
