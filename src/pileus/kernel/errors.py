"""The error tree: what went wrong, whose fault it is, and what may be retried.

Codes are public and stable. Every message names the object and the next step, and holds no secret, path or trace.
Only the kernel loop and the HTTP edge catch these; kinds and drivers raise them.
"""

from __future__ import annotations


class PileusError(Exception):
    """Base of every error that Pileus raises on purpose."""

    code = "error"
    status = 500

    def __init__(self, message: str, *, code: str | None = None, field: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        if code is not None:
            self.code = code
        self.field = field
        """JSON path of the offending field, such as ``desired.memory_mib``; None when it is not about one field."""


class Rejected(PileusError):
    """The caller's fault; never retried."""

    code = "rejected"
    status = 400


class Invalid(Rejected):
    """The request says something that can never be done."""

    code = "invalid"
    status = 400


class Unauthenticated(Rejected):
    """No credential, or one that is unknown, expired or revoked."""

    code = "unauthenticated"
    status = 401


class Denied(Rejected):
    """The caller is known and may not do this."""

    code = "denied"
    status = 403


class NotFound(Rejected):
    """No such object, or the caller may not know that it exists: the two answers are the same."""

    code = "not-found"
    status = 404


class Conflict(Rejected):
    """The state of the world forbids it now: stale-revision, already-exists, in-use."""

    code = "conflict"
    status = 409


class QuotaExceeded(Rejected):
    """A limit of the account would be passed."""

    code = "quota-exceeded"
    status = 409


class Transient(PileusError):
    """A time-out or refused connection: tried again with capped backoff and jitter."""

    code = "transient"
    status = 503


class LeaseLost(PileusError):
    """Another server owns the row now: drop this result, write nothing."""

    code = "lease-lost"


class Stuck(PileusError):
    """Cannot converge until the wish changes; shown as a condition and looked at again slowly."""

    code = "stuck"

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        """CamelCase constant, shown as the condition's reason."""


class Bug(PileusError):
    """A broken invariant of ours: traceback in the log, metric, alarm; the loop survives."""

    code = "bug"
