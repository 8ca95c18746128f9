"""The process that looks: takes an order as JSON at its standard input, says JSON lines, the last of them ``ended``.

It needs ``yara_x``, which an image has or has not; without it nothing is known. What it looks at is read in bounded
pieces, so that it takes little memory in a small machine, and never changes anything, not even times of access.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import stat
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pileus.node.scanning import FINDINGS_MAX, WORDS_MAX

if TYPE_CHECKING:
    import yara_x

MODULES = frozenset({"crx", "dex", "dotnet", "elf", "hash", "lnk", "macho", "math", "pe", "string"})

PIECE_BYTES = 4 << 20
OVERLAP_BYTES = 64 << 10
WHOLE_BYTES_MAX = 16 << 20
"""Files up to this size are looked at as a whole, as rules expect that speak of sizes or headers."""

MEMORY_BYTES_MAX = 2 << 30
"""Of one process; beyond that its memory was not looked at as a whole."""

ADDRESS_SPACE_BYTES = 1 << 30
FINDINGS_PER_RULE_MAX = 20
_PAGE = os.sysconf("SC_PAGE_SIZE")
_PRESENT_OR_SWAPPED = 0b11 << 62
_UNREAL = {
    *("proc", "sysfs", "devtmpfs", "devpts", "cgroup", "cgroup2", "debugfs", "tracefs", "securityfs", "pstore", "bpf"),
    *("mqueue", "configfs", "fusectl", "hugetlbfs", "autofs", "efivarfs", "binfmt_misc", "rpc_pipefs"),
}


class Stop(Exception):
    """The scan ends before its end: reason and words."""


class Look:
    """One scan."""

    def __init__(self, scanner: yara_x.Scanner, timed_out: type[Exception], time_s: float) -> None:
        self._scanner = scanner
        self._timed_out = timed_out
        self._until = time.monotonic() + time_s
        self._counts: dict[str, int] = {}
        self._seen: dict[tuple[int, int], list[tuple[str, int]]] = {}
        """Files that were looked at, and what was found in each: rule and offset."""
        self._found: list[tuple[str, int]] = []
        self.problem = ""
        self.ended = {"files": 0, "processes": 0, "scanned_bytes": 0, "unread": 0, "left_out": 0}

    def at(self, content: bytes, base: int, known: int, about: dict[str, Any]) -> None:
        """Look at a piece; what ends at or before ``known`` was in the piece before. Raises: Stop."""
        left_s = self._until - time.monotonic()
        if left_s <= 0:
            raise Stop("TimedOut", "the scan took longer than it may")
        self._scanner.set_timeout(int(left_s) + 1)
        try:
            matching = self._scanner.scan(content).matching_rules
        except self._timed_out:
            raise Stop("TimedOut", "the rules took longer than they may") from None
        self.ended["scanned_bytes"] += len(content)
        for rule in matching:
            for pattern in rule.patterns:
                new = [one.offset for one in pattern.matches if base + one.offset + one.length > known]
                if new:
                    self._tell(rule.identifier, {**about, "offset": base + new[0]})
                    break
            else:
                # A rule that matches nothing in particular says something of whole files alone.
                if about.get("whole") and not any(pattern.matches for pattern in rule.patterns):
                    self._tell(rule.identifier, {**about, "offset": 0})

    def pieces(self, file: int, start: int, end: int, about: dict[str, Any]) -> None:
        """Look at a range of a file, piece by piece. Raises: Stop, OSError."""
        at = known = start
        while known < end:
            stop = min(at + PIECE_BYTES, end)
            content = os.pread(file, stop - at, at)
            self.at(content, at, known, about)
            if at + len(content) < stop:
                return
            at, known = stop - OVERLAP_BYTES, stop

    def file(self, path: str, shown: str, where: str, **more: object) -> None:
        """Look at a file, once whatever names it has. Raises: Stop, OSError."""
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (0 if where == "process" else os.O_NOFOLLOW)
        file = _opened(path, flags)
        try:
            state = os.fstat(file)
            name = (state.st_dev, state.st_ino)
            about = {"where": where, "path": _shown(shown), **more}
            if not stat.S_ISREG(state.st_mode):
                return
            if name in self._seen:
                # Each process that runs a program counts, a file has one name.
                for rule, offset in tuple(self._seen[name]) if where == "process" else ():
                    self._tell(rule, {**about, "offset": offset})
                return
            self.ended["files"] += 1
            self._content(file, state.st_size, about)
            if state.st_nlink > 1 or where == "process":
                self._seen[name] = self._found
        finally:
            os.close(file)
            self._found = []

    def _content(self, file: int, size: int, about: dict[str, Any]) -> None:
        """Look at what a file holds. Raises: Stop, OSError."""
        if size <= WHOLE_BYTES_MAX:
            self.at(os.pread(file, WHOLE_BYTES_MAX, 0), 0, 0, {**about, "whole": True})
            return
        for start, end in _written(file, size):
            self.pieces(file, start, end, about)

    def unread(self, what: str, exc: OSError) -> None:
        """Note that something could not be read."""
        self.ended["unread"] += 1
        self.problem = self.problem or f"{_shown(what)}: {exc.strerror}"

    def _tell(self, rule: str, about: dict[str, Any]) -> None:
        self._found.append((rule, about["offset"]))
        count = self._counts[rule] = self._counts.get(rule, 0) + 1
        if (count > 1 and sum(self._counts.values()) > FINDINGS_MAX // 2) or count > FINDINGS_PER_RULE_MAX:
            self.ended["left_out"] += 1
            return
        about.pop("whole", None)
        _say({"finding": {"rule": rule[:WORDS_MAX], **about}})


def running(look: Look, without: set[int], memory: bool) -> None:
    """Look at every process: its program, its command line and, where wanted, its memory. Raises: Stop."""
    for entry in sorted(int(name) for name in os.listdir("/proc") if name.isdigit()):
        if entry in without:
            continue
        try:
            _one(look, entry, memory)
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended meanwhile
        except OSError as exc:
            look.unread(f"process {entry}", exc)


def _one(look: Look, pid: int, memory: bool) -> None:
    folder = f"/proc/{pid}"
    name = Path(f"{folder}/comm").read_text(errors="replace").strip()
    about: dict[str, Any] = {"pid": pid, "name": _shown(name)}
    try:
        program = os.readlink(f"{folder}/exe")
    except FileNotFoundError:
        return  # a thread of the kernel
    look.ended["processes"] += 1
    look.file(f"{folder}/exe", program, "process", **about)
    command = Path(f"{folder}/cmdline").read_bytes()
    look.at(command, 0, 0, {"where": "process", "path": _shown(program), **about})
    if memory:
        _memory(look, folder, {"where": "memory", "path": _shown(program), **about})


def _memory(look: Look, folder: str, about: dict[str, Any]) -> None:
    """Look at what a process wrote or could execute. Raises: Stop, OSError."""
    file = os.open(f"{folder}/mem", os.O_RDONLY | os.O_CLOEXEC)
    pages = os.open(f"{folder}/pagemap", os.O_RDONLY | os.O_CLOEXEC)
    try:
        left = MEMORY_BYTES_MAX
        for start, end in _regions(Path(f"{folder}/maps").read_text(errors="replace")):
            for low, high in _present(pages, start, end):
                left -= high - low
                if left < 0:
                    raise OSError(0, "it has more memory than is looked at")
                # A region that went away meanwhile is no longer part of the process.
                with contextlib.suppress(OSError):
                    look.pieces(file, low, high, about)
    finally:
        os.close(file)
        os.close(pages)


def _regions(maps: str) -> Iterator[tuple[int, int]]:
    for line in maps.splitlines():
        place, rights, _, _, inode, *name = line.split(None, 5)
        is_anonymous = inode == "0"
        if rights[0] != "r" or (name and name[0].startswith(("[vvar", "[vsyscall"))):
            continue
        # What was only mapped from a file and cannot be written is that file, which is looked at as one, if it has a name.
        if is_anonymous or "w" in rights or (name and name[0].endswith("(deleted)")):
            low, _, high = place.partition("-")
            yield int(low, 16), int(high, 16)


def _present(pages: int, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield the parts of a region that were ever touched: what was only reserved may be larger than the machine."""
    step = PIECE_BYTES
    since = -1
    for low in range(start, end, step):
        high = min(low + step, end)
        entries = memoryview(os.pread(pages, (high - low) // _PAGE * 8, low // _PAGE * 8)).cast("Q")
        touched = any(entry & _PRESENT_OR_SWAPPED for entry in entries)
        if touched and since < 0:
            since = low
        elif not touched and since >= 0:
            yield since, low
            since = -1
    if since >= 0:
        yield since, end


def lying(look: Look, paths: list[str]) -> None:
    """Look at files and folders; links are not followed, file systems that hold no files are left out. Raises: Stop."""
    unreal = _unreal()
    waiting = list(reversed(paths))
    while waiting:
        path = waiting.pop()
        if path in unreal:
            continue
        try:
            if stat.S_ISDIR(os.lstat(path).st_mode):
                with os.scandir(path) as entries:
                    waiting += sorted((entry.path for entry in entries if not entry.is_symlink()), reverse=True)
            else:
                look.file(path, path, "file")
        except FileNotFoundError:
            continue
        except OSError as exc:
            look.unread(path, exc)


def _unreal() -> set[str]:
    """Return where file systems are mounted that hold no files of anybody."""
    found = set()
    for line in Path("/proc/self/mountinfo").read_text(errors="replace").splitlines():
        front, _, back = line.partition(" - ")
        if back.split()[0] in _UNREAL:
            found.add(front.split()[4])
    return found


def _opened(path: str, flags: int) -> int:
    try:
        return os.open(path, flags | os.O_NOATIME)
    except PermissionError:
        return os.open(path, flags)


def _written(file: int, size: int) -> Iterator[tuple[int, int]]:
    end = 0
    while end < size:
        try:
            start = os.lseek(file, end, os.SEEK_DATA)
        except OSError:
            return
        end = os.lseek(file, start, os.SEEK_HOLE)
        yield start, end


def _shown(text: str) -> str:
    cut = os.fsencode(text[:1024]).decode(errors="backslashreplace")
    return "".join(mark if mark.isprintable() else f"\\x{ord(mark):02x}" for mark in cut)


def _say(line: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def _scan(order: dict[str, Any]) -> dict[str, Any]:
    """Return how it ended."""
    try:
        import yara_x
    except ImportError:
        return {"reason": "NoScanner", "message": "no scanner here: this image has no yara_x"}
    compiler = yara_x.Compiler(includes_enabled=False)
    try:
        compiler.add_source(order["rules"])
        rules = compiler.build()
    except yara_x.CompileError as exc:
        return {"reason": "RulesRefused", "message": _shown(str(exc).replace("\n", " "))[:WORDS_MAX]}
    refused = [name for name in rules.imports() if name not in MODULES]
    if refused:
        return {"reason": "RulesRefused", "message": f"the module {refused[0]} sees more than the scanned bytes"}
    look = Look(yara_x.Scanner(rules), yara_x.TimeoutError, order["time_s"])
    reason, message = "", ""
    try:
        running(look, {*order["without"], os.getpid()}, order["memory"])
        lying(look, order["paths"])
    except Stop as exc:
        reason, message = exc.args
    if not reason and look.ended["unread"]:
        reason, message = "Unread", f"{look.ended['unread']} files or processes cannot be read, first {look.problem}"
    return {"reason": reason, "message": message[:WORDS_MAX], **look.ended}


def main() -> int:
    """Do what the order says, as the first that goes when memory is short and the last that gets a processor."""
    os.nice(10)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    order = json.loads(sys.stdin.buffer.read())
    cpu_s = int(order["time_s"]) + 1
    for kind, value in ((resource.RLIMIT_CPU, cpu_s), (resource.RLIMIT_AS, ADDRESS_SPACE_BYTES)):
        resource.setrlimit(kind, (value, value))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        ended = _scan(order)
    except MemoryError:
        ended = {"reason": "OutOfMemory", "message": "the scan needed more memory than there is"}
    _say({"ended": ended})
    return 0


if __name__ == "__main__":
    sys.exit(main())
