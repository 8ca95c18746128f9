"""What is wrong with a package: each fault with a stable code, a sentence, and the file and line that it is about."""

from __future__ import annotations

from typing import Literal, NoReturn

from msgspec import Struct

FAULTS_MAX = 200
"""Errors, and oddities too: more than anybody reads; a hostile package must not fill memory with complaints."""

_SHOWN_MAX = 120


class Fault(Struct, frozen=True, kw_only=True):
    """One thing that is wrong, or odd, at one place of a package."""

    code: str
    """Stable, kebab-case."""
    message: str
    file: str = ""
    line: int = 0
    """1 is the first; 0: the fault is about the whole file."""
    severity: Literal["error", "warning", "note"] = "error"

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}: " if self.line else f"{self.file}: " if self.file else ""
        return f"{place}{self.message} ({self.code})"


class OvfFault(Exception):
    """A package is refused. ``faults``: why; at least one is an error."""

    def __init__(self, *faults: Fault) -> None:
        super().__init__("; ".join(str(fault) for fault in faults if fault.severity == "error") or str(faults[0]))
        self.faults = faults


def refusal(code: str, message: str, *, file: str = "", line: int = 0) -> OvfFault:
    """Return the exception of one error."""
    return OvfFault(Fault(code=code, message=message, file=file, line=line))


class Faults:
    """Collects what is wrong while a package is read, so that all of it can be said at once."""

    def __init__(self, file: str = "") -> None:
        self.file = file
        """The file that faults are about unless they say another."""
        self._found: list[Fault] = []
        self._seen: set[Fault] = set()
        self._errors = 0

    @property
    def found(self) -> tuple[Fault, ...]:
        """All faults so far, in the order in which they were found."""
        return tuple(self._found)

    @property
    def refused(self) -> bool:
        """Whether one of them is an error."""
        return self._errors > 0

    def error(self, code: str, message: str, *, line: int = 0, file: str | None = None) -> None:
        """Note what refuses the package. Raises: OvfFault, with all so far, when there are too many."""
        self._add(Fault(code=code, message=message, file=self._of(file), line=line))

    def warn(self, code: str, message: str, *, line: int = 0, file: str | None = None) -> None:
        """Note what its maker should mend, and what is taken nevertheless."""
        self._add(Fault(code=code, message=message, file=self._of(file), line=line, severity="warning"))

    def note(self, code: str, message: str, *, line: int = 0, file: str | None = None) -> None:
        """Note what is passed over, rightly."""
        self._add(Fault(code=code, message=message, file=self._of(file), line=line, severity="note"))

    def stop(self, code: str, message: str, *, line: int = 0, file: str | None = None) -> NoReturn:
        """Raise OvfFault with all faults so far and this one, after which nothing more can be read."""
        last = Fault(code=code, message=message, file=self._of(file), line=line)
        self._found.append(last)
        self._seen.add(last)
        self._errors += 1
        raise OvfFault(*self._found)

    def settle(self) -> None:
        """Raise OvfFault when one of the faults is an error."""
        if self.refused:
            raise OvfFault(*self._found)

    def take(self, faults: tuple[Fault, ...]) -> None:
        """Add faults that others found."""
        for fault in faults:
            self._add(fault)

    def _of(self, file: str | None) -> str:
        return self.file if file is None else file

    def _add(self, fault: Fault) -> None:
        is_error = fault.severity == "error"
        if fault in self._seen or (not is_error and len(self._found) - self._errors >= FAULTS_MAX):
            return
        if is_error and self._errors >= FAULTS_MAX:
            self.stop("too-many-faults", f"more than {FAULTS_MAX} things are wrong; mend these first")
        self._found.append(fault)
        self._seen.add(fault)
        self._errors += is_error


def shown(text: str) -> str:
    """Return a stranger's text in quotes, short and without control characters, fit for a message."""
    short = text if len(text) <= _SHOWN_MAX else f"{text[:_SHOWN_MAX]}…"
    return '"' + "".join(char if char.isprintable() else "\ufffd" for char in short) + '"'
