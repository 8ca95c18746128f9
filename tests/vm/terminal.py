"""A person at a terminal: ``pileus console`` with a pseudo-terminal as its keyboard and screen."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys
import time
import tty
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.vm.realcloud import LIMIT_S, RealCloud
else:
    from realcloud import LIMIT_S, RealCloud

ESCAPE = b"\x1d"
PROMPT = r"^root@\S+:\S+# (\x1b\[6n)?$"
"""The shell asks the terminal for the cursor's place (ESC [6n) after its prompt."""


class Terminal:
    """The serial console of a VM, for the block."""

    def __init__(self, cloud: RealCloud, name: str, account: str = "acme") -> None:
        self._cloud = cloud
        self._command = ["console", "vm", name, "--account", account]
        self.said = ""

    def __enter__(self) -> Terminal:
        self._screen, keyboard = pty.openpty()
        tty.setraw(keyboard)
        self._child = subprocess.Popen(
            [sys.executable, "-m", "pileus.cli.main", *self._command],
            env=self._cloud.environment,
            stdin=keyboard,
            stdout=keyboard,
            stderr=subprocess.PIPE,
            start_new_session=True,
            text=True,
        )
        os.close(keyboard)
        assert self._child.stderr is not None
        first = self._child.stderr.readline()
        assert "leaves it" in first, first + self._child.stderr.read()
        return self

    def __exit__(self, *_: object) -> None:
        if self._child.poll() is None:
            self._child.kill()
        self._child.wait(timeout=LIMIT_S)
        assert self._child.stderr is not None
        self._child.stderr.close()
        os.close(self._screen)

    def type(self, text: bytes) -> None:
        """Press keys."""
        os.write(self._screen, text)

    def until(self, pattern: str, limit_s: float = LIMIT_S) -> re.Match[str]:
        """Return the match of the pattern in what the screen showed since the last answer."""
        end = time.monotonic() + limit_s
        while (match := re.search(pattern, self.said, re.MULTILINE)) is None:
            left = end - time.monotonic()
            assert left > 0, f"the console never showed {pattern!r}:\n{self.said[-2000:]}"
            if select.select([self._screen], [], [], left)[0]:
                self.said += os.read(self._screen, 65536).decode(errors="replace").replace("\r", "")
        return match

    def shell(self, command: str) -> str:
        """Return what a command typed at the prompt printed."""
        if re.search(PROMPT, self.said) is None:
            self.type(b"\n")
        self.until(PROMPT)
        self.said = ""
        # The marks are not in the echo of the line that was typed, only in what the line prints.
        self.type(f"echo mark-''start; {command}; echo mark-''end\n".encode())
        self.until(r"^mark-end$")
        printed = self.said.partition("mark-start\n")[2].partition("mark-end")[0]
        self.said = self.said.partition("mark-end")[2]
        return printed

    def leave(self) -> int:
        """Press ctrl-] and return the exit code of the command."""
        self.type(ESCAPE)
        return self._child.wait(timeout=LIMIT_S)
