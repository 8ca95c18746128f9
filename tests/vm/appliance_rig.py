"""Appliances under QEMU without acceleration, and namespaces as their guests and the world outside; no way out of it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pytest

from pileus.image.recipes import ensure_image
from pileus.image.types import BuildError, BuiltImage

LIMIT_S = 90.0
"""Boots take 3 s on an idle machine; this is for one where much else runs."""

Json = dict[str, Any]
T = TypeVar("T")


def until(what: str, look: Callable[[], T | None], limit_s: float = LIMIT_S, pause_s: float = 0.05) -> T:
    """Return what ``look`` gives as soon as it is something."""
    end = time.monotonic() + limit_s
    while True:
        found = look()
        if found:
            return found
        assert time.monotonic() < end, f"not within {limit_s:g} s: {what}"
        time.sleep(pause_s)


def appliance_image() -> BuiltImage:
    """Return the image; what is missing for it is a visible skip."""
    tools = ("qemu-system-x86_64", "ip", "busybox", "curl", "debugfs", "nft")
    missing = [tool for tool in tools if shutil.which(tool) is None]
    if missing or os.geteuid() != 0:
        pytest.skip(f"appliances between namespaces need root and {', '.join(tools)}")
    try:
        return ensure_image("appliance", print)
    except BuildError as error:
        pytest.skip(f"the image appliance cannot be built here: {error}")


def disk_of_tests(image: BuiltImage, folder: Path) -> Path:
    """Return a raw copy of the image's disk whose init starts the tests' program in place of the product's."""
    disk = folder / "appliance.raw"
    subprocess.run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", str(image.disk), str(disk)], check=True)
    (folder / "inittab").write_text("::sysinit:/etc/rc\n::respawn:/usr/bin/python3 -S /lib/pileus/inside.py\n")
    inside = Path(__file__).parent / "appliance_inside.py"
    commands = ["cd /etc", "rm inittab", f"write {folder / 'inittab'} inittab", "cd /lib/pileus"]
    script = "\n".join([*commands, f"write {inside} inside.py"]) + "\n"
    with disk.open("rb") as file:
        file.seek(446 + 16 + 8)
        (start,) = struct.unpack("<I", file.read(4))
    root = f"{disk}?offset={start * 512}"
    subprocess.run(["debugfs", "-w", "-f", "-", root], input=script.encode(), check=True, capture_output=True)
    return disk


class Host:
    """A network namespace with the NIC eth0 on one segment: a guest, or somebody outside."""

    def __init__(self, name: str) -> None:
        self.name = name

    def run(self, *argv: str, limit_s: float = 30.0, text: str = "") -> subprocess.CompletedProcess[str]:
        """Run a command in it."""
        command = ["ip", "netns", "exec", self.name, *argv]
        return subprocess.run(command, capture_output=True, text=True, timeout=limit_s, input=text, check=False)

    def out(self, *argv: str, limit_s: float = 30.0) -> str:
        """Return what a command printed that must work."""
        done = self.run(*argv, limit_s=limit_s)
        assert done.returncode == 0, f"{argv}: {done.stderr}{done.stdout}"
        return done.stdout

    def fetch(self, url: str, limit_s: float = 5.0) -> str:
        """Return the page, empty when there is none."""
        return self.run("curl", "-s", "-m", str(limit_s), url).stdout

    def spawn(self, *argv: str, **more: Any) -> subprocess.Popen[str]:
        """Start a command in it."""
        return subprocess.Popen(["ip", "netns", "exec", self.name, *argv], text=True, **more)


