"""What the host wrote for this appliance before it was born; only the machine itself and root of the host can read it.

JSON: ``machine`` its id, ``key`` 64 hexadecimal digits, ``channel`` ``serial`` or ``nic``, ``mac`` of its first NIC
("" : the first there is), ``role`` what it shall be, ``nics`` what addresses each NIC has, for a role that leaves it to us.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pileus.node.nics import Nic

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
    nics: tuple[Nic, ...] = ()


def seed_text(seed: Seed) -> bytes:
    """Return the file's content."""
    fields = {
        "machine": seed.machine, "key": seed.key.hex(), "channel": seed.channel, "role": seed.role, "mac": seed.mac,
        "nics": [asdict(nic) for nic in seed.nics],
    }  # fmt: skip
    return json.dumps(fields, indent=1).encode() + b"\n"


def load_seed(path: Path) -> Seed:
    """Return the seed. Raises: OSError, ValueError, KeyError when there is none that can be read."""
    fields = json.loads(path.read_bytes())
    return Seed(
        machine=str(fields["machine"]), key=bytes.fromhex(fields["key"]), channel=str(fields["channel"]),
        role=str(fields["role"]), mac=str(fields.get("mac", "")),
        nics=tuple(_nic(nic) for nic in fields.get("nics", [])),
    )  # fmt: skip


def _nic(fields: dict[str, Any]) -> Nic:
    return Nic(
        mac=str(fields["mac"]), addresses=tuple(map(str, fields["addresses"])), gateway=str(fields["gateway"]),
        dns=tuple(map(str, fields["dns"])),
    )  # fmt: skip
