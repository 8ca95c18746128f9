"""``pileus forward`` and ``pileus ssh``: real sockets here and at the VM's end, and a real server between."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pty
import re
import shutil
import signal
import socket
import socketserver
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from pileus.cli import contexts
from pileus.cli.commands.forward import BOOT_S, Pair, pair
from pileus.cli.failure import INTERRUPTED, NOT_FOUND, OK, REFUSED, UNREACHABLE, USAGE, Failure
from pileus.cli.target import split
from pileus.cli.tunnel import LocalSocket
from pileus.fleet.node.types import NodeAssigned, NodeDesired
from pileus.gateway.router.types import RouterAssigned, RouterDesired, RouterObserved
from pileus.kernel.clock import iso, system_clock
from pileus.kernel.kind import Resource
from pileus.kernel.transaction import Transaction
from pileus.network.network.types import NetworkObserved
from pileus.network.port.types import PortAssigned, PortDesired

if TYPE_CHECKING:
    from tests.cloud.cli.cli_world import HOST, LIMIT_S, Cloud
    from tests.cloud.cli.cli_world import cloud as another_cloud
    from tests.cloud.cli.conftest import Run
    from tests.cloud.cli.test_streams import COMMAND, line, running
else:
    from cli_world import HOST, LIMIT_S
    from cli_world import cloud as another_cloud
    from test_streams import COMMAND, line, running

    Cloud = Run = Any


class Wire(LocalSocket):
    """A connection to a service on this machine, which stands for one in a VM."""

    @property
    def done(self) -> bool:
        return self._reader.at_eof()

    async def close(self) -> None:
        self._writer.close()


class Lazy:
    """A ``Wire`` that connects when it is first used."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._wire: Wire | None = None
        self._connecting = asyncio.Lock()

    async def _get(self) -> Wire:
        async with self._connecting:
            if self._wire is None:
                self._wire = Wire(*await asyncio.open_connection("127.0.0.1", self._port))
            return self._wire

    @property
    def done(self) -> bool:
        return self._wire is not None and self._wire.done

    async def read(self) -> bytes:
        return await (await self._get()).read()

    async def write(self, content: bytes, /) -> None:
        await (await self._get()).write(content)

    async def finish(self) -> None:
        await (await self._get()).finish()

    async def close(self) -> None:
        await (await self._get()).close()


class Capitals(socketserver.StreamRequestHandler):
    """Reads until the end, then answers in capitals: it needs both directions to end on their own."""

    def handle(self) -> None:
        self.wfile.write(self.rfile.read().upper())


class Echo(socketserver.BaseRequestHandler):
    """Answers line by line, and hangs up at ``bye``."""

    def handle(self) -> None:
        while content := self.request.recv(65_536):
            self.request.sendall(content)
            if content == b"bye\n":
                return


class Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True