class Fabric:
    """A namespace with one Linux bridge per segment, appliances' taps on them, and hosts beside."""

    def __init__(self, folder: Path, disk: Path, image: BuiltImage) -> None:
        self.folder, self.disk, self.image = folder, disk, image
        self.name = f"pta{os.getpid()}"
        self._hosts: list[Host] = []
        self._children: list[subprocess.Popen[str]] = []
        self._appliances: list[Appliance] = []
        self._segments: set[str] = set()
        self._run("ip", "netns", "add", self.name)
        self._ip("link", "set", "lo", "up")

    def host(self, name: str, segment: str, address: str = "", gateway: str = "", mac: str = "") -> Host:
        """Return a new host on the segment; without an address it has none until it asks."""
        host = Host(f"{self.name}-{name}")
        self._run("ip", "netns", "add", host.name)
        self._hosts.append(host)
        self._segment(segment)
        port = f"p-{name}"
        self._ip("link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", host.name)
        self._ip("link", "set", port, "master", segment, "up")
        if mac:
            host.out("ip", "link", "set", "eth0", "address", mac)
        host.out("ip", "link", "set", "lo", "up")
        host.out("ip", "link", "set", "eth0", "up")
        if address:
            host.out("ip", "address", "add", address, "dev", "eth0")
        if gateway:
            host.out("ip", "route", "add", "default", "via", gateway)
        return host

    def appliance(self, name: str, nics: Sequence[tuple[str, str]], memory_mib: int = 192) -> Appliance:
        """Return a started appliance with a NIC per (segment, MAC); ready when it has answered."""
        taps = []
        for number, (segment, mac) in enumerate(nics):
            self._segment(segment)
            tap = f"{name}{number}"
            self._ip("tuntap", "add", tap, "mode", "tap")
            self._ip("link", "set", tap, "master", segment, "up")
            taps.append((tap, mac))
        made = Appliance(self, name, taps, memory_mib)
        self._appliances.append(made)
        made.start()
        return made

    def tap(self, name: str, segment: str) -> str:
        """Return a new tap on the segment, for a NIC that is plugged later."""
        self._ip("tuntap", "add", name, "mode", "tap")
        self._ip("link", "set", name, "master", segment, "up")
        return name

    def serve(self, host: Host, port: int, text: str) -> subprocess.Popen[str]:
        """Start a web server that says ``text`` and who asked; it is stopped with the fabric."""
        child = host.spawn("python3", "-u", "-c", SERVER, str(port), text, stdout=subprocess.PIPE)
        self._children.append(child)
        assert child.stdout is not None
        assert child.stdout.readline().strip() == "up"
        return child

    def spawn(self, host: Host, *argv: str, **more: Any) -> subprocess.Popen[str]:
        """Start a command that is stopped with the fabric."""
        child = host.spawn(*argv, **more)
        self._children.append(child)
        return child

    def close(self) -> None:
        """End all that was started."""
        for appliance in self._appliances:
            appliance.kill()
        for child in self._children:
            child.kill()
            child.wait()
            for pipe in (child.stdin, child.stdout):
                if pipe is not None:
                    pipe.close()
        for host in self._hosts:
            subprocess.run(["ip", "netns", "delete", host.name], check=False)
        subprocess.run(["ip", "netns", "delete", self.name], check=False)

    def _segment(self, name: str) -> None:
        if name not in self._segments:
            self._segments.add(name)
            self._ip("link", "add", name, "type", "bridge", "mcast_snooping", "0")
            self._ip("link", "set", name, "up")

    def _ip(self, *words: str) -> None:
        self._run("ip", "-n", self.name, *words)

    @staticmethod
    def _run(*argv: str) -> None:
        subprocess.run(argv, check=True)


