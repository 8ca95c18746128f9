"""From the API's create to a guest that says it is ready, against plain QEMU booting the same image the same way.

Both boot the image tiny by its kernel, with a fresh qcow2 overlay, a NoCloud seed and a NIC, under TCG (the reference's
overlay and seed are made before its clock starts). Turns alternate, so that other work on the machine meets both.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.clouds import PILEUS, Api, context_of, folder
from benchmarks.report import Report, Result, median, ratio
from pileus.drivers.host.guest.base import Seed, SeedNic
from pileus.drivers.host.guest.real import GuestChannel
from pileus.drivers.host.paths import HostPaths
from pileus.image.cache import built_image
from pileus.image.types import BuiltImage

READY = b"PILEUS-READY"
FACTOR, EXTRA_S = 1.1, 0.5
"""The bar: at most 1.1 times plain QEMU, and half a second."""
LIMIT_S = 180.0
POLL_S = 0.005
MEMORY_MIB, DISK_GIB = 128, 1
NAME, MAC = "plain", "52:54:00:12:34:56"


def run(report: Report, *, quick: bool) -> None:
    """Measure."""
    image = built_image("tiny")
    missing = [tool for tool in ("qemu-system-x86_64", "ovs-vswitchd", "xorriso") if shutil.which(tool) is None]
    if image is None or missing or os.geteuid() != 0:
        report.say(
            f"real VM: left out; needs root, the image tiny (make setup) and {', '.join(missing) or 'its tools'}"
        )
        return
    rounds = 2 if quick else 7
    report.say(f"real VM: {rounds} boots through the API and {rounds} of plain QEMU in turn, under TCG")
    with folder("vm") as where:
        data = where / "data"
        pileus("up", "--data", str(data), "--port", "0", "--accelerator", "tcg", "--detach")
        try:
            _measure(report, data, image, where, rounds)
        finally:
            pileus("down", "--data", str(data), "--delete", "-y")


def _measure(report: Report, data: Path, image: BuiltImage, where: Path, rounds: int) -> None:
    api = Api(context_of("local"))
    api.call("POST", "/v1/tenancy.account", {"name": "acme"})
    plain: list[float] = []
    through: list[float] = []
    started: list[float] = []
    for number in range(rounds + 1):
        plain_s = _plain_s(image, where / f"plain-{number}")
        through_s, started_s = _through_s(api, data, f"web-{number}")
        if number > 0:  # the first turn fills the page cache and the host's image cache
            plain.append(plain_s)
            through.append(through_s)
            started.append(started_s)
    reference_s = median(plain)
    bar_s = round(FACTOR * reference_s + EXTRA_S, 2)
    reference = f"plain QEMU: {reference_s:.2f} s; bar: {FACTOR} times and {EXTRA_S} s"
    report.add(
        Result(name="real VM: create to guest ready, median", value=median(through), unit="s", bar=bar_s,
               ratio=ratio(median(through), reference_s), reference=reference)
    )  # fmt: skip
    report.add(Result(name="real VM: create to QEMU started, median", value=median(started), unit="s"))
    report.add(Result(name="real VM: plain QEMU to guest ready, median", value=reference_s, unit="s"))
    report.say(f"real VM: through {[round(s, 2) for s in through]} plain {[round(s, 2) for s in plain]}")


def pileus(*arguments: str) -> None:
    """Run a command that must succeed."""
    subprocess.run([*PILEUS, *arguments], check=True, stdout=subprocess.DEVNULL, timeout=LIMIT_S)


def _through_s(api: Api, data: Path, name: str) -> tuple[float, float]:
    """Return the seconds from create to the guest's word, and to QEMU's start; the VM is gone afterwards."""
    body = {"name": name, "account": "acme", "desired": {"offering": "tiny"}}
    began = time.monotonic()
    vm: dict[str, Any] = api.call("POST", "/v1/compute.vm", body)
    log = HostPaths.under(data / "host").console_log(vm["id"])
    until(log.exists, f"QEMU of {name} started")
    started_s = time.monotonic() - began
    until(lambda: READY in log.read_bytes(), f"guest {name} ready")
    took_s = time.monotonic() - began
    api.call("DELETE", f"/v1/compute.vm/{name}", account="acme")
    until(lambda: not api.call("GET", "/v1/compute.vm", account="acme", name=name)["items"], f"VM {name} gone")
    return took_s, started_s


def until(true: Callable[[], bool], what: str) -> None:
    """Return once ``true`` holds. Raises: RuntimeError when it does not in LIMIT_S."""
    end = time.monotonic() + LIMIT_S
    while not true():
        if time.monotonic() > end:
            raise RuntimeError(f"not {what} within {LIMIT_S} s")
        time.sleep(POLL_S)


def _plain_s(image: BuiltImage, where: Path) -> float:
    """Return the seconds from starting QEMU to the guest's word."""
    paths = HostPaths(state=where / "state", run=where / "run")
    paths.machine(NAME).mkdir(parents=True)
    nic = SeedNic(mac=MAC, addresses=("10.1.1.2/24",), gateway="10.1.1.1", dns=())
    seed = Seed(instance_id=NAME, hostname=NAME, ssh_keys=(), user_data="", nics=(nic,))
    asyncio.run(GuestChannel(paths).write_seed(NAME, seed))
    disk = where / "root.qcow2"
    make = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", str(image.disk), str(disk), f"{DISK_GIB}G"]
    subprocess.run(make, check=True)
    command = [
        "qemu-system-x86_64", "-M", "pc", "-accel", "tcg,tb-size=64", "-cpu", "max", "-m", str(MEMORY_MIB),
        "-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio",
        "-kernel", str(image.kernel), "-initrd", str(image.initrd), "-append", image.append,
        "-drive", f"if=none,id=root,file={disk},format=qcow2", "-device", "virtio-blk-pci,drive=root",
        "-drive", f"if=none,id=seed,file={paths.seed(NAME)},format=raw,readonly=on", "-device", "virtio-blk-pci,drive=seed",
        "-netdev", "user,id=net,restrict=on", "-device", f"virtio-net-pci,netdev=net,mac={MAC},romfile=",
    ]  # fmt: skip
    began = time.monotonic()
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as machine:
        assert machine.stdout is not None
        try:
            if not any(READY in line for line in machine.stdout):
                raise RuntimeError("plain QEMU ended before its guest was ready")
            return time.monotonic() - began
        finally:
            machine.kill()
