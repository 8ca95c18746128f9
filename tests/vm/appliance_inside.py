"""Runs inside a test's appliance in place of its own program: the role's calls and commands, over a virtio-serial port.

One JSON request per line, one JSON answer. It is put on the test's own copy of the disk; the product has no such thing.
"""

import json
import os
import select
import subprocess
import time
import traceback
from pathlib import Path
from typing import Any

from pileus.node.document import Document
from pileus.node.role import Role, RoleRefused
from pileus.node.router.apply import Router

KEPT = Path("/var/lib/pileus/document.json")


def port() -> int:
    """Open the port ``test.0``, as soon as there is one."""
    while True:
        for name in Path("/sys/class/virtio-ports").glob("*/name"):
            if name.read_text().strip() == "test.0":
                return os.open(f"/dev/{name.parent.name}", os.O_RDWR)
        time.sleep(0.02)


def keep(document: Document) -> None:
    """Keep the document over a power cut."""
    new = KEPT.with_suffix(".new")
    with new.open("w") as file:
        file.write(json.dumps(document))
    new.replace(KEPT)
    os.sync()


def answer(role: Role, request: dict[str, Any]) -> object:
    """Do one request."""
    began = time.monotonic()
    match request["op"]:
        case "apply":
            try:
                role.apply(request["document"])
            except RoleRefused as refused:
                return {"refused": refused.message}
            keep(request["document"])
            return {"seconds": time.monotonic() - began}
        case "status":
            return role.status()
        case "run":
            done = subprocess.run(
                request["argv"], input=request["text"], capture_output=True, text=True, timeout=60, check=False
            )
            return {"code": done.returncode, "out": done.stdout, "err": done.stderr}
    raise ValueError(request["op"])


def main() -> None:
    """Answer for ever; the role's tick comes in between."""
    opened = port()
    role = Router()
    if KEPT.exists():
        role.apply(json.loads(KEPT.read_text()))
    os.write(opened, b'"ready"\n')
    pending = b""
    while True:
        readable, _, _ = select.select([opened], [], [], 0.5)
        if not readable:
            role.tick()
            continue
        got = os.read(opened, 65536)
        if not got:  # nobody holds the other end
            time.sleep(0.1)
        pending += got
        while b"\n" in pending:
            line, _, pending = pending.partition(b"\n")
            try:
                said = answer(role, json.loads(line))
            except Exception:  # noqa: BLE001
                said = {"broke": traceback.format_exc()}
            text = json.dumps(said).encode() + b"\n"
            while text:
                text = text[os.write(opened, text[:4096]) :]
            role.tick()


main()
