"""Routers of a one-machine cloud: ready after the first VM is asked for, against plain QEMU; a rule in force; 500 rules.

Plain QEMU boots the same image the same way until its init has done its work; a router is ready only when its node has
proved itself and runs its document, so the reference is the smaller part. Under TCG; turns alternate.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

from benchmarks.clouds import Api, context_of, folder
from benchmarks.real_vm import pileus, until
from benchmarks.report import Report, Result, median, ratio
from pileus.image.cache import built_image
from pileus.image.types import BuiltImage

BOOTED = b"PILEUS-APPLIANCE"
RULE_BAR_S = 2.0
RULES = 500


def run(report: Report, *, quick: bool) -> None:
    """Measure."""
    image = built_image("appliance")
    missing = [tool for tool in ("qemu-system-x86_64", "ovs-vswitchd", "xorriso") if shutil.which(tool) is None]
    if image is None or missing or os.geteuid() != 0:
        report.say("routers: left out; needs root, the image appliance (make setup), QEMU, Open vSwitch and xorriso")
        return
    rounds = 2 if quick else 5
    report.say(f"routers: {rounds} routers and {rounds} boots of plain QEMU in turn, then single rules, under TCG")
    with folder("routers") as where:
        data = where / "data"
        pileus("up", "--data", str(data), "--port", "0", "--accelerator", "tcg", "--detach")
        try:
            api = Api(context_of("local"))
            account = _measure_starts(report, api, image, where, rounds)
            _measure_rules(report, api, account, 3 if quick else 12)
        finally:
            pileus("down", "--data", str(data), "--delete", "-y")


def _measure_starts(report: Report, api: Api, image: BuiltImage, where: Path, rounds: int) -> str:
    """Return the account whose router is up at the end."""
    plain: list[float] = []
    through: list[float] = []
    for number in range(rounds + 1):
        account = f"a{number}"
        plain_s = _plain_s(image, where / f"plain-{number}.qcow2")
        through_s = _router_s(api, account)
        if number > 0:  # the first turn fills the page cache and the host's image cache
            plain.append(plain_s)
            through.append(through_s)
        if number == rounds:
            return _report_starts(report, plain, through, account)
        api.call("DELETE", f"/v1/tenancy.account/{account}")
        until(lambda: not api.call("GET", "/v1/compute.vm", all_accounts=1, owned=1)["items"], "VMs gone")
    raise RuntimeError("no rounds")


def _report_starts(report: Report, plain: list[float], through: list[float], account: str) -> str:
    reference_s = median(plain)
    report.add(
        Result(name="routers: create of the first VM to router ready, median", value=median(through), unit="s",
               ratio=ratio(median(through), reference_s), reference=f"plain QEMU to init done: {reference_s:.2f} s")
    )  # fmt: skip
    report.say(f"routers: through {[round(s, 2) for s in through]} plain {[round(s, 2) for s in plain]}")
    return account


def _measure_rules(report: Report, api: Api, account: str, count: int) -> None:
    took = []
    for number in range(count):
        name = f"f{number}"
        began = time.monotonic()
        api.call("POST", "/v1/gateway.forward", _forward(account, name, 8000 + number))
        until(lambda name=name: _is_ready(api, "gateway.forward", name, account), "a rule in force")  # type: ignore[misc]
        took.append(time.monotonic() - began)
    value = median(took)
    report.add(Result(name="routers: rule asked for to in force, median", value=value, unit="s", bar=RULE_BAR_S,
                      ratio=ratio(value, RULE_BAR_S), reference="the bar"))  # fmt: skip
    rules = [
        {"direction": "ingress", "action": "drop", "protocol": "tcp", "remotes": [f"198.51.{n // 250}.{n % 250}/32"],
         "port_first": 22, "port_last": 22}
        for n in range(RULES)
    ]  # fmt: skip
    began = time.monotonic()
    api.call("POST", "/v1/gateway.firewall", {"name": "many", "account": account, "desired": {"rules": rules}})
    until(lambda: _is_ready(api, "gateway.firewall", "many", account), "the rules in force")
    report.add(Result(name=f"routers: {RULES} firewall rules in force", value=time.monotonic() - began, unit="s"))


def _router_s(api: Api, account: str) -> float:
    """Return the seconds from the create of the account's first VM until its router is ready."""
    api.call("POST", "/v1/tenancy.account", {"name": account})
    began = time.monotonic()
    api.call("POST", "/v1/compute.vm", {"name": "web", "account": account, "desired": {"offering": "tiny"}})
    until(lambda: _state(api, account) == "ready", f"router of {account} ready")
    return time.monotonic() - began


def _state(api: Api, account: str) -> str:
    found: list[dict[str, Any]] = api.call("GET", "/v1/gateway.router", account=account)["items"]
    return str(found[0]["observed"]["state"]) if found and found[0]["observed"] else ""


def _is_ready(api: Api, kind: str, name: str, account: str) -> bool:
    found = api.call("GET", f"/v1/{kind}/{name}", account=account)
    return bool(found["conditions"][0]["status"] == "true")


def _forward(account: str, name: str, port: int) -> dict[str, Any]:
    return {"name": name, "account": account, "desired": {"port": port, "vm": "web", "vm_port": 80}}


def _plain_s(image: BuiltImage, disk: Path) -> float:
    """Return the seconds from starting QEMU until the appliance's init has done its work."""
    make = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", str(image.disk), str(disk)]
    subprocess.run(make, check=True)
    command = [
        "qemu-system-x86_64", "-M", "pc", "-accel", "tcg,tb-size=64", "-cpu", "max", "-m", "192",
        "-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio",
        "-kernel", str(image.kernel), "-initrd", str(image.initrd), "-append", image.append,
        "-drive", f"if=none,id=root,file={disk},format=qcow2", "-device", "virtio-blk-pci,drive=root",
        "-device", "virtio-serial-pci",
    ]  # fmt: skip
    began = time.monotonic()
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as machine:
        assert machine.stdout is not None
        try:
            if not any(BOOTED in line for line in machine.stdout):
                raise RuntimeError("plain QEMU ended before its guest was up")
            return time.monotonic() - began
        finally:
            machine.kill()
