"""Keeps applications as they shall be: starts, ends and suspends their processes, sees their ends, takes updates back.

The processes belong to the machine, not to the node's program: whoever comes next takes them over.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import select
import shutil
import signal
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pileus.node.applications import logs, processes
from pileus.node.applications.accounts import Accounts
from pileus.node.applications.kept import Kept, Note, State, put
from pileus.node.applications.model import Application, digest
from pileus.node.applications.processes import Launch, Leader

STEADY_S = 10.0
"""What ran so long is started again at once; what ends sooner waits longer each time."""

PAUSE_S_MIN, PAUSE_S_MAX = 1.0, 30.0

CODE_MAX = 120
UPDATE_MAX = 200
"""Characters of what is said of an application: of 64 it must go into a status."""

MARK = "PILEUS_LAUNCH"
_PATH = "/usr/local/bin:/bin:/sbin:/usr/bin:/usr/sbin"


class Setback(NamedTuple):
    """An update that failed: why, and the entry that ran before."""

    words: str
    before: dict[str, Any]


class Supervisor:
    """The applications whose files lie below ``folder``; ``wake`` is readable when one of them ended."""

    def __init__(self, folder: Path, kept: Kept, accounts: Accounts) -> None:
        self.wake = select.epoll()
        self.idle: Callable[[], None] = _nothing
        """Called now and then while something takes long."""
        self._folder = folder
        self._kept = kept
        self._accounts = accounts
        self._running: dict[str, Leader] = {}
        self._began: dict[str, float] = {}
        self._short: dict[str, int] = {}
        """How often each ended soon, in a row."""
        self._start_at: dict[str, float] = {}
        for name, note in kept.notes.items():
            self._resume(name, note)

    def log(self, name: str) -> Path:
        """Return the file of what an application prints."""
        return self._folder / name / "log"

    def look(self, wanted: Mapping[str, Application]) -> None:
        """See what ended, start again what shall run always, keep logs short. Raises: OSError."""
        self.see_ends()
        now = time.monotonic()
        for name, application in wanted.items():
            note = self._note(name)
            is_waiting = application.restart == "always" and note.state == "failed" and application.wanted == "running"
            if is_waiting and now >= self._start_at.get(name, 0.0):
                self._start(application)
        for name in self._kept.notes:
            logs.cut(self.log(name))

    def converge(self, wanted: Mapping[str, Application], updated: str = "") -> dict[str, Setback]:
        """Make the applications be as ``wanted``; return which updates failed, for the caller to take all back.

        What failed or ended stays so until it is told to start, or to be something else. ``updated``: one that is watched
        as an update although it may not run now. Raises: OSError.
        """
        self.see_ends()
        gone = [name for name in self._kept.notes if name not in wanted]
        before = {
            name: self._kept.notes[name].fields
            for name, application in wanted.items()
            if (name in self._running or (name == updated and self._note(name).fields))
            and self._kept.notes[name].launch != application.launch
        }
        failed = {name: words for name in before if (words := self._missing(wanted[name]))}
        if not failed:
            self.end([*gone, *before, *(name for name, one in wanted.items() if one.wanted == "stopped")])
            for application in wanted.values():
                self._become(application)
            failed = self._settle([wanted[name] for name in before if wanted[name].wanted == "running"])
            for name in gone:
                if failed:
                    self._say(name, "starting", "")
                else:
                    self._forget(name)
            self._save()
        return {name: Setback(words[:UPDATE_MAX], before[name]) for name, words in failed.items()}

    def end(self, names: Iterable[str]) -> None:
        """End applications, each given its time."""
        notes = {name: self._kept.notes[name] for name in names if name in self._kept.notes}
        ending = [name for name in notes if name in self._running]
        taken = {name: self._take(name) for name in ending}
        processes.end([(taken[name], notes[name].fields.get("stop_s", 5)) for name in ending], self._go_on)
        for process in taken.values():
            process.bury()
        self._sweep([notes[name] for name in ending])
        for name, note in notes.items():
            if name in ending or note.state != "stopped":
                self._say(name, "stopped", "" if name in ending else note.code)

    def start(self, application: Application) -> None:
        """Start an application unless it runs; let it go on when it is suspended."""
        if application.name not in self._running:
            self._short.pop(application.name, None)
            self._start(application)
        elif self._kept.notes[application.name].state == "suspended":
            self._running[application.name].tell(signal.SIGCONT)
            self._say(application.name, "running", "")

    def suspend(self, name: str) -> None:
        """Let an application stand still, whether it runs or is to run."""
        if name in self._running:
            self._running[name].tell(signal.SIGSTOP)
        self._say(name, "suspended", "")

    def has(self, name: str) -> bool:
        """Tell whether it has a process, as far as was seen."""
        return name in self._running

    def close(self) -> None:
        """Let go of everything; the applications go on."""
        for process in self._running.values():
            process.forget()
        self.wake.close()

    def _resume(self, name: str, note: Note) -> None:
        """Take over what a former run of the node left; what ended meanwhile ended."""
        if note.state not in ("running", "suspended") or not note.mark:
            return
        process = processes.take_over(note.pid, note.start) if note.pid else processes.find(f"{MARK}={note.mark}")
        if process is not None:
            note.pid, note.start = process.pid, process.start
            self._watch(name, process)
            return
        processes.end_all([f"{MARK}={note.mark}"])
        if note.pid:
            note.exits += 1
            self._say(name, "failed", "unknown")
        else:
            self._say(name, "starting", "")

    def _become(self, application: Application) -> None:
        name = application.name
        note = self._note(name)
        if application.wanted == "stopped":
            self._say(name, "stopped", note.code)
        elif application.wanted == "suspended":
            if note.state != "suspended":
                self.suspend(name)
        elif note.state == "suspended" or (name not in self._running and self._is_new(application, note)):
            self.start(application)

    def _is_new(self, application: Application, note: Note) -> bool:
        return note.state == "starting" or note.launch != application.launch

    def _settle(self, updated: list[Application]) -> dict[str, str]:
        """Watch updates for as long as each asks, and return why some failed."""
        failed: dict[str, str] = {}
        began = time.monotonic()
        for application in sorted(updated, key=lambda one: one.settle_s):
            name = application.name
            if name not in self._running:
                failed[name] = f"{_version(application)}: {self._kept.notes[name].code}"
                continue
            process = self._take(name)
            if process.ends_until(began + application.settle_s, self._go_on):
                code = process.bury()
                self._say(name, "failed", code)
                failed[name] = f"{_version(application)}: {code} within {application.settle_s:g} s"
            else:
                self._watch(name, process)
        return failed

    def _start(self, application: Application) -> None:
        """Start a process; why that cannot be is said as its code."""
        name, note = application.name, self._note(application.name)
        self._sweep([note])
        note.mark = secrets.token_hex(8)
        note.launch, note.version, note.fields = application.launch, application.version, application.fields
        self._say(name, "running", "")
        self._save()
        try:
            process = processes.start(self._prepare(application, note.mark))
        except (OSError, ValueError) as failure:
            words = failure.strerror if isinstance(failure, OSError) else None
            self._failed(name, f"cannot be started: {words or failure}"[:CODE_MAX])
            return
        note.pid, note.start = process.pid, process.start
        self._watch(name, process)
        self._began[name] = time.monotonic()
        self._save()

    def _prepare(self, application: Application, mark: str) -> Launch:
        """Lay out its folders and files. Raises: OSError."""
        uid, gid = self._accounts.numbers(application.user)
        own = self._folder / application.name
        files = own / f"files-{digest(application.files)}"
        data = own / "data"
        own.mkdir(exist_ok=True)
        own.chmod(0o711)
        if not files.exists():
            draft = own / "files.new"
            shutil.rmtree(draft, ignore_errors=True)
            draft.mkdir()
            draft.chmod(0o755)
            for path, text in application.files:
                for folder in reversed((draft / path).relative_to(draft).parents[:-1]):
                    (draft / folder).mkdir(exist_ok=True)
                    (draft / folder).chmod(0o755)
                put(draft / path, text.encode(), 0o755 if text.startswith("#!") else 0o644)
            draft.rename(files)
        # Not before there are new ones: on a full disk nothing comes in their place.
        for old in own.glob("files-*"):
            if old != files:
                shutil.rmtree(old)
        data.mkdir(mode=0o700, exist_ok=True)
        os.chown(data, uid, gid, follow_symlinks=False)
        environment = {
            "PATH": _PATH, "LC_ALL": "C", "HOME": str(data), **dict(application.environment),
            "PILEUS_APPLICATION": application.name, MARK: mark,
        }  # fmt: skip
        return Launch(application.command, environment, files, self.log(application.name), uid, gid)

    @staticmethod
    def _missing(application: Application) -> str:
        """Return why an update's program cannot be, as far as that is seen before the old one is ended."""
        program = application.command[0]
        if "/" not in program:
            found = shutil.which(program, path=dict(application.environment).get("PATH", _PATH)) is not None
        else:
            found = not program.startswith("/") or os.access(program, os.X_OK)
        return "" if found else f"{_version(application)}: there is no program {program}"

    def see_ends(self) -> None:
        """See which ended by themselves."""
        for name, process in list(self._running.items()):
            if process.has_ended():
                code = self._take(name).bury()
                self._kept.notes[name].exits += 1
                self._failed(name, code)

    def _failed(self, name: str, code: str) -> None:
        """It does not run although it should, unless it has done all it had to do."""
        fields = self._kept.notes[name].fields
        is_done = code == "exit 0" and fields.get("restart", "no") == "no"
        ran_s = time.monotonic() - self._began.get(name, time.monotonic())
        short = 0 if ran_s >= STEADY_S else self._short.get(name, 0) + 1
        self._short[name] = short
        pause_s = min(PAUSE_S_MAX, PAUSE_S_MIN * 2.0 ** min(10, short - 1)) if short else 0.0
        self._start_at[name] = time.monotonic() + pause_s
        self._say(name, "stopped" if is_done else "failed", code)
        self._save()

    def _watch(self, name: str, process: Leader) -> None:
        self._running[name] = process
        self.wake.register(process.fd, select.EPOLLIN)

    def _take(self, name: str) -> Leader:
        """Return the process of an application, from now on the caller's to look after."""
        process = self._running.pop(name)
        self.wake.unregister(process.fd)
        return process

    def _go_on(self) -> None:
        self.see_ends()
        self.idle()

    @staticmethod
    def _sweep(notes: list[Note]) -> None:
        """End what left the process groups of those that ended; from now on the notes are of no process."""
        processes.end_all([f"{MARK}={note.mark}" for note in notes if note.mark])
        for note in notes:
            note.mark, note.pid, note.start = "", 0, ""

    def _note(self, name: str) -> Note:
        return self._kept.notes.setdefault(name, Note(since=int(time.time())))

    def _say(self, name: str, state: State, code: str) -> None:
        note = self._note(name)
        if note.state != state:
            note.since = int(time.time())
        note.state, note.code = state, code

    def _save(self) -> None:
        # A disk that is full is no reason to lose sight of what runs; the next note is written again.
        with contextlib.suppress(OSError):
            self._kept.save()

    def _forget(self, name: str) -> None:
        """Forget an application that is no more, but for its data."""
        del self._kept.notes[name]
        own = self._folder / name
        for left in (*own.glob("files*"), *own.glob("log*")):
            if left.is_dir():
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.unlink(missing_ok=True)


def _nothing() -> None:
    """Nothing to do meanwhile."""


def _version(application: Application) -> str:
    return f"version {application.version}" if application.version else "the new command"
