"""Errors as answers: every refusal is problem+json (RFC 9457) with a stable code and a message for a person."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import msgspec
from starlette.exceptions import HTTPException
from starlette.responses import Response

from pileus.kernel.errors import Invalid, NotFound, PileusError, Rejected


class MethodNotAllowed(Rejected):
    """The path exists and does not take this method."""

    code = "method-not-allowed"
    status = 405


class TooSlow(Rejected):
    """The request's body did not arrive in time."""

    code = "too-slow"
    status = 408


class TooLarge(Rejected):
    """The request's body is larger than what the path takes."""

    code = "too-large"
    status = 413


class TooMany(Rejected):
    """The caller holds too many long answers open."""

    code = "too-many"
    status = 429


class NoSpace(PileusError):
    """The server's disk has no room for it."""

    code = "no-space"
    status = 507


def of(error: BaseException) -> PileusError | None:
    """Return the error to answer with; None for a defect of ours, about which the caller learns nothing."""
    if isinstance(error, PileusError):
        return error
    if isinstance(error, HTTPException):
        if error.status_code == 405:
            return MethodNotAllowed(f"this path takes {(error.headers or {}).get('Allow', 'other methods')} only")
        return NotFound("there is nothing at this path; GET /v1 lists the kinds and /schema the paths")
    return _unreadable(error)


def _unreadable(error: BaseException) -> PileusError | None:
    if isinstance(error, msgspec.ValidationError):
        message, _, where = str(error).partition(" - at `$")
        field = where.rstrip("`").removeprefix(".") or None
        return Invalid(f"{field}: {message}" if field else message, field=field)
    if isinstance(error, msgspec.DecodeError):
        return Invalid(f"the request is not JSON: {error}", code="not-json")
    if isinstance(error, RecursionError):
        return Invalid("the request is nested too deeply", code="not-json")
    return None


def body(error: PileusError | None, request_id: str) -> tuple[int, bytes]:
    """Return the status and the JSON of a problem."""
    status = error.status if error is not None else 500
    code = error.code if error is not None else "bug"
    detail = error.message if error is not None else "the server failed at this; its log names the request id"
    problem: dict[str, Any] = {
        "type": f"urn:pileus:error:{code}",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        "code": code,
        "request_id": request_id,
    }
    if error is not None and error.field:
        problem["field"] = error.field
    return status, msgspec.json.encode(problem)


def response(error: PileusError | None, request_id: str, headers: Mapping[str, str] | None = None) -> Response:
    """Return the answer for an error."""
    status, content = body(error, request_id)
    extra = dict(headers or {})
    if status == 401:
        extra["www-authenticate"] = 'Bearer realm="pileus"'
    if status == 503:
        extra["retry-after"] = "1"
    return Response(content, status, extra, media_type="application/problem+json")
