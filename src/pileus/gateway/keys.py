"""Key pairs of WireGuard (X25519, RFC 7748), in base64."""

from __future__ import annotations

import base64

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey


def new_pair() -> tuple[str, str]:
    """Return a fresh private key and its public key."""
    private = X25519PrivateKey.generate()
    return _text(private.private_bytes_raw()), _text(private.public_key().public_bytes_raw())


def _text(key: bytes) -> str:
    return base64.b64encode(key).decode()