class Appliance:
    """One VM; its role is called through the tests' own port."""

    def __init__(self, fabric: Fabric, name: str, taps: list[tuple[str, str]], memory_mib: int) -> None:
        self.fabric, self.name, self.taps, self.memory_mib = fabric, name, taps, memory_mib
        self.folder = fabric.folder / name
        self.folder.mkdir()
        self.disk = self.folder / "disk.qcow2"
        make = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", str(fabric.disk), str(self.disk)]
        subprocess.run(make, check=True)
        self.child: subprocess.Popen[bytes] | None = None
        self.ready_s = 0.0
        self._wire: socket.socket | None = None
        self._pending = b""

    def start(self) -> None:
        """Start QEMU; returns when the machine has said that it is ready."""
        began = time.monotonic()
        port, image = self.folder / "port", self.fabric.image
        port.unlink(missing_ok=True)
        argv = ["ip", "netns", "exec", self.fabric.name, "qemu-system-x86_64", "-M", "q35", "-cpu", "max"]
        argv += ["-accel", "tcg,tb-size=64", "-m", str(self.memory_mib), "-nodefaults", "-no-user-config"]
        argv += ["-display", "none", "-serial", f"file:{self.folder / 'console'}"]
        argv += ["-drive", f"if=none,id=root,file={self.disk},format=qcow2", "-device", "virtio-blk-pci,drive=root"]
        argv += ["-device", "pcie-root-port,id=late-slot,chassis=1"]
        argv += ["-device", "virtio-serial-pci", "-chardev", f"socket,id=test,path={port},server=on,wait=off"]
        argv += ["-device", "virtserialport,chardev=test,name=test.0"]
        argv += ["-qmp", f"unix:{self.folder / 'qmp'},server=on,wait=off"]
        for number, (tap, mac) in enumerate(self.taps):
            argv += ["-netdev", f"tap,id=n{number},ifname={tap},script=no,downscript=no,vnet_hdr=off"]
            argv += ["-device", f"virtio-net-pci,netdev=n{number},mac={mac}"]
        argv += ["-kernel", str(image.kernel), "-initrd", str(image.initrd), "-append", image.append]
        self.child = subprocess.Popen(argv)
        self._wire = until("the machine's port", lambda: _connected(port))
        self._wire.settimeout(LIMIT_S)
        try:
            assert self._line() == "ready"
        except (AssertionError, OSError):
            raise AssertionError(f"it did not come up:\n{self.console()}") from None
        self.ready_s = time.monotonic() - began

    def restart_program(self) -> None:
        """Kill the program that answers here; returns when init has started it again."""
        self._call(op="run", argv=["sh", "-c", "(sleep 0.3; killall -9 python3) > /dev/null 2>&1 &"], text="")
        assert self._line() == "ready"

    def kill(self) -> None:
        """End it as a power cut does."""
        if self.child is not None:
            self.child.kill()
            self.child.wait()
            self.child = None
        if self._wire is not None:
            self._wire.close()
            self._wire = None
        self._pending = b""

    def apply(self, document: Json) -> float:
        """Let the role apply the document; return the seconds it took inside."""
        said = self._call(op="apply", document=document)
        assert "seconds" in said, said
        return float(said["seconds"])

    def refusal(self, document: Json) -> str:
        """Return why the role refuses the document."""
        said = self._call(op="apply", document=document)
        assert "refused" in said, said
        return str(said["refused"])

    def status(self) -> Json:
        """Return what the role says of itself."""
        said = self._call(op="status")
        assert isinstance(said, dict)
        return said

    def run(self, *argv: str, text: str = "") -> str:
        """Return what a command inside printed."""
        said = self._call(op="run", argv=list(argv), text=text)
        assert said.get("code") == 0, said
        return str(said["out"])

    def console(self) -> str:
        """Return the end of what the console printed."""
        file = self.folder / "console"
        return file.read_text(errors="replace")[-4000:] if file.exists() else ""

    def plug(self, tap: str, mac: str) -> None:
        """Plug one more NIC while the machine runs."""
        with socket.socket(socket.AF_UNIX) as wire:
            wire.settimeout(LIMIT_S)
            wire.connect(str(self.folder / "qmp"))
            stream = wire.makefile("rw")
            stream.readline()
            command = f"netdev_add tap,id=late,ifname={tap},script=no,downscript=no,vnet_hdr=off"
            steps: list[Json] = [
                {"execute": "qmp_capabilities"},
                {"execute": "human-monitor-command", "arguments": {"command-line": command}},
                {
                    "execute": "device_add",
                    "arguments": {"driver": "virtio-net-pci", "netdev": "late", "mac": mac, "bus": "late-slot"},
                },
            ]
            for step in steps:
                stream.write(json.dumps(step) + "\n")
                stream.flush()
                while "return" not in (said := json.loads(stream.readline())):
                    assert "error" not in said, said

    def _call(self, **request: Any) -> Json:
        assert self._wire is not None
        self._wire.sendall(json.dumps(request).encode() + b"\n")
        said = self._line()
        assert isinstance(said, dict)
        assert "broke" not in said, said["broke"]
        return said

    def _line(self) -> object:
        assert self._wire is not None
        while b"\n" not in self._pending:
            got = self._wire.recv(65536)
            assert got, f"the machine ended:\n{self.console()}"
            self._pending += got
        line, _, self._pending = self._pending.partition(b"\n")
        return json.loads(line)


def _connected(path: Path) -> socket.socket | None:
    wire = socket.socket(socket.AF_UNIX)
    try:
        wire.connect(str(path))
    except OSError:
        wire.close()
        return None
    return wire


@contextlib.contextmanager
def fabric(folder: Path, disk: Path, image: BuiltImage) -> Iterator[Fabric]:
    """A fabric that is gone afterwards, whatever happens."""
    made = Fabric(folder, disk, image)
    try:
        yield made
    finally:
        made.close()


SERVER = """
import http.server, sys
class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        text = f"{sys.argv[2]} to {self.client_address[0]} for {self.headers.get('X-Forwarded-For')}".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)
    def log_message(self, *words):
        pass
server = http.server.ThreadingHTTPServer(("0.0.0.0", int(sys.argv[1])), Page)
print("up", flush=True)
server.serve_forever()
"""
