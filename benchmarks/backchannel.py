"""A ping of a node, and a request to its role, against bare echoes on two more virtio-serial ports of the same guest.

The guest is the appliance image with two programs more, which write back what they read: one does nothing but wait for
that, as does its caller; one is on an event loop, as is its caller, and as every agent is. The bar is about the first.
Turns alternate, so that other work on the machine meets all. Also: a document of 600 leases and 500 rules, taken whole.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import struct
import subprocess
import time
from pathlib import Path

from benchmarks.clouds import folder
from benchmarks.report import Report, Result, percentile, ratio
from pileus.drivers.host.guest.backchannel import Backchannel
from pileus.drivers.host.guest.base import Document, GuestRequest, Seed
from pileus.drivers.host.guest.carriers import dial_socket
from pileus.drivers.host.guest.flood import Limits
from pileus.drivers.host.guest.real import GuestChannel
from pileus.drivers.host.paths import HostPaths
from pileus.image.cache import built_image
from pileus.image.types import BuiltImage

BAR = 2.0
LIMIT_S = 180.0
NAME = "bench-node"
REQUEST = b"x" * 64
MEMORY_MIB = 192

PORT = b"""import asyncio, glob, os, select, sys, time
found = []
while not found:
    time.sleep(0.2)
    found = [name for name in glob.glob("/sys/class/virtio-ports/*/name") if open(name).read() == sys.argv[1] + "\\n"]
port = os.open("/dev/" + found[0].split("/")[4], os.O_RDWR)
"""
BARE = b"""while True:
    got = os.read(port, 65536)
    if got:
        os.write(port, got)
    else:
        time.sleep(0.2)
"""
LOOP = b"""poll = select.poll()
poll.register(port, select.POLLIN)
while any(events & select.POLLHUP for _, events in poll.poll(0)):
    time.sleep(0.2)
async def main():
    asyncio.get_running_loop().add_reader(port, lambda: os.write(port, os.read(port, 65536)))
    await asyncio.Event().wait()
