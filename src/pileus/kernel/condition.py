"""Conditions: what a resource says about itself, for people and for ``wait``."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

Status = Literal["true", "false", "unknown"]


class Condition(Struct, frozen=True, kw_only=True):
    """One statement about a resource. ``reason`` is a CamelCase constant, ``message`` a sentence for a person."""

    type: str = "Ready"
    status: Status
    reason: str
    message: str = ""
    observed_generation: int = 0
    since: str = ""


def ready(reason: str = "AsDesired", message: str = "") -> Condition:
    """Return Ready = true."""
    return Condition(status="true", reason=reason, message=message)


def unready(reason: str, message: str = "") -> Condition:
    """Return Ready = false."""
    return Condition(status="false", reason=reason, message=message)


def unknown(reason: str, message: str = "") -> Condition:
    """Return Ready = unknown."""
    return Condition(status="unknown", reason=reason, message=message)
