"""Mirrors on three real hosts: what comes into a sniffer's NIC is what passed the VM's, to the byte, and nobody else's."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import struct
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pileus.drivers.host.mirror import devices

if TYPE_CHECKING:
    from tests.vm.realcloud import Json, pids_naming, until
    from tests.vm.reallab import RealLab, labbed
else:
    from realcloud import pids_naming, until
    from reallab import RealLab, labbed

ACCOUNTS = {"acme": "61", "umbrella": "62"}
"""Each account's packets hold its own byte, as ``ping -p`` fills them."""
VMS = {"web": "host1", "peer": "host2", "probe": "host3"}
IDLE_S = 5


@pytest.fixture(scope="module")
def lab() -> Iterator[RealLab]:
    """Two accounts with the same addresses: what is watched on host 1, who watches on host 3, decapsulators on host 2."""
    with labbed("--hosts", "3") as running:
        running.pileus("patch", "zone", "zone1", "--decapsulator-idle-s", str(IDLE_S), "--router", "none")
        for account in ACCOUNTS:
            running.pileus("create", "account", account)
        for name, host in VMS.items():
            running.alone(host, 3)
            for account in ACCOUNTS:
                running.pileus("create", "vm", name, "--account", account)
                running.until_vm(name, lambda vm: bool(vm["host"]), account=account)
        running.alone("host2", 3)
        for account in ACCOUNTS:
            running.pileus("create", "sniffer", "probe", "--vm", "probe", "--account", account)
            for name in VMS:
                running.until_printed(name, "PILEUS-READY", account=account)
        yield running


def test_a_sniffer_gets_the_very_packets_and_nobody_elses(lab: RealLab) -> None:
    sessions = {"acme": ("--expression", "icmp"), "umbrella": ("--expression", "icmp", "--direction", "egress")}
    with watching(lab, sessions):
        taps = {account: (tap_of(lab, "web", account), tap_of(lab, "probe", account)) for account in ACCOUNTS}
        with capturing(lab, taps) as folder:
            for account, pattern in ACCOUNTS.items():
                printed = lab.shell(
                    "web", f"ping -c 10 -A -s 1000 -p {pattern} {_address(lab, 'peer', account)}", account
                )
                assert ", 0% packet loss" in printed
            for account, wanted in (("acme", 20), ("umbrella", 10)):
                until(f"{account} has all", lambda: _counts(lab, account)["delivered"] == wanted)  # noqa: B023
        for account, pattern in ACCOUNTS.items():
            at_source = pings(folder / f"{account}-source.pcap")
            at_sniffer = pings(folder / f"{account}-sniffer.pcap")
            own = _mac(lab, "web", account)
            wanted_frames = at_source if account == "acme" else [frame for frame in at_source if frame[6:12] == own]
            assert [words_of(frame) for frame in at_sniffer] == [words_of(frame) for frame in wanted_frames]
            assert at_sniffer == wanted_frames
            assert len(at_sniffer) == (20 if account == "acme" else 10)
            assert all(bytes.fromhex(pattern * 900) in frame for frame in at_sniffer)
            counts = _counts(lab, account)
            assert counts["sent"] == counts["received"] == counts["forwarded"] == counts["delivered"] == len(at_sniffer)
            assert (counts["lost"], counts["dropped"]) == (0, 0)


@pytest.mark.long
def test_copies_go_on_while_the_agent_is_dead_and_after_the_decapsulator_died(lab: RealLab) -> None:
    peer = _address(lab, "peer", "acme")
    with watching(lab, {"acme": ("--expression", "icmp")}):
        lab.shell("web", f"(ping -c 300 -i 0.1 -q {peer} > /run/pings 2>&1 &)")
        os.kill(_agent_pid(lab, "host1"), signal.SIGKILL)
        before = _counts(lab, "acme")["received"]
        until("copies come from a host without an agent", lambda: _counts(lab, "acme")["received"] >= before + 100)
        lab.lab("start", "host1")
        node = lab.json("get", "node", "decapsulator-zone1-0", "--account", "platform")
        os.kill(lab.machine_pid(node["assigned"]["vm"]), signal.SIGKILL)
        until("its packets lost nothing", lambda: ", 0% packet loss" in lab.shell("web", "cat /run/pings"), limit_s=90)
        until("the decapsulator is back", lambda: _is_received(lab), limit_s=90)


