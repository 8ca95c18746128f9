"""What the host wrote for this appliance before it was born; only the machine itself and root of the host can read it.

JSON: ``machine`` its id, ``key`` 64 hexadecimal digits, ``channel`` ``serial`` or ``nic``, ``mac`` of its first NIC
("" : the first there is), ``role`` what it shall be.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

SEED_FILE = "pileus-node.json"
"""Its name on the seed's ISO."""


@dataclass(frozen=True, slots=True)
class Seed:
    """See above; ``key`` as bytes."""

    machine: str
    key: bytes
    channel: str
    role: str
    mac: str = ""


def seed_text(seed: Seed) -> bytes:
    """Return the file's content."""
    fields = {
        "machine": seed.machine, "key": seed.key.hex(), "channel": seed.channel, "role": seed.role, "mac": seed.mac,
    }  # fmt: skip
    return json.dumps(fields, indent=1).encode() + b"\n"


def load_seed(path: Path) -> Seed:
    """Return the seed. Raises: OSError, ValueError, KeyError when there is none that can be read."""
    fields = json.loads(path.read_bytes())
    return Seed(
        machine=str(fields["machine"]), key=bytes.fromhex(fields["key"]), channel=str(fields["channel"]),
        role=str(fields["role"]), mac=str(fields.get("mac", "")),
    )  # fmt: skip