asyncio.run(main())
"""
ECHOES = {"bare": PORT + BARE, "loop": PORT + LOOP}


def run(report: Report, *, quick: bool) -> None:
    """Measure."""
    image = built_image("appliance")
    tools = ("qemu-system-x86_64", "qemu-img", "xorriso", "debugfs")
    missing = [tool for tool in tools if shutil.which(tool) is None]
    if image is None or missing or os.geteuid() != 0:
        report.say(f"backchannel: left out; needs root, the image appliance (make setup) and {', '.join(tools)}")
        return
    rounds = 5 if quick else 30
    report.say(f"backchannel: {rounds} times 50 pings and 50 of each echo in turn, under TCG")
    with folder("backchannel") as where:
        asyncio.run(_measure(report, image, where, rounds))


async def _measure(report: Report, image: BuiltImage, where: Path, rounds: int) -> None:
    paths = HostPaths(state=where / "state", run=where / "run")
    paths.machine_run(NAME).mkdir(parents=True)
    seed = Seed(instance_id=NAME, hostname="bench", channel="serial")
    await GuestChannel(paths).write_seed(NAME, seed)
    disk = await asyncio.to_thread(_disk_with_echoes, image, where)
    began = time.monotonic()
    machine = await asyncio.create_subprocess_exec(*_command(image, paths, disk, where), stdin=subprocess.DEVNULL)
    key = bytes.fromhex(paths.channel_key(NAME).read_text())
    channel = Backchannel(NAME, key, dial_socket(paths.channel_socket(NAME), NAME), lambda: None, Limits())
    held = asyncio.create_task(channel.run())
    try:
        async with asyncio.timeout(LIMIT_S):
            while channel.fact.state != "ready":  # noqa: ASYNC110 — milliseconds do not matter here
                await asyncio.sleep(0.01)
        report.add(Result(name="backchannel: QEMU started to node ready", value=time.monotonic() - began, unit="s"))
        await _trips(report, channel, where, rounds)
        before = time.monotonic()
        await channel.configure(_document())
        value = time.monotonic() - before
        report.add(Result(name="backchannel: 600 leases and 500 rules delivered", value=value, unit="s"))
    finally:
        held.cancel()
        await asyncio.gather(held, return_exceptions=True)
        machine.kill()
        await machine.wait()


async def _trips(report: Report, channel: Backchannel, where: Path, rounds: int) -> None:
    found: dict[str, list[float]] = {"bare": [], "loop": [], "ping": [], "request": [], "repeat": []}
    reader, writer = await asyncio.open_unix_connection(str(where / "loop"))
    with socket.socket(socket.AF_UNIX) as port:
        port.settimeout(LIMIT_S)
        port.connect(str(where / "bare"))
        await asyncio.to_thread(_echo, port)
        await _echo_on_loop(reader, writer)
        for turn in range(1, rounds + 1):
            found["request"] += [await _request(channel, 50 * turn + number) for number in range(50)]
            found["repeat"] += [await _request(channel, 50 * turn + 49) for _ in range(50)]
            for _ in range(50):
                before = time.perf_counter()
                await channel.ping(10.0)
                found["ping"].append(time.perf_counter() - before)
            found["bare"] += await asyncio.to_thread(lambda: [_echo(port) for _ in range(50)])
            found["loop"] += [await _echo_on_loop(reader, writer) for _ in range(50)]
    writer.close()
    _say_pings(report, found)
    _say_requests(report, found)


def _say_pings(report: Report, found: dict[str, list[float]]) -> None:
    ping_s, bare_s, loop_s = (percentile(found[name], 50) for name in ("ping", "bare", "loop"))
    report.add(
        Result(name="backchannel: ping and answer, p50", value=1000 * ping_s, unit="ms",
               bar=round(BAR * 1000 * bare_s, 3), ratio=ratio(ping_s, bare_s),
               reference=f"bare echo: {1000 * bare_s:.2f} ms; bar: {BAR:g} times")
    )  # fmt: skip
    report.add(
        Result(name="backchannel: ping and answer, loops, p50", value=1000 * ping_s, unit="ms",
               ratio=ratio(ping_s, loop_s), reference=f"echo on event loops: {1000 * loop_s:.2f} ms")
    )  # fmt: skip
    report.add(
        Result(name="backchannel: ping and answer, p99", value=1000 * percentile(found["ping"], 99), unit="ms",
               ratio=ratio(percentile(found["ping"], 99), percentile(found["bare"], 99)), reference="bare echo, p99")
    )  # fmt: skip


def _say_requests(report: Report, found: dict[str, list[float]]) -> None:
    request_s, repeat_s, bare_s = (percentile(found[name], 50) for name in ("request", "repeat", "bare"))
    late_s = percentile(found["request"], 99)
    report.add(
        Result(name="backchannel: request and answer, p50", value=1000 * request_s, unit="ms",
               bar=round(BAR * 1000 * bare_s, 3), ratio=ratio(request_s, bare_s),
               reference=f"bare echo: {1000 * bare_s:.2f} ms; bar: {BAR:g} times")
    )  # fmt: skip
    report.add(
        Result(name="backchannel: request and answer, p99", value=1000 * late_s, unit="ms",
               ratio=ratio(late_s, percentile(found["bare"], 99)), reference="bare echo, p99")
    )  # fmt: skip
    report.add(
        Result(name="backchannel: request without notes, p50", value=1000 * repeat_s, unit="ms",
               ratio=ratio(repeat_s, bare_s), reference="bare echo; asked again, so answered from the ledger")
    )  # fmt: skip
    report.add(
        Result(name="backchannel: request, notes on disk, p50", value=1000 * (request_s - repeat_s), unit="ms",
               reference="the difference: two flushed writes, and the role's turn")
    )  # fmt: skip


async def _request(channel: Backchannel, sequence: int) -> float:
    """Return the seconds until the request was done, or was said to be done already."""
    asked = GuestRequest(id=f"r-{sequence}", sequence=sequence, deadline=time.time() + 60, payload=REQUEST)
    before = time.perf_counter()
    await channel.request(asked)
    return time.perf_counter() - before


def _echo(port: socket.socket) -> float:
    """Return the seconds until what was sent has come back."""
    before = time.perf_counter()
    port.sendall(REQUEST)
    left = len(REQUEST)
    while left:
        left -= len(port.recv(left))
    return time.perf_counter() - before


async def _echo_on_loop(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> float:
    before = time.perf_counter()
    writer.write(REQUEST)
    await reader.readexactly(len(REQUEST))
    return time.perf_counter() - before


def _disk_with_echoes(image: BuiltImage, where: Path) -> Path:
    """Return a raw copy of the image's disk whose init also starts the echoes."""
    disk = where / "disk.raw"
    subprocess.run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", str(image.disk), str(disk)], check=True)
    with disk.open("rb") as file:
        file.seek(446 + 16 + 8)
        (start,) = struct.unpack("<I", file.read(4))
    root = f"{disk}?offset={start * 512}"
    asked = subprocess.run(["debugfs", "-R", "cat /etc/inittab", root], check=True, capture_output=True).stdout
    lines = ["cd /etc", "rm inittab", f"write {where / 'inittab'} inittab", "cd /lib/pileus"]
    for name, program in ECHOES.items():
        (where / f"{name}.py").write_bytes(program)
        asked += b"::respawn:/usr/bin/python3 -I -S /lib/pileus/%b.py %b\n" % (name.encode(), name.encode())
        lines.append(f"write {where / f'{name}.py'} {name}.py")
    (where / "inittab").write_bytes(asked)
    script = "\n".join(lines) + "\n"
    subprocess.run(["debugfs", "-w", "-f", "-", root], input=script.encode(), check=True, capture_output=True)
    return disk


