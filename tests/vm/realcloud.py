"""A cloud of real processes for a test: in a folder of its own, on a free port, with its own contexts file.

It is used as a person uses it, through the command ``pileus``, and looked at where things really are: in /proc, in the
namespace of its switch and in its folders. At its end nothing of it may be left, and that is checked.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import pytest

from pileus.cli.client import Client
from pileus.cli.contexts import Context
from pileus.drivers.host.paths import HostPaths
from pileus.image.recipes import ensure_image
from pileus.image.types import BuildError, BuiltImage
from pileus.local.doctor import examine

LIMIT_S = 60.0
"""Boots take 3 s on an idle machine; this is for one where much else runs."""

LOOK_S = 0.05

Json = dict[str, Any]
T = TypeVar("T")


def need_host() -> BuiltImage:
    """Return the image tiny, on a machine that can be a host; anything missing is a visible skip."""
    missing = [f"{finding.subject}: {finding.message}" for finding in examine() if finding.level == "error"]
    if missing:
        pytest.skip(f"real VMs need a machine that can be a host: {'; '.join(missing)}")
    try:
        return ensure_image("tiny", lambda line: None)
    except BuildError as error:
        pytest.skip(f"the image tiny cannot be built here: {error}")


def until(what: str, look: Callable[[], T | None], limit_s: float = LIMIT_S) -> T:
    """Return what ``look`` gives as soon as it is not None and not False."""
    end = time.monotonic() + limit_s
    while True:
        found = look()
        if found is not None and found is not False:
            return found
        assert time.monotonic() < end, f"not within {limit_s:g} s: {what}"
        time.sleep(LOOK_S)


def pids_naming(*texts: str) -> dict[int, str]:
    """Return pid and command line of every process whose command line has one of the texts; not this process."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                words = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:  # ended meanwhile
                continue
            if any(text in words for text in texts):
                found[int(entry.name)] = words[:200]
    return found


def open_files(pid: int) -> set[str]:
    """Return the paths of the files that a process has open; empty when it is gone. QEMU gets nothing but descriptors."""
    found = set()
    with suppress(OSError):  # the process ended meanwhile
        for number in os.listdir(f"/proc/{pid}/fd"):
            with suppress(OSError):  # the descriptor was closed meanwhile
                found.add(os.readlink(f"/proc/{pid}/fd/{number}"))
    return found


def is_qemu(pid: int) -> bool:
    """Tell whether the process is QEMU, and not what will become it or a zombie."""
    try:
        name, _, rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")
    except OSError:
        return False
    return "qemu-system" in name and not rest.lstrip().startswith(("Z", "X"))


