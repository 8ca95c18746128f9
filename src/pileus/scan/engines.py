"""What bytes are put before: YARA rules, or a ClamAV daemon. They look at one piece at a time and know no disk.

A daemon is spoken with over a socket that was opened before there were no files any more; see ``inmate``.
"""

from __future__ import annotations

import re
import socket
import struct
import time
from typing import Literal, Protocol

import yara_x
from msgspec import Struct

from pileus.scan.clamd import ANSWER_BYTES_MAX, CHUNK_BYTES, STREAM_BYTES_MAX
from pileus.scan.report import printable

MATCHES_PER_PATTERN_MAX = 16

YARA_WHOLE_BYTES_MAX = 32 * 1024**2

_ANSWER = re.compile(r"\d{1,12}: stream: (?:(OK)|(.{1,512}) FOUND)")


class Stopped(Exception):
    """The scan ends before its end: ``reason`` and words for the report."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


class Sighting(Struct, frozen=True):
    """Where a rule matched in a piece; a ``length`` of 0: it matches the piece, and no place in it."""

    rule: str
    pattern: str = ""
    offset: int = 0
    length: int = 0


class Engine(Protocol):
    """``looks_at``: all bytes of a disk and then its files, or files where there are any and bytes where not.

    Files up to ``whole_bytes_max`` are shown as a whole, as rules expect that speak of sizes or headers.
    """

    @property
    def looks_at(self) -> Literal["bytes", "files"]:
        """What it is shown."""

    @property
    def whole_bytes_max(self) -> int:
        """How much it takes at once."""

    def look(self, content: bytes, left_s: float) -> list[Sighting]:
        """Return what is in the piece. Raises: Stopped."""


class Yara:
    """One set of rules."""

    looks_at: Literal["bytes", "files"] = "bytes"
    whole_bytes_max = YARA_WHOLE_BYTES_MAX

    def __init__(self, rules: yara_x.Rules) -> None:
        self._scanner = yara_x.Scanner(rules)
        self._scanner.max_matches_per_pattern(MATCHES_PER_PATTERN_MAX)

    def look(self, content: bytes, left_s: float) -> list[Sighting]:
        """Return each place of each rule that matches. Raises: Stopped."""
        self._scanner.set_timeout(int(left_s) + 1)
        try:
            matching = self._scanner.scan(content).matching_rules
        except yara_x.TimeoutError:
            raise Stopped("TimedOut", "the rules took longer than they may") from None
        except yara_x.ScanError as exc:
            raise Stopped("RulesFailed", printable(str(exc))) from None
        found = []
        for rule in matching:
            places = [(one.identifier, at.offset, at.length) for one in rule.patterns for at in one.matches]
            found += [Sighting(rule.identifier, *place) for place in places or [("", 0, 0)]]
        return found


class Session:
    """A ClamAV daemon on a connected socket, asked again and again. Source: clamd(8), IDSESSION and INSTREAM."""

    looks_at: Literal["bytes", "files"] = "files"
    whole_bytes_max = STREAM_BYTES_MAX

    def __init__(self, asked: socket.socket) -> None:
        self._asked = asked
        self._begun = False

    def look(self, content: bytes, left_s: float) -> list[Sighting]:
        """Return the daemon's word for the piece. Raises: Stopped."""
        try:
            answer = self._ask(content, time.monotonic() + left_s)
        except TimeoutError:
            raise Stopped("TimedOut", "clamd took longer than it may") from None
        except OSError as exc:
            raise Stopped("NoAnswer", f"clamd cannot be asked any more: {exc.strerror}") from None
        if "size limit exceeded" in answer:
            raise Stopped("TooLarge", "clamd takes less at once than is sent; let its StreamMaxLength be 25M or more")
        said = _ANSWER.fullmatch(answer)
        if said is None:
            raise Stopped("NoAnswer", f"clamd says {answer!r}")
        return [] if said[1] else [Sighting(said[2], length=len(content))]

    def _ask(self, content: bytes, until: float) -> str:
        """Raises: OSError."""
        command = b"zINSTREAM\0" if self._begun else b"zIDSESSION\0zINSTREAM\0"
        self._begun = True
        try:
            self._wait(until)
            self._asked.sendall(command)
            for at in range(0, len(content), CHUNK_BYTES):
                piece = content[at : at + CHUNK_BYTES]
                self._wait(until)
                self._asked.sendall(struct.pack(">I", len(piece)) + piece)
            self._asked.sendall(struct.pack(">I", 0))
        except (BrokenPipeError, ConnectionResetError):
            pass  # it has had enough, and said so before it hung up
        said = b""
        while b"\0" not in said and len(said) < ANSWER_BYTES_MAX:
            self._wait(until)
            more = self._asked.recv(ANSWER_BYTES_MAX)
            if not more:
                return "nothing that ends"
            said += more
        return printable(said.partition(b"\0")[0].decode(errors="backslashreplace").strip())

    def _wait(self, until: float) -> None:
        """Let the next step on the socket end in time. Raises: TimeoutError."""
        left_s = until - time.monotonic()
        if left_s <= 0:
            raise TimeoutError
        self._asked.settimeout(left_s)