@pytest.mark.long
def test_another_decapsulator_takes_over_from_one_that_died_and_every_packet_is_counted(lab: RealLab) -> None:
    count = 600
    lab.pileus("patch", "zone", "zone1", "--decapsulators", "2")
    with watching(lab, dict.fromkeys(ACCOUNTS, ("--expression", "icmp"))):
        until("both are ready", lambda: _ready_decapsulators(lab) == 2, limit_s=120)
        taps = {account: (tap_of(lab, "web", account), tap_of(lab, "probe", account)) for account in ACCOUNTS}
        with capturing(lab, taps) as folder:
            for account, pattern in ACCOUNTS.items():
                _ping(lab, "web", "peer", count, account, pattern)
            until("packets are counted", lambda: all(_counts(lab, account)["received"] for account in ACCOUNTS))
            used = next(each for each in _decapsulators(lab) if each["observed"]["sessions"])
            node = lab.json("get", "node", used["observed"]["node"], "--account", "platform")
            os.kill(lab.machine_pid(node["assigned"]["vm"]), signal.SIGKILL)
            killed = time.monotonic()
            until("all is at the other one", lambda: _are_elsewhere(lab, used["id"]))
            print(
                f"measured: runs at another decapsulator {time.monotonic() - killed:.1f} s after the first was killed"
            )
            for account in ACCOUNTS:
                assert _answered(lab, "web", account) == count
            for account in ACCOUNTS:
                until(f"{account}: all is counted", lambda: _is_whole(_counts(lab, account), 2 * count))  # noqa: B023
        for account, pattern in ACCOUNTS.items():
            at_source, at_sniffer = (pings(folder / f"{account}-{end}.pcap") for end in ("source", "sniffer"))
            missing = set(at_source).difference(at_sniffer)
            counts = _counts(lab, account)
            print(
                f"measured: {account}: {counts['sent']} copied, {counts['lost']} lost, {len(missing)} not at the sniffer"
            )
            assert len(at_source) == 2 * count
            # The first copy with another key may come after the next one: see docs/limits.md.
            assert sorted(at_sniffer) == sorted(set(at_source) - missing)
            assert all(bytes.fromhex(pattern * 40) in frame for frame in at_sniffer)
            assert len(missing) <= counts["lost"]
    lab.pileus("patch", "zone", "zone1", "--decapsulators", "1")


@pytest.mark.long
@pytest.mark.parametrize("how", ["restarted", "killed"])
def test_a_session_goes_on_when_its_vm_is_restarted_and_counts_every_packet(lab: RealLab, how: str) -> None:
    with watching(lab, {"acme": ("--expression", "icmp")}):
        _ping(lab, "peer", "web", 300, "acme", ACCOUNTS["acme"])
        until("packets are counted", lambda: _counts(lab, "acme")["received"])
        boots = lab.vm("web")["observed"]["boots"]
        if how == "killed":
            os.kill(lab.machine_pid(lab.vm("web")["id"]), signal.SIGKILL)
        else:
            lab.pileus("reboot", "vm", "web", "--account", "acme", "--wait")
        lab.until_vm("web", lambda vm: vm["observed"]["boots"] > boots and vm["observed"]["power"] == "running")
        answered = _answered(lab, "peer", "acme")
        assert 0 < answered < 300
        until("all is counted", lambda: _is_whole(_counts(lab, "acme"), 2 * answered))
        assert _counts(lab, "acme")["lost"] == 0


