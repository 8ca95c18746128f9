"""A network namespace that one thread has for itself: devices made in it go with it, and no packet leaves it."""

from __future__ import annotations

import ctypes
import os
import socket
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ParamSpec, TypeVar

import pytest

from pileus.node.ebpf import kernel

P = ParamSpec("P")
R = TypeVar("R")

_CLONE_NEWNET = 0x40000000


def skip_without_ebpf() -> None:
    """Skip the test on a kernel that takes no programs."""
    if not is_root():
        pytest.skip("eBPF needs root")
    try:
        os.close(kernel.create_map(kernel.ARRAY, 4, 4, 1, name="probe"))
    except kernel.BpfRefused as exc:
        pytest.skip(f"this kernel takes no eBPF: {exc}")


class Room:
    """What ``run`` is given runs in the namespace; sockets and links made there belong to it."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="room", initializer=_leave)

    def run(self, call: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Return what the call returns, or raise what it raises."""
        return self._thread.submit(call, *args, **kwargs).result()

    def ip(self, *words: str) -> str:
        """Run ``ip`` with these words."""
        return self.run(lambda: subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout)

    def veth(self, name: str, peer: str, mtu: int = 1600) -> tuple[int, int]:
        """Make a pair of devices that are up; return their ifindexes."""
        self.ip("link", "add", name, "type", "veth", "peer", "name", peer)
        for each in (name, peer):
            self.ip("link", "set", each, "up", "mtu", str(mtu))
        return self.ifindex(name), self.ifindex(peer)

    def ifindex(self, name: str) -> int:
        """Return a device's number."""
        return self.run(socket.if_nametoindex, name)

    def packet_socket(self, name: str, protocol: int = 0x0003) -> socket.socket:
        """Return a socket that sends and reads whole frames at a device."""

        def make() -> socket.socket:
            found = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
            found.bind((name, protocol))
            return found

        return self.run(make)

    def close(self) -> None:
        """Leave; the kernel removes the devices."""
        self._thread.shutdown()


def _leave() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "no network namespace of its own")
    # Devices shall not send anything by themselves.
    Path("/proc/sys/net/ipv6/conf/default/disable_ipv6").write_text("1")


def is_root() -> bool:
    """Whether programs can be loaded here at all."""
    return os.geteuid() == 0