def _command(image: BuiltImage, paths: HostPaths, disk: Path, where: Path) -> list[str]:
    socket_path, seed = paths.channel_socket(NAME), paths.seed(NAME)
    return [
        "qemu-system-x86_64", "-M", "pc", "-accel", "tcg,tb-size=64", "-cpu", "max", "-m", str(MEMORY_MIB),
        "-nodefaults", "-no-user-config", "-display", "none",
        "-chardev", f"file,id=console,path={where / 'console'}", "-serial", "chardev:console",
        "-kernel", str(image.kernel), "-initrd", str(image.initrd), "-append", image.append,
        "-drive", f"if=none,id=root,file={disk},format=raw", "-device", "virtio-blk-pci,drive=root",
        "-drive", f"if=none,id=seed,file={seed},format=raw,readonly=on", "-device", "virtio-blk-pci,drive=seed",
        "-device", "virtio-serial-pci,id=ports",
        "-chardev", f"socket,id=node,path={socket_path},server=on,wait=off",
        "-device", "virtserialport,bus=ports.0,nr=1,chardev=node,name=pileus.0",
        *(word for number, name in enumerate(ECHOES, 2) for word in _echo_port(where, number, name)),
    ]  # fmt: skip


def _echo_port(where: Path, number: int, name: str) -> list[str]:
    return [
        "-chardev", f"socket,id={name},path={where / name},server=on,wait=off",
        "-device", f"virtserialport,bus=ports.0,nr={number},chardev={name},name={name}",
    ]  # fmt: skip


def _document() -> Document:
    hosts = {
        f"52:54:00:00:{n // 256:02x}:{n % 256:02x}": {
            "network": "n1", "address": f"10.1.{n // 250}.{n % 250 + 1}", "names": [f"vm-{n}"],
        }
        for n in range(600)
    }  # fmt: skip
    rules = {
        f"{n:05}": {
            "direction": "ingress", "action": "accept", "network": "", "protocol": "tcp", "locals": [],
            "remotes": [f"198.51.{n // 250}.{n % 250}/32"], "port_first": n, "port_last": n,
        }
        for n in range(1, 501)
    }  # fmt: skip
    return {"hosts": hosts, "firewall": rules}
