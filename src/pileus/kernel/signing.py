"""How notices are signed: Standard Webhooks (https://www.standardwebhooks.com) with an Ed25519 key of the cluster."""

from __future__ import annotations

import base64

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from pileus.kernel.store import statements as sql
from pileus.kernel.store.store import Store
from pileus.kernel.transaction import Transaction

SETTING = "webhook-key"
"""The setting with the private key, which leaves the database for the servers' memory only."""

_PRIVATE, _PUBLIC = "whsk_", "whpk_"


class Signer:
    """Signs with one key."""

    def __init__(self, private: str) -> None:
        self._key = Ed25519PrivateKey.from_private_bytes(base64.b64decode(private.removeprefix(_PRIVATE)))
        self.public = _PUBLIC + base64.b64encode(self._key.public_key().public_bytes_raw()).decode()
        """What receivers verify with."""

    def headers(self, id: str, at: float, body: bytes) -> dict[str, str]:
        """Return the headers of a message. ``id`` is the same at each try, ``at`` (Unix seconds) the time of this one."""
        message_id, timestamp = f"msg_{id}", str(int(at))
        signature = self._key.sign(f"{message_id}.{timestamp}.".encode() + body)
        return {
            "content-type": "application/json",
            "webhook-id": message_id,
            "webhook-timestamp": timestamp,
            "webhook-signature": f"v1a,{base64.b64encode(signature).decode()}",
        }


async def load_signer(store: Store) -> Signer:
    """Return the cluster's signer, whose key is made at the first call; servers asking at once agree on one."""

    async def made(tx: Transaction) -> str:
        rows = await tx.statement(sql.SETTING, name=SETTING)
        if rows:
            return str(rows[0][0])
        private = _PRIVATE + base64.b64encode(Ed25519PrivateKey.generate().private_bytes_raw()).decode()
        await tx.change(tx.insert.setting, name=SETTING, value=private)
        return private

    known = await store.setting(SETTING)
    return Signer(known if known is not None else await store.write(made))
