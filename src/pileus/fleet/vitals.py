"""What is known of an appliance, or of any VM, at one moment: asked of its host, kept nowhere."""

from __future__ import annotations

from typing import Any, Literal

from msgspec import Struct

VMS_MAX = 256
"""VMs asked about in one message to a host."""

Execution = Literal["running", "paused", "stopped", "hung", "unknown"]
NodeState = Literal["absent", "silent", "ready", "quarantined"]


class Vitals(Struct, frozen=True, kw_only=True):
    """One VM as its host sees it now. Counters are totals that begin anew with the VM's process or port."""

    vm: str
    process: Execution = "unknown"
    """``hung``: the hypervisor's process is there and has not answered for 2 s. ``unknown``: it was not asked long enough."""
    boots: int = 0
    """Starts and resets by the host over the VM's life; a guest that boots by itself has another ``boot_id``."""
    disk_bytes: int = 0
    """Read and written by the guest on all its disks; as last known while the process does not answer."""
    disk_operations: int = 0
    net_bytes: int = 0
    """Sent by the guest through all its NICs. What others send to it is no sign of its life, and is not counted."""
    node: NodeState = "absent"
    """``absent``: it is no appliance, or it does not run."""
    heard_s: float = -1.0
    """Seconds since the node last proved that it lives; -1: it never did. What is said of the node is as of then."""
    boot_id: str = ""
    hash: str = ""
    """Of the document that the node runs."""
    version: str = ""
    status: dict[str, Any] = {}
    """What the node's role says of itself, at most 64 KiB of JSON; untrusted."""
