"""Certificates of authorities that users give: looked at when they come, not when they are needed first."""

from __future__ import annotations

import ssl

from pileus.kernel.errors import Invalid


def check_authority(pem: str, field: str) -> None:
    """Raises: Invalid for what is no certificate; nothing is none, too, and right."""
    if not pem:
        return
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=pem)
    except (ssl.SSLError, ValueError, TypeError):
        name = field.removeprefix("desired.")
        message = f"{name}: is no certificate in PEM (it begins with -----BEGIN CERTIFICATE-----)"
        raise Invalid(message, field=field) from None