@pytest.mark.long
def test_a_sniffer_that_takes_nothing_costs_its_own_copies_only(lab: RealLab) -> None:
    sent = 2 * devices.QUEUE_FRAMES // 3
    with watching(lab, {"acme": ("--expression", "icmp"), "umbrella": ("--expression", "icmp")}):
        lab.pileus("pause", "vm", "probe", "--account", "acme", "--wait")
        for account in ACCOUNTS:
            printed = lab.shell("web", f"ping -c {sent} -A -q {_address(lab, 'peer', account)}", account)
            assert ", 0% packet loss" in printed, printed
        until("the copies are counted", lambda: _counts(lab, "acme")["dropped"] > 0)
        until("the other's are whole", lambda: _counts(lab, "umbrella")["delivered"] == 2 * sent)
        assert _counts(lab, "umbrella")["dropped"] == 0
        lab.pileus("resume", "vm", "probe", "--account", "acme", "--wait")


def test_the_live_view_the_file_and_the_flows_say_the_same(lab: RealLab, tmp_path: Path) -> None:
    if shutil.which("tshark") is None:
        pytest.skip("tshark is not installed")
    lab.pileus("create", "session", "kept", "--vm", "web", "--account", "acme", "--expression", "icmp", "--wait",
               "--timeout", "90", timeout_s=100)  # fmt: skip
    lab.shell("web", f"ping -c 4 -A {_address(lab, 'peer', 'acme')}")
    until("all are kept", lambda: _counts(lab, "acme", "kept")["received"] == 8)
    file = tmp_path / "kept.pcapng"
    lab.pileus("mirror", "watch", "session/kept", "--account", "acme", "--count", "8", "--write", str(file))
    shown = subprocess.run(
        ["tshark", "-n", "-r", str(file), "-T", "fields", "-e", "ip.src", "-e", "frame.len"],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    lines = [line.split("\t") for line in shown.stdout.splitlines()]
    flows = json.loads(lab.pileus("mirror", "flows", "session/kept", "--account", "acme", "-o", "json"))["flows"]
    assert len(lines) == 8
    assert sum(sum(flow["packets"]) for flow in flows) == 8
    assert sum(sum(flow["bytes"]) for flow in flows) == sum(int(line[1]) for line in lines)
    lab.pileus("delete", "session", "kept", "--account", "acme", "-y", "--wait")


def test_afterwards_nothing_of_it_is_on_any_host(lab: RealLab) -> None:
    until("the decapsulators are gone", lambda: not _left(lab), limit_s=60)


@contextmanager
def watching(lab: RealLab, sessions: Mapping[str, tuple[str, ...]]) -> Iterator[None]:
    """Mirror the VM web of each account to its probe, for the block."""
    for account, options in sessions.items():
        lab.pileus("create", "session", "tap", "--vm", "web", "--sniffer", "probe", "--account", account, *options)
    for account in sessions:
        lab.pileus("wait", "session", "tap", "--account", account, "--for", "ready", "--timeout", "120", timeout_s=130)
    try:
        yield
    finally:
        for account in sessions:
            lab.pileus("delete", "session", "tap", "--account", account, "-y", "--wait", timeout_s=60)


@contextmanager
def capturing(lab: RealLab, taps: Mapping[str, tuple[str, str]]) -> Iterator[Path]:
    """Capture at each account's source and sniffer for the block, into files of the folder that it gives."""
    children = []
    for account, pair in taps.items():
        for role, host, tap in zip(("source", "sniffer"), ("host1", "host3"), pair, strict=True):
            file = lab.data / f"{account}-{role}.pcap"
            namespace = f"{lab.prefix()}-{host}"
            argv = [
                "ip",
                "netns",
                "exec",
                namespace,
                "tcpdump",
                "-i",
                tap,
                "-U",
                "-w",
                str(file),
                "--immediate-mode",
                "icmp",
            ]
            child = subprocess.Popen(argv, stderr=subprocess.PIPE, text=True)
            assert child.stderr is not None
            while "listening" not in child.stderr.readline():
                assert child.poll() is None, "tcpdump ended"
            children.append(child)
    try:
        yield lab.data
    finally:
        for child in children:
            child.send_signal(signal.SIGINT)
            child.communicate(timeout=20)


def pings(file: Path) -> list[bytes]:
    """Return the frames of a pcap file, in their order (pcap-savefile(5))."""
    content = file.read_bytes()
    frames, at = [], 24
    while at < len(content):
        (length,) = struct.unpack_from("<I", content, at + 8)
        frames.append(content[at + 16 : at + 16 + length])
        at += 16 + length
    return frames


def words_of(frame: bytes) -> str:
    """Say from whom to whom, of which ICMP type, and the how many-th a frame is: a difference is seen at once."""
    kind, (number,) = frame[34], struct.unpack_from(">H", frame, 40)
    return f"{frame[6:12].hex(':')} to {frame[:6].hex(':')}: type {kind}, number {number}, {len(frame)} bytes"


def _port(lab: RealLab, vm: str, account: str) -> dict[str, dict[str, str]]:
    id = lab.vm(vm, account)["assigned"]["ports"][0]
    port: dict[str, dict[str, str]] = lab.json("get", "port", id, "--account", account)
    return port


def tap_of(lab: RealLab, vm: str, account: str) -> str:
    return _port(lab, vm, account)["observed"]["tap"]


def _mac(lab: RealLab, vm: str, account: str) -> bytes:
    return bytes.fromhex(_port(lab, vm, account)["assigned"]["mac"].replace(":", ""))


def _address(lab: RealLab, vm: str, account: str) -> str:
    return str(lab.vm(vm, account)["observed"]["addresses"][0])


def _counts(lab: RealLab, account: str, session: str = "tap") -> dict[str, int]:
    counts: dict[str, int] = lab.json("get", "session", session, "--account", account)["observed"]["counts"]
    return counts


def _is_received(lab: RealLab) -> bool:
    """Ping once, and tell whether the copies came to the decapsulator."""
    before = _counts(lab, "acme")["received"]
    lab.shell("web", f"ping -c 2 -A {_address(lab, 'peer', 'acme')}")
    until("the counts are new", lambda: _counts(lab, "acme")["sent"] >= before, limit_s=30)
    return _counts(lab, "acme")["received"] > before


def _ping(lab: RealLab, vm: str, other: str, count: int, account: str, pattern: str) -> None:
    """Begin to ping one VM from another, 20 times a second."""
    address = _address(lab, other, account)
    lab.shell(vm, f"(ping -c {count} -i 0.05 -q -p {pattern} {address} > /run/pings 2>&1 &)", account)


def _answered(lab: RealLab, vm: str, account: str) -> int:
    """Return how many pings were answered, when they are over."""
    pattern = r"(\d+) packets received"
    printed = until("pings are over", lambda: re.search(pattern, lab.shell(vm, "cat /run/pings", account)), limit_s=120)
    return int(printed.group(1))


def _is_whole(counts: dict[str, int], least: int) -> bool:
    """Tell whether at least so many packets were copied, and each is counted as received or as lost."""
    return counts["sent"] >= least and counts["seen"] >= counts["sent"] == counts["received"] + counts["lost"]


def _decapsulators(lab: RealLab) -> list[Json]:
    found: list[Json] = lab.json("get", "decapsulator", "--all-accounts")["items"]
    return found


def _ready_decapsulators(lab: RealLab) -> int:
    return sum((each["observed"] or {}).get("state") == "ready" for each in _decapsulators(lab))


def _are_elsewhere(lab: RealLab, first: str) -> bool:
    """Tell whether all sessions run, at another decapsulator than the first."""
    used = [each["id"] for each in _decapsulators(lab) if each["observed"]["sessions"]]
    sessions = [lab.json("get", "session", "tap", "--account", account) for account in ACCOUNTS]
    return bool(used) and first not in used and all(each["observed"]["state"] == "running" for each in sessions)


def _agent_pid(lab: RealLab, host: str) -> int:
    """Return the process of a host's agent."""
    found = pids_naming(str(lab.data / "hosts" / host), "agent")
    assert found, f"no agent of {host}"
    return min(found)


def _left(lab: RealLab) -> list[str]:
    """Return what of mirrors is still on the hosts, or known."""
    found = [
        f"{host}: {line}"
        for host in VMS.values()
        for line in lab.machine(host, "ip", "-o", "link").stdout.splitlines()
        if "pileus-copies" in line
    ]
    items = lab.json("get", "decapsulator", "--all-accounts")["items"]
    return found + [item["name"] for item in items]