@contextlib.contextmanager
def serving(handler: type[socketserver.BaseRequestHandler]) -> Iterator[int]:
    """A service for the block; its port."""
    with Server(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join(LIMIT_S)


ADDRESS = "10.1.1.10"


@pytest.fixture
def web(pileus: Run, account: str, cloud: Cloud) -> Iterator[str]:
    """The account of a VM web, whose network has a router."""
    furnish(pileus, cloud, account)
    yield account
    cloud.hosts.listening.clear()


def furnish(pileus: Run, cloud: Cloud, account: str, *where: str) -> None:
    assert pileus(*where, "create", "vm", "web", "--account", account, "--wait").code == OK
    ids = [
        pileus(*where, "get", kind, name, "--account", account, "-o", "json").json["id"]
        for kind, name in (("vm", "web"), ("network", "default"))
    ]

    async def write(tx: Transaction) -> None:
        vm, net = await tx.get(ids[0]), await tx.get(ids[1])

        def owned(kind: str, **sections: Any) -> Resource:
            return Resource(
                id="", kind=kind, name="of-web", account_id=vm.account_id, account=vm.account, owner=vm.id, **sections
            )

        place = {"zone": net.assigned.zone, "vdc": net.assigned.vdc}
        port = await tx.create(
            owned(
                "network.port",
                desired=PortDesired(),
                assigned=PortAssigned(
                    **place,
                    network=net.id,
                    mac="02:50:00:00:00:01",
                    address=ADDRESS,
                    prefix_length=24,
                    gateway="",
                    vlan=1,
                ),
            )
        )
        node = await tx.create(
            owned(
                "fleet.node",
                desired=NodeDesired(manager="routers", vdc=net.assigned.vdc),
                assigned=NodeAssigned(**place, vm="appliance", host=HOST),
            )
        )
        router = await tx.create(
            owned(
                "gateway.router",
                desired=RouterDesired(**place),
                assigned=RouterAssigned(**place),
                observed=RouterObserved(state="ready", active_node=node.id),
            )
        )
        await tx.update(net, observed=NetworkObserved(state="served", router=router.id))
        await tx.update(vm, assigned=msgspec.structs.replace(vm.assigned, ports=(port.id,)))

    asyncio.run_coroutine_threadsafe(cloud.started.parts.store.write(write), cloud.loop).result(LIMIT_S)


def listen(cloud: Cloud, port: int, here: int) -> None:
    """Let the VM's ``port`` be the service on port ``here``."""
    cloud.hosts.listening[ADDRESS, port] = lambda: Lazy(here)


def stdio(*arguments: str, content: bytes = b"") -> tuple[int, bytes, str]:
    done = subprocess.run(
        [*COMMAND, "forward", *arguments], input=content, capture_output=True, timeout=LIMIT_S, check=False
    )
    return done.returncode, done.stdout, done.stderr.decode()


def test_standard_streams_go_to_a_port_and_each_direction_ends_on_its_own(web: str, cloud: Cloud) -> None:
    with serving(Capitals) as here:
        listen(cloud, 7, here)
        content = b"abc\n" * 500_000
        assert stdio("vm/web", "--account", web, "--stdio", "7", content=content) == (OK, content.upper(), "")


def test_a_file_can_be_what_is_sent_and_what_is_written(web: str, cloud: Cloud, tmp_path: Path) -> None:
    sent, got = tmp_path / "sent", tmp_path / "got"
    sent.write_bytes(b"words\n" * 100_000)
    with serving(Capitals) as here, sent.open("rb") as source, got.open("wb") as target:
        listen(cloud, 7, here)
        command = [*COMMAND, "forward", "vm", "web", "--account", web, "--stdio", "7"]
        assert subprocess.run(command, stdin=source, stdout=target, timeout=LIMIT_S, check=False).returncode == OK
    assert got.read_bytes() == b"WORDS\n" * 100_000


def test_it_ends_when_the_vm_hangs_up_although_more_could_be_typed(web: str, cloud: Cloud) -> None:
    with serving(Echo) as here:
        listen(cloud, 7, here)
        with running("forward", "vm/web", "--account", web, "--stdio", "7", stdin=subprocess.PIPE) as child:
            assert child.stdin is not None
            child.stdin.write(b"bye\n")
            child.stdin.flush()
            assert line(child.stdout, "bye") == "bye"
            assert child.wait(LIMIT_S) == OK


def test_a_local_port_leads_to_the_vm_for_many_at_once_until_ctrl_c(web: str, cloud: Cloud) -> None:
    with serving(Echo) as echo, serving(Capitals) as capitals:
        listen(cloud, 7, echo)
        listen(cloud, 8, capitals)
        with running("forward", "vm/web", ":7", "0:8", "--account", web) as child:
            ports = [int(line(child.stdout, "leads to").split()[0].rpartition(":")[2]) for _ in range(2)]
            line(child.stdout, "ctrl-C ends it")
            many = [socket.create_connection(("127.0.0.1", ports[0]), LIMIT_S) for _ in range(20)]
            for number, one in enumerate(many):
                one.sendall(b"%d" % number)
            for number, one in enumerate(many):
                assert one.recv(10) == b"%d" % number
                one.close()
            with socket.create_connection(("127.0.0.1", ports[1]), LIMIT_S) as one:
                one.sendall(b"quiet")
                one.shutdown(socket.SHUT_WR)
                assert one.makefile("rb").read() == b"QUIET"
            child.send_signal(signal.SIGINT)
            _, err = child.communicate(timeout=LIMIT_S)
            assert child.returncode == INTERRUPTED
            lines = err.decode().strip().splitlines()
            assert all(text.startswith("connection from 127.0.0.1:") for text in lines), "\n".join(lines)
            assert len(lines) == 21


def test_a_refused_connection_closes_the_local_one_and_the_rest_goes_on(web: str, cloud: Cloud) -> None:
    with serving(Echo) as echo, running("forward", "vm/web", ":7", "--account", web) as child:
        port = int(line(child.stdout, "leads to").split()[0].rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port), LIMIT_S) as one:
            assert one.recv(1) == b""
        assert line(child.stderr, "error") == (
            f"error: vm web does not answer: {ADDRESS} port 7 refused the connection; does something listen on port 7?"
        )
        listen(cloud, 7, echo)
        with socket.create_connection(("127.0.0.1", port), LIMIT_S) as one:
            one.sendall(b"now")
            assert one.recv(3) == b"now"