class Place:
    """A folder of a test with its contexts file, and the command ``pileus`` in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = folder / "data"
        self.environment = {**os.environ, "PILEUS_CONFIG": str(folder / "config.json"), "NO_COLOR": "1"}
        self.children: list[subprocess.Popen[str]] = []

    def run(
        self,
        *arguments: str,
        timeout_s: float = LIMIT_S,
        text: str = "",
        prefix: Sequence[str] = (),
        **environment: str,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command of ``pileus``, started by the command ``prefix``, to its end, whatever that is."""
        return subprocess.run(
            [*prefix, sys.executable, "-m", "pileus.cli.main", *arguments],
            env={**self.environment, **environment},
            input=text,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    def pileus(self, *arguments: str, timeout_s: float = LIMIT_S) -> str:
        """Return what a command printed that must succeed."""
        done = self.run(*arguments, timeout_s=timeout_s)
        assert done.returncode == 0, f"pileus {' '.join(arguments)}: {done.returncode} {done.stderr} {done.stdout}"
        return done.stdout

    def refused(self, *arguments: str, code: int, timeout_s: float = LIMIT_S) -> str:
        """Return what a command says on standard error that must end with an exit code, and print nothing else."""
        done = self.run(*arguments, timeout_s=timeout_s)
        assert done.returncode == code, f"pileus {' '.join(arguments)}: {done.returncode} {done.stderr} {done.stdout}"
        assert "Traceback" not in done.stderr, done.stderr
        return done.stderr

    def json(self, *arguments: str) -> Json:
        """Return what a command printed as JSON."""
        result: Json = json.loads(self.pileus(*arguments, "-o", "json"))
        return result

    def start(self, name: str, *arguments: str) -> subprocess.Popen[str]:
        """Start a command that stays; its output goes to files of its name."""
        with (self.folder / f"{name}.out").open("a") as out, (self.folder / f"{name}.err").open("a") as errors:
            child = subprocess.Popen(
                [sys.executable, "-m", "pileus.cli.main", *arguments],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=errors,
                start_new_session=True,
                text=True,
            )
        self.children.append(child)
        return child

    def said(self, name: str) -> str:
        """Return what a started command has printed."""
        return (self.folder / f"{name}.out").read_text()

    def file(self, name: str, text: str) -> str:
        """Return the path of a new file with a text."""
        path = self.folder / name
        path.write_text(text)
        return str(path)

    def kill(self, child: subprocess.Popen[str], number: signal.Signals = signal.SIGKILL) -> None:
        """End a started command and wait until it is gone."""
        if child.poll() is None:
            child.send_signal(number)
        child.wait(timeout=LIMIT_S)
        self.children.remove(child)


class RealCloud(Place):
    """A cloud that runs; its VMs are those of the host whose state lies below ``data``."""

    @property
    def paths(self) -> HostPaths:
        """The folders of the host's drivers."""
        return HostPaths.under(self.data / "host")

    def client(self) -> Client:
        """Return a connection to the API with the administrator's key."""
        config = json.loads((self.folder / "config.json").read_bytes())
        context = config["contexts"][config["current"]]
        return Client(Context(server=context["server"], ca=context["ca"], key=context["key"]))

    def resource(self, client: Client, kind: str, name: str, account: str = "acme") -> Json:
        """Return a resource over the API; quicker than the command when a test looks often."""
        return client.get(f"/v1/{kind}/{name}", [("account", account)] if account else [])

    def vm(self, name: str, account: str = "acme") -> Json:
        """Return a VM."""
        with self.client() as client:
            return self.resource(client, "compute.vm", name, account)

    def until_vm(
        self, name: str, met: Callable[[Json], bool], limit_s: float = LIMIT_S, account: str = "acme"
    ) -> tuple[Json, float]:
        """Return the VM as soon as it is as said, and the seconds that took."""
        began = time.monotonic()
        last: Json = {}
        with self.client() as client:

            def look() -> Json | None:
                last.update(self.resource(client, "compute.vm", name, account))
                return last if met(last) else None

            try:
                found = until(f"vm {name} as wished", look, limit_s)
            except AssertionError as error:
                raise AssertionError(f"{error}: {last['observed']} {last['conditions']}") from None
        return found, time.monotonic() - began

    def console(self, name: str, account: str = "acme") -> str:
        """Return what a VM printed, without carriage returns."""
        return self.pileus("logs", "vm", name, "--account", account).replace("\r", "")

    def until_printed(self, name: str, pattern: str, count: int = 1, account: str = "acme") -> re.Match[str]:
        """Return the last match once the console log of a VM has ``count`` of them."""
        last = ""

        def look() -> re.Match[str] | None:
            nonlocal last
            last = self.console(name, account)
            found = list(re.finditer(pattern, last, re.MULTILINE))
            return found[-1] if len(found) >= count else None

        try:
            return until(f"{count} of {pattern!r} on the console of {name}", look)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{last[-2000:]}") from None

    def qemus(self) -> dict[str, int]:
        """Return the QEMU process of each machine of this host that has one; two of a machine are an error."""
        found: dict[str, int] = {}
        machines = f"{self.paths.run}/m/"
        for pid in pids_naming("qemu-system"):
            ids = {file.removeprefix(machines).split("/")[0] for file in open_files(pid) if file.startswith(machines)}
            if is_qemu(pid) and ids:
                (machine,) = ids
                assert machine not in found, f"two QEMU processes for {machine}: {pid} and {found[machine]}"
                found[machine] = pid
        return found

    def taps(self) -> set[str]:
        """Return the taps in the namespace of the switch, without the switch's own."""
        command = ["ip", "-n", self.paths.namespace, "-o", "link", "show", "type", "tun"]
        lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
        names = (line.split(": ")[1].split("@")[0] for line in lines)
        return {name for name in names if not name.startswith(("br-", "ovs-"))}

    def machine_folders(self) -> set[str]:
        """Return the machines that have a folder."""
        folder = self.paths.state / "machines"
        return {entry.stem for entry in folder.iterdir()} if folder.is_dir() else set()

    def volume_files(self) -> set[str]:
        """Return the ids of the volumes that have a file."""
        folder = self.paths.pool / "volumes"
        return {entry.stem for entry in folder.iterdir()} if folder.is_dir() else set()

    def leftovers(self) -> dict[str, object]:
        """Return everything of this cloud that is still on the machine."""
        texts = (str(self.folder), str(self.paths.run))
        left: dict[str, object] = {
            "processes": pids_naming(*texts),
            "machines": self.qemus(),
            "namespace": Path("/run/netns") / self.paths.namespace,
            "sockets": self.paths.run,
            "state": self.data,
        }
        return {what: found for what, found in left.items() if (found.exists() if isinstance(found, Path) else found)}


@contextmanager
def temporary(prefix: str) -> Iterator[Path]:
    """Give a new folder for the block."""
    folder = Path(tempfile.mkdtemp(prefix=prefix))
    folder.chmod(0o711)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def upped(*options: str) -> Iterator[RealCloud]:
    """Give a cloud of one process, started by ``pileus up``; afterwards nothing of it may be left."""
    with temporary("pileus-vm-") as folder, upped_in(folder, *options) as cloud:
        yield cloud


@contextmanager
def upped_in(folder: Path, *options: str) -> Iterator[RealCloud]:
    """Give a cloud of one process whose state lies in a folder."""
    need_host()
    cloud = RealCloud(folder)
    try:
        began = time.monotonic()
        cloud.pileus("up", "--data", str(cloud.data), "--port", "0", "--detach", *options, timeout_s=240)
        print(f"measured: up to ready {time.monotonic() - began:.2f} s")
        cloud.pileus("patch", "zone", "local", "--router", "none")  # routers have tests of their own
        yield cloud
    finally:
        take_down(cloud)


def take_down(cloud: RealCloud) -> None:
    """End what runs of a cloud, and look that nothing is left."""
    for child in list(cloud.children):
        cloud.kill(child, signal.SIGTERM)
    done = cloud.run("down", "--data", str(cloud.data), "--delete", "-y")
    assert done.returncode == 0, done.stderr + done.stdout
    left = cloud.leftovers()
    assert not left, f"left behind: {left}"


class SplitCloud(RealCloud):
    """A cloud of two processes, each of which can be killed; server and agent keep what they must in ``data``."""

    server: subprocess.Popen[str]
    agent: subprocess.Popen[str]
    port = 0

    def start_server(self) -> None:
        """Start the server, at the same port as before, and return when it answers."""
        lines = self._ready_lines("server")
        data = str(self.data / "server")
        self.server = self.start("server", "server", "--data", data, "--port", str(self.port))
        until("the server is ready", lambda: self._ready_lines("server") > lines or self._ended("server", self.server))
        self.port = int(re.findall(r"server ready at \S+:(\d+)", self.said("server"))[-1])

    def start_agent(self, *options: str) -> None:
        """Start the agent; it connects by itself."""
        self.agent = self.start("agent", "agent", "--data", str(self.data), *options)

    def until_agent(self, ready_before: int) -> None:
        """Return when an agent has said that it is ready."""
        until(
            "the agent is ready", lambda: self._ready_lines("agent") > ready_before or self._ended("agent", self.agent)
        )

    def _ready_lines(self, name: str) -> int:
        file = self.folder / f"{name}.out"
        return len(re.findall(rf"^{name} ready", file.read_text(), re.MULTILINE)) if file.exists() else 0

    def agent_ready_lines(self) -> int:
        """Return how often an agent has said that it is ready."""
        return self._ready_lines("agent")

    def _ended(self, name: str, child: subprocess.Popen[str]) -> bool:
        errors = self.folder / f"{name}.err"
        assert child.poll() is None, f"the {name} ended with {child.returncode}: {errors.read_text()[-1000:]}"
        return False


@contextmanager
def split() -> Iterator[SplitCloud]:
    """Give a cloud whose server and agent are processes of their own, set up as an operator does it."""
    built = need_host()
    with temporary("pileus-vm-") as folder:
        cloud = SplitCloud(folder)
        try:
            cloud.start_server()
            server = cloud.data / "server"
            key = (server / "operator-key").read_text()
            url = f"https://127.0.0.1:{cloud.port}"
            done = cloud.run("login", "--server", url, "--ca", str(server / "tls/ca.crt"), "--key", "-", text=key)
            assert done.returncode == 0, done.stderr
            _furnish(cloud, built)
            token = cloud.pileus("join-token", "one").strip()
            cloud.start_agent("--server", url, "--token", token)
            cloud.pileus("wait", "host", "one", "--timeout", "60")
            cloud.pileus("wait", "image", "tiny", "--timeout", "60")
            yield cloud
        finally:
            take_down(cloud)


def _furnish(cloud: Place, built: BuiltImage) -> None:
    commands: Sequence[Sequence[str]] = (
        ("zone", "one"),
        ("pod", "one", "--zone", "one"),
        ("host", "one", "--pod", "one"),
        ("offering", "tiny", "--vcpus", "1", "--memory-mib", "128", "--disk-gib", "1"),
        ("image", "tiny", "--append", built.append, "--file", str(built.disk), "--kernel", str(built.kernel),
         "--initrd", str(built.initrd)),
        ("account", "acme"),
    )  # fmt: skip
    for command in commands:
        cloud.pileus("create", *command)
