"""A data centre in a box for a test: ``pileus lab`` with real hosts, used and looked at as a person would."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pileus.image.recipes import ensure_image

if TYPE_CHECKING:
    from tests.vm.realcloud import LIMIT_S, RealCloud, is_qemu, need_host, pids_naming, temporary
    from tests.vm.terminal import Terminal
else:
    from realcloud import LIMIT_S, RealCloud, is_qemu, need_host, pids_naming, temporary
    from terminal import Terminal


class RealLab(RealCloud):
    """A lab that runs."""

    def machine(self, name: str, *command: str, timeout_s: float = LIMIT_S) -> subprocess.CompletedProcess[str]:
        """Run a command in the network of a machine of the lab, such as ``internet``."""
        return self.run("lab", "exec", "--data", str(self.data), name, "--", *command, timeout_s=timeout_s)

    def shell(self, vm: str, command: str, account: str = "acme") -> str:
        """Return what a command typed at the console of a VM printed."""
        with Terminal(self, vm, account) as terminal:
            return terminal.shell(command)

    def lab(self, *arguments: str, timeout_s: float = LIMIT_S) -> str:
        """Return what a command of ``pileus lab`` printed."""
        return self.pileus("lab", arguments[0], "--data", str(self.data), *arguments[1:], timeout_s=timeout_s)

    def machine_pid(self, vm: str) -> int:
        """Return the QEMU process of a VM, by the VM's id."""
        (pid,) = (pid for pid in pids_naming(f"guest={vm}") if is_qemu(pid))
        return pid

    def prefix(self) -> str:
        """Return what the names of all its network namespaces begin with."""
        found = re.search(r"pileus-lab-[0-9a-f]+", self.lab("status"))
        assert found is not None
        return found.group()

    def alone(self, host: str, hosts: int) -> None:
        """Let new VMs go to one host only; empty: to all again."""
        for number in range(1, hosts + 1):
            scheduling = "enabled" if host in ("", f"host{number}") else "cordoned"
            self.pileus("patch", "host", f"host{number}", "--scheduling", scheduling)

    def namespaces(self) -> list[str]:
        """Return the network namespaces that are there."""
        folder = Path("/run/netns")
        return sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []


@contextmanager
def labbed(*options: str) -> Iterator[RealLab]:
    """Give a lab; afterwards no process, namespace or file of it may be left."""
    need_host()
    ensure_image("appliance", lambda line: print(line, file=sys.stderr))
    with temporary("pileus-lab-") as folder:
        lab = RealLab(folder)
        prefix = ""
        try:
            lab.pileus("lab", *options, "--data", str(lab.data), "--port", "0", "--detach", timeout_s=240)
            prefix = lab.prefix()
            yield lab
        finally:
            for child in list(lab.children):
                lab.kill(child)
            done = lab.run("lab", "stop", "--data", str(lab.data), "--delete", timeout_s=120)
            assert done.returncode == 0, done.stderr + done.stdout
        left = [name for name in lab.namespaces() if prefix and name.startswith(prefix)]
        assert not left, f"namespaces left behind: {left}"
        assert not lab.data.exists()