def test_a_reader_that_rests_holds_up_nobody_and_gets_everything(web: str, cloud: Cloud) -> None:
    whole = os.urandom(1 << 20) * 8

    class Flood(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.sendall(whole)

    with serving(Flood) as flood, serving(Echo) as echo:
        listen(cloud, 7, flood)
        listen(cloud, 8, echo)
        with running("forward", "vm/web", ":7", ":8", "--account", web) as child:
            ports = [int(line(child.stdout, "leads to").split()[0].rpartition(":")[2]) for _ in range(2)]
            with socket.create_connection(("127.0.0.1", ports[0]), LIMIT_S) as resting:
                with socket.create_connection(("127.0.0.1", ports[1]), LIMIT_S) as other:
                    for _ in range(10):
                        other.sendall(b"ping")
                        assert other.recv(4) == b"ping"
                assert resting.makefile("rb").read() == whole


def test_a_server_that_stops_ends_it_with_a_word(pileus: Run, tmp_path: Path) -> None:
    with serving(Echo) as here:
        with another_cloud(tmp_path / "data") as other:
            contexts.put("other", other.operator)
            for arguments in (("zone", "local"), ("offering", "tiny", "--vcpus", "1", "--memory-mib", "64", "--disk-gib", "1"),
                              ("image", "tiny", "--format", "raw", "--file", __file__), ("account", "acme")):  # fmt: skip
                assert pileus("create", *arguments).code == OK
            furnish(pileus, other, "acme")
            listen(other, 7, here)
            child = subprocess.Popen(
                [*COMMAND, "forward", "vm/web", "--account", "acme", "--stdio", "7"],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            )  # fmt: skip
            assert child.stdin is not None
            child.stdin.write(b"hello\n")
            child.stdin.flush()
            assert line(child.stdout, "hello") == "hello"
        _, err = child.communicate(timeout=LIMIT_S)
    assert child.returncode == UNREACHABLE
    assert err.decode() == "error: the connection to port 7 of vm web ended: the server stops\n"


def test_a_vm_that_is_stopped_ends_its_connections_with_a_word(pileus: Run, web: str, cloud: Cloud) -> None:
    with serving(Echo) as here:
        listen(cloud, 7, here)
        with running("forward", "vm/web", "--account", web, "--stdio", "7", stdin=subprocess.PIPE) as child:
            assert child.stdin is not None
            child.stdin.write(b"hello\n")
            child.stdin.flush()
            assert line(child.stdout, "hello") == "hello"
            assert pileus("stop", "vm", "web", "--account", web, "--wait").code == OK
            assert line(child.stderr, "error") == "error: the connection to port 7 of vm web ended: vm web was stopped"
            assert child.wait(LIMIT_S) == UNREACHABLE


def test_a_port_here_that_is_taken_is_named(pileus: Run, web: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ran = pileus("forward", "vm/web", f"{port}:80", "--account", web)
    assert (ran.code, ran.out) == (REFUSED, "")
    assert ran.err == f"error: 127.0.0.1:{port} is in use\nhint: `:80` takes a free port and prints it\n"


def test_a_network_without_a_router_is_named_and_what_works_instead(pileus: Run, account: str) -> None:
    assert pileus("create", "vm", "web", "--account", account, "--wait").code == OK
    code, _, err = stdio("vm/web", "--account", account, "--stdio", "22")
    assert (code, err) == (REFUSED, "error: vm web has no NIC in a network\n")
    assert stdio("vm/none", "--account", account, "--stdio", "22")[0] == NOT_FOUND


@pytest.fixture
def young(pileus: Run, account: str, cloud: Cloud) -> Iterator[Callable[[float], str]]:
    """Makes a VM web that started so many seconds ago, and returns its account."""

    def make(ago_s: float) -> str:
        cloud.vms.started_at["web"] = iso(system_clock() - ago_s)
        furnish(pileus, cloud, account)
        cloud.hosts.refused.clear()
        return account

    yield make
    cloud.vms.started_at.clear()
    cloud.hosts.listening.clear()


def test_a_vm_that_may_still_boot_is_asked_until_it_answers(young: Callable[[float], str], cloud: Cloud) -> None:
    account = young(1.0)
    with (
        serving(Echo) as here,
        running(
            "forward", "vm/web", "--account", account, "--stdio", "22", "--booting", stdin=subprocess.PIPE
        ) as child,
    ):
        assert cloud.hosts.refused.wait(LIMIT_S)
        listen(cloud, 22, here)
        assert child.stdin is not None
        child.stdin.write(b"bye\n")
        child.stdin.flush()
        assert line(child.stdout, "bye") == "bye"
        assert child.wait(LIMIT_S) == OK
        assert child.stderr is not None
        assert child.stderr.read() == b""


@pytest.mark.long
def test_a_vm_that_never_answers_is_given_up_and_what_it_does_can_be_seen(young: Callable[[float], str]) -> None:
    code, _, err = stdio("vm/web", "--account", young(BOOT_S - 8.0), "--stdio", "22", "--booting")
    assert code == REFUSED
    assert re.fullmatch(
        r"error: vm web does not answer: .*; does something listen on port 22\?\n"
        r"hint: it was asked for \d+ s, as it may still boot; `pileus logs` shows how far it is\n",
        err,
    ), err


@pytest.mark.parametrize("verb", ["ssh", "forward", "console"])
def test_only_vms_are_connected_to(pileus: Run, verb: str) -> None:
    ran = pileus(verb, "host/h1")
    assert ran.code == USAGE
    assert "not a host; name it like vm/web" in ran.err
    assert pileus(verb, "vm").code == USAGE


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["vm/web", "a", "b"], ("web", ["a", "b"])),
        (["vm", "web", "a"], ("web", ["a"])),
        (["web", "a"], ("web", ["a"])),
        (["compute.vm/web"], ("web", [])),
        (["vm/host"], ("host", [])),
    ],
)
def test_a_vm_is_named_in_three_ways(words: list[str], found: tuple[str, list[str]]) -> None:
    assert split(words, "ports") == found


