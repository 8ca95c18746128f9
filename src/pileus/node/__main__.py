"""``python3 -m pileus.node``: started by init in an appliance, and again whenever it ends."""

from __future__ import annotations

import argparse
import asyncio
import threading
from pathlib import Path

from pileus.node.duty import Duty
from pileus.node.nics import set_up
from pileus.node.places import open_frames, open_port
from pileus.node.role import Role, RoleRefused
from pileus.node.seed import Seed, load_seed
from pileus.node.serve import RESUME_TIMEOUT_S, Server
from pileus.node.transport import FrameTransport, PortTransport, PromptSelector

SEED = Path("/run/pileus/node.json")
DOCUMENT = Path("/var/lib/pileus/document.json")


class Idle:
    """The role of an appliance that was given none: it takes every document, and does nothing."""

    def apply(self, document: object) -> None:
        """Do nothing."""

    def request(self, id: str, payload: bytes, again: bool) -> bytes:
        """Raises: RoleRefused."""
        raise RoleRefused("the appliance has no role that could do it; its package says which")

    def tick(self) -> None:
        """Do nothing."""

    def status(self) -> dict[str, object]:
        """Return nothing."""
        return {}


def make_role(name: str) -> Role:
    """Return the role that the seed names. Raises: ValueError for one that this image does not have."""
    if name == "router":
        from pileus.node.router.apply import Router

        return Router()
    if name == "decapsulator":
        from pileus.node.mirror.role import Decapsulator

        return Decapsulator()
    if name == "applications":
        from pileus.node.applications.role import Applications

        return Applications()
    if name == "monitor":
        from pileus.node.monitor.role import Monitor

        return Monitor()
    if name == "":
        return Idle()
    from pileus.node.program import ProgramRole, find

    return ProgramRole(find(name))


async def serve(seed: Seed, document: Path, port: Path | None, selector: PromptSelector) -> None:
    """Run the role and its backchannel until the end."""
    if seed.nics:
        # Not waited for: the host is answered also by a node whose NICs are missing.
        threading.Thread(target=set_up, args=(seed.nics,), name="nics", daemon=True).start()
    duty = Duty(make_role(seed.role), document)
    resumed = asyncio.ensure_future(duty.resume())
    await asyncio.wait([resumed], timeout=RESUME_TIMEOUT_S)
    server = Server(seed.key, duty)
    transport: FrameTransport | PortTransport
    if seed.channel == "nic":
        frames = await open_frames(seed.mac)
        transport = FrameTransport(frames.send, server.conversation, server.greet)
        frames.start(transport.arrived)
    else:
        fd = await open_port(port)
        transport = PortTransport(fd, server.conversation, server.greet)
        selector.prefer(fd, transport.on_readable)
    server.conversation.transport = transport
    transport.start()
    await server.run()


def main() -> None:
    """Read the arguments, which only tests give, and serve."""
    parser = argparse.ArgumentParser(prog="pileus.node")
    parser.add_argument("--seed", type=Path, default=SEED)
    parser.add_argument("--document", type=Path, default=DOCUMENT)
    parser.add_argument("--port", type=Path, default=None)
    options = parser.parse_args()
    selector = PromptSelector()
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selector)) as runner:
        runner.run(serve(load_seed(options.seed), options.document, options.port, selector))


if __name__ == "__main__":
    main()
