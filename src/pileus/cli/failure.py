"""What ends a command: its exit code, one line that says why, and what to do next."""

from __future__ import annotations

OK = 0
BUG = 1
USAGE = 2
REFUSED = 3
NOT_FOUND = 4
TIMED_OUT = 5
UNREACHABLE = 6
NOT_SIGNED_IN = 7
INTERRUPTED = 130
BROKEN_PIPE = 141
"""As a shell reports a program that SIGPIPE ended."""

EXIT_CODES: tuple[tuple[int, str], ...] = (
    (OK, "success"),
    (BUG, "something unexpected: a bug, or a server that failed"),
    (USAGE, "the command line says something that cannot be"),
    (REFUSED, "refused: by the server, or by this machine"),
    (NOT_FOUND, "there is no such object"),
    (TIMED_OUT, "waiting timed out"),
    (UNREACHABLE, "no server answers"),
    (NOT_SIGNED_IN, "not signed in, or the key is refused"),
)
"""The exit codes with their meaning, as shown by ``pileus --help``."""


class Failure(Exception):
    """Ends the command with an exit code, a message on one line and an optional hint."""

    def __init__(self, message: str, *, exit_code: int, hint: str = "", code: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.exit_code = exit_code
        self.hint = hint
        self.code = code
        """The server's error code, such as ``already-exists``; empty when no server said so."""


def usage(message: str, hint: str = "") -> Failure:
    """Return the failure of a command line that cannot be."""
    return Failure(message, exit_code=USAGE, hint=hint)


def leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    """Return the exceptions of a group and of the groups in it."""
    found: list[BaseException] = []
    for each in group.exceptions:
        found.extend(leaves(each) if isinstance(each, BaseExceptionGroup) else [each])
    return found


def suggestion(word: str, known: list[str]) -> str:
    """Return ``; did you mean X?`` with the closest known words; empty when none is close."""
    from difflib import get_close_matches

    close = get_close_matches(word, known, n=3, cutoff=0.65)
    return f"; did you mean {' or '.join(close)}?" if close else ""