@pytest.mark.parametrize(("text", "said"), [("8080:80", Pair(8080, 80)), ("80", Pair(80, 80)), (":80", Pair(0, 80))])
def test_pairs_of_ports(text: str, said: Pair) -> None:
    assert pair(text) == said


@pytest.mark.parametrize("text", ["", ":", "80:", "a:80", "80:0", "65536", "1:2:3", "-1:80", "١:80"])
def test_what_is_no_pair_of_ports_is_refused(text: str) -> None:
    with pytest.raises(Failure, match="no pair of ports"):
        pair(text)


@pytest.mark.parametrize("words", [("web",), ("web", "80", "--stdio", "22")])
def test_ports_or_standard_streams_are_wanted(pileus: Run, words: tuple[str, ...]) -> None:
    ran = pileus("forward", *words)
    assert (ran.code, "or --stdio PORT, not both" in ran.err) == (USAGE, True)


def test_the_console_says_why_it_ended(web: str) -> None:
    ours, theirs = pty.openpty()
    try:
        with running("console", "vm/web", "--account", web, stdin=theirs, stdout=theirs) as child:
            line(child.stderr, "ctrl-]")
            os.write(ours, b"bye\r")
            assert (
                line(child.stderr, "ended").strip() == "the console ended: the VM ended, or what you may do has changed"
            )
            assert child.wait(LIMIT_S) == OK
    finally:
        os.close(ours)
        os.close(theirs)


