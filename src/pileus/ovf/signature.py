"""What is known of a package's signer, apart from the cryptography, which is loaded when a package is signed."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Literal

from msgspec import Struct

if TYPE_CHECKING:
    from cryptography.x509 import Certificate


class Trust(Struct, frozen=True, kw_only=True):
    """Whose signatures are believed, and when."""

    at: datetime
    """Certificates must be valid then; with a time zone."""
    roots: tuple[Certificate, ...] = ()


class Signature(Struct, frozen=True, kw_only=True):
    """What a certificate file proves."""

    state: Literal["trusted", "unknown-signer", "invalid"]
    subject: str = ""
    issuer: str = ""
    not_before: str = ""
    not_after: str = ""
    sha256: str = ""
    """Of the signer's certificate (DER), in hexadecimal digits."""
    algorithm: str = ""
