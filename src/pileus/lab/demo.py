"""``make demo``: two tenants with the same addresses on one host, shown through the CLI and on the switch itself.

Everything it shows is looked up where it is: console logs, the switch's own counters, processes, taps and files.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from msgspec import Struct

from pileus.drivers.host.ovs.real import OpenVSwitch
from pileus.drivers.host.paths import HostPaths

ACCOUNTS = ("acme", "umbrella")
STRANGER = {"acme": "10.1.1.22", "umbrella": "10.1.1.21"}
"""An address that only the other account has."""
OWN = {"acme": "10.1.1.21", "umbrella": "10.1.1.22"}
WEB, DB = "10.1.1.10", "10.1.1.11"

# timeout(1), because wget -T ends with SIGSEGV in Debian 12's busybox 1.35.
SCRIPT = """#!/bin/sh
n=0
until timeout 2 wget -q -O /tmp/page http://{sibling}/ 2>/dev/null || [ $n -ge 60 ]; do n=$((n+1)); sleep 1; done
ping -c 3 -W 1 {sibling} >/tmp/sibling 2>&1 && said=answered || said="NOT answered"
echo "DEMO $(hostname) of {account}: ping of its sibling {sibling}: $said ($(grep received /tmp/sibling))"
echo "DEMO $(hostname) of {account}: page of its sibling: $(cat /tmp/page)"
ping -c 3 -W 1 {stranger} >/tmp/stranger 2>&1 && said=ANSWERED || said="never answered"
echo "DEMO $(hostname) of {account}: ping of the other account's {stranger}: $said ($(grep received /tmp/stranger))"
echo "DEMO done"
"""


class Failed(Exception):
    """The demo did not show what it is to show."""


class Run(Struct, frozen=True):
    """Where this demo runs."""

    folder: Path
    began: float

    @property
    def data(self) -> Path:
        """The cloud's state."""
        return self.folder / "data"

    @property
    def environment(self) -> dict[str, str]:
        """Keeps the demo's key away from the user's own contexts."""
        return {**os.environ, "PILEUS_CONFIG": str(self.folder / "config.json"), "NO_COLOR": "1"}

    def say(self, text: str) -> None:
        """Print a line with the seconds since the start."""
        print(f"[{time.monotonic() - self.began:5.1f} s] {text}", flush=True)

    def pileus(self, *arguments: str, shown: bool = True, timeout_s: float = 120.0) -> str:
        """Run a command as a user would and return what it printed. Raises: Failed."""
        if shown:
            print(f"  $ pileus {' '.join(arguments)}", flush=True)
        done = subprocess.run(
            [sys.executable, "-m", "pileus.cli.main", *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        if done.returncode != 0:
            raise Failed(f"pileus {' '.join(arguments)} ended with {done.returncode}: {done.stderr.strip()}")
        if shown and done.stdout:
            print("".join(f"    {line}\n" for line in done.stdout.splitlines()), end="", flush=True)
        return done.stdout


@contextmanager
def running() -> Iterator[Run]:
    """Give a cloud in a folder of its own for the block, and take all of it down afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="pileus-demo-"))
    run = Run(folder, time.monotonic())
    try:
        run.say("starting a cloud of its own (state in a temporary folder, port chosen by the system)")
        run.pileus("up", "--data", str(run.data), "--port", "0", "--detach", timeout_s=240)
        yield run
    finally:
        run.say("taking the cloud down")
        run.pileus("down", "--data", str(run.data), "--delete", "-y")
        shutil.rmtree(folder, ignore_errors=True)


def make_tenants(run: Run) -> None:
    """Make two accounts with two VMs each: the same range, the same addresses."""
    run.say("two tenants, the same range 10.1.1.0/24, the same addresses, all on this host")
    for account in ACCOUNTS:
        run.pileus("create", "account", account)
    for account in ACCOUNTS:
        for name, address, sibling, extra in (("web", WEB, DB, OWN[account]), ("db", DB, WEB, "")):
            script = run.folder / f"{account}-{name}.sh"
            script.write_text(SCRIPT.format(account=account, sibling=sibling, stranger=STRANGER[account]))
            more = ["--extra-addresses", extra] if extra else []
            run.pileus("create", "vm", name, "--account", account, "--image", "tiny", "--offering", "tiny", "--network",
                       "default", "--address", address, *more, "--user-data", str(script))  # fmt: skip
    for account in ACCOUNTS:
        run.pileus("wait", "vm", "web", "db", "--account", account, "--for", "ready", "--timeout", "60")
    run.pileus("get", "vm", "-A", "-o", "wide")


def read_consoles(run: Run) -> None:
    """Show what each VM found out, from its console. Raises: Failed."""
    run.say("each VM pings its sibling and an address that only the other account has, and prints what it saw")
    for account in ACCOUNTS:
        for name in ("web", "db"):
            log = _until(partial(_console, run, account, name), "DEMO done", f"the console of {name} of {account}")
            lines = [
                line[line.index("DEMO ") + 5 :] for line in log.splitlines() if "DEMO " in line and "echo" not in line
            ]
            for line in lines[:-1]:
                print(f"    {line}", flush=True)
            text = "\n".join(lines)
            if ": answered (3" not in text or "never answered" not in text or "hello from" not in text:
                raise Failed(f"{name} of {account} did not see what it should")


def _console(run: Run, account: str, name: str) -> str:
    return run.pileus("logs", "vm", name, "--account", account, shown=False)


def _until(look: Callable[[], str], text: str, what: str, limit_s: float = 120.0) -> str:
    """Return what ``look`` gives once ``text`` is in it. Raises: Failed."""
    end = time.monotonic() + limit_s
    while text not in (seen := look()):
        if time.monotonic() > end:
            raise Failed(f"{what} does not show {text!r}: {seen[-500:]}")
        time.sleep(0.5)
    return seen


def count_frames(run: Run) -> None:
    """Show the switch's own count of frames delivered to each port, by the VLAN they came from. Raises: Failed."""
    run.say("frames that the switch delivered to each port, by the VLAN of the sender (its own counters)")
    switch = OpenVSwitch(HostPaths.under(run.data / "host"))

    async def look() -> tuple[dict[str, dict[int, int]], dict[str, int]]:
        await switch.open()
        counts = await switch.vlan_counts()
        vlans = {id: fact.vlan for id, fact in (await switch.observe()).items()}
        await switch.close()
        return counts, vlans

    counts, vlans = asyncio.run(look())
    ports = {port["id"]: port for port in _json(run, "get", "port", "-A", "-o", "json")["items"]}
    every = sorted(set(vlans.values()))
    print(
        f"    {'PORT':24} {'ACCOUNT':10} {'OWN VLAN':9} " + " ".join(f"from VLAN {vlan:<5}" for vlan in every),
        flush=True,
    )
    for id, by_vlan in sorted(counts.items(), key=lambda item: (vlans[item[0]], item[0])):
        row = " ".join(f"{by_vlan.get(vlan, 0):<15}" for vlan in every)
        print(f"    {ports[id]['name']:24} {ports[id]['account']:10} {vlans[id]:<9} {row}", flush=True)
        foreign = {vlan: frames for vlan, frames in by_vlan.items() if vlan != vlans[id] and frames}
        if foreign or not by_vlan.get(vlans[id]):
            raise Failed(f"port {ports[id]['name']} got frames of other VLANs ({foreign}), or none of its own")


def _json(run: Run, *arguments: str) -> dict[str, list[dict[str, str]]]:
    import json

    result: dict[str, list[dict[str, str]]] = json.loads(run.pileus(*arguments, shown=False))
    return result


def stop_start_delete(run: Run) -> None:
    """Stop, start and delete everything through the CLI."""
    run.say("stopping and starting one VM: the guest is asked to power off, and boots from its own disk again")
    run.pileus("stop", "vm", "web", "--account", "acme", "--wait")
    run.pileus("start", "vm", "web", "--account", "acme", "--wait")
    run.say("deleting both accounts with everything in them")
    for account in ACCOUNTS:
        run.pileus("delete", "account", account, "-y", "--wait")
    run.pileus("get", "vm", "-A")


def show_nothing_left(run: Run) -> None:
    """Look for what could have been left behind, where it would be. Raises: Failed."""
    run.say("what is left of them on the host and in the database")
    paths = HostPaths.under(run.data / "host")
    links = subprocess.run(
        ["ip", "-n", paths.namespace, "-o", "link", "show", "type", "tun"], capture_output=True, text=True, check=True
    )
    switch = OpenVSwitch(paths)

    async def ports() -> int:
        await switch.open()
        found = len(await switch.observe())
        await switch.close()
        return found

    with sqlite3.connect(f"file:{run.data / 'pileus.db'}?mode=ro", uri=True) as database:
        rows = database.execute(
            "SELECT count(*) FROM resource WHERE account_id <> '' OR kind = 'tenancy.account'"
        ).fetchone()[0]
        claims = database.execute(
            "SELECT count(*) FROM claim WHERE space LIKE 'vlan/%' OR space LIKE 'address/%' OR space = 'mac'"
        ).fetchone()[0]
        charges = database.execute("SELECT count(*) FROM charge").fetchone()[0]
    left = {
        "QEMU processes": len(_qemus(paths)),
        "taps": sum("br-" not in line and "ovs-" not in line for line in links.stdout.splitlines()),
        "switch ports": asyncio.run(ports()),
        "machine folders": _count(paths.state / "machines"),
        "volume files": _count(paths.pool / "volumes"),
        "rows of tenants": rows,
        "claims of VLANs, addresses, MACs": claims,
        "charges": charges,
    }
    for what, count in left.items():
        print(f"    {count} {what}", flush=True)
    if any(left.values()):
        raise Failed(f"something was left behind: {left}")


def _count(folder: Path) -> int:
    return len(list(folder.iterdir())) if folder.is_dir() else 0


def _qemus(paths: HostPaths) -> list[int]:
    """Return the QEMU processes that have a file of this host's run folder open: they are given nothing but descriptors."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            command = (entry / "cmdline").read_bytes()
            files = [os.readlink(entry / "fd" / number) for number in os.listdir(entry / "fd")]
        except OSError:  # ended meanwhile
            continue
        if command.startswith(b"qemu-system") and any(file.startswith(f"{paths.run}/") for file in files):
            found.append(int(entry.name))
    return found


def main() -> None:
    """Run the demo; exit code 1 when it did not show what it is to show."""
    began = time.monotonic()
    try:
        with running() as run:
            make_tenants(run)
            read_consoles(run)
            count_frames(run)
            stop_start_delete(run)
            show_nothing_left(run)
    except Failed as error:
        print(f"FAILED: {error}", file=sys.stderr)
        sys.exit(1)
    print(f"the demo took {time.monotonic() - began:.0f} s: two tenants, four VMs, not one frame across, nothing left")


if __name__ == "__main__":
    main()