# ssh

SSH = """#!/bin/sh
echo "$#" "$@" | sed 's/ProxyCommand=[^ ]* /ProxyCommand=python /' >> {log}
for word; do case $word in ProxyCommand=*) proxy=${{word#ProxyCommand=}} ;; esac; done
echo hello | sh -c "exec $proxy"
exit 7
"""


def test_ssh_gets_its_way_to_the_vm_and_its_exit_code_is_ours(
    pileus: Run, web: str, cloud: Cloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "log"
    stand_in = tmp_path / "bin" / "ssh"
    stand_in.parent.mkdir()
    stand_in.write_text(SSH.format(log=log))
    stand_in.chmod(0o755)
    monkeypatch.setenv("PATH", f"{stand_in.parent}:{os.environ['PATH']}")
    with serving(Capitals) as here:
        listen(cloud, 22, here)
        command = [*COMMAND, "ssh", "debian@vm/web", "--account", web, "--", "-v", "uptime", "-p"]
        done = subprocess.run(command, capture_output=True, timeout=LIMIT_S, check=False)
    assert (done.returncode, done.stdout) == (7, b"HELLO\n")
    assert done.stderr.decode() == "vm web was made without --ssh-key; it may know no key of yours\n"
    vm = pileus("get", "vm", "web", "--account", web, "-o", "json").json["id"]
    said = log.read_text()
    assert f"--context local forward vm/{vm} --account {web} --stdio 22 --booting" in said
    assert f"-o HostKeyAlias={vm} " in said
    assert f'-o UserKnownHostsFile="{tmp_path}/known_hosts/local" -o StrictHostKeyChecking=accept-new' in said
    assert said.endswith(f"-l debian web.{web}.pileus -v uptime -p\n")


@pytest.mark.skipif(shutil.which("ssh") is None, reason="no ssh client")
def test_the_real_ssh_takes_our_options_and_says_why_it_cannot_connect(web: str) -> None:
    done = subprocess.run(
        [*COMMAND, "ssh", "vm/web", "--account", web], capture_output=True, timeout=LIMIT_S, check=False
    )
    assert done.returncode == 255
    assert "error: vm web does not answer: 10.1.1.10 port 22 refused the connection" in done.stderr.decode()


def test_a_machine_without_ssh_is_told_what_to_install(
    pileus: Run, web: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    ran = pileus("ssh", "vm/web", "--account", web)
    assert (ran.code, ran.err) == (
        REFUSED, "error: there is no ssh client on this machine\nhint: apt install openssh-client\n"
    )  # fmt: skip
