"""Managers and nodes for tests: an image with all roles that they use, and managers as programs outside the cloud."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tools.code import ROOT

from pileus.image.appliance_build import appliance_with
from pileus.image.recipes import ensure_image
from pileus.image.types import BuildError, BuiltImage

if TYPE_CHECKING:
    from tests.vm.realcloud import LIMIT_S, Json, RealCloud, until
else:
    from realcloud import LIMIT_S, Json, RealCloud, until

EXAMPLES = ROOT / "examples/managers"
PROGRAMS = Path(__file__).parent / "programs"
ROLES = {
    "counter": PROGRAMS / "counter",
    "firewall": PROGRAMS / "recorder",
    "rules": EXAMPLES / "firewall/firewall.py",
    "hostile": PROGRAMS / "hostile",
    "initiator": PROGRAMS / "initiator",
    "names": EXAMPLES / "names/names.py",
    "storage": EXAMPLES / "storage/storage.py",
}
IMAGE = "test-fleet"
RECIPE = appliance_with(
    IMAGE,
    {role: program.read_bytes() for role, program in ROLES.items()},
    packages=["open-iscsi", "tgt"],
    modules=["iscsi_tcp", "sd_mod"],
)
MEMORY_MIB = 128
BOOT_S = 120.0
"""Several nodes boot at once under emulation."""


def built(name: str) -> BuiltImage:
    """Return an image; one that cannot be built here is a visible skip."""
    try:
        return ensure_image(name, print, recipe=RECIPE if name == IMAGE else None)
    except BuildError as error:
        pytest.skip(f"the image {name} cannot be built here: {error}")


def add_image(cloud: RealCloud, name: str) -> None:
    """Bring an image to the cloud, for everybody."""
    image = built(name)
    cloud.pileus("create", "image", name, "--append", image.append, "--file", str(image.disk), "--kernel",
                 str(image.kernel), "--initrd", str(image.initrd))  # fmt: skip
    cloud.pileus("wait", "image", name, "--timeout", "60", timeout_s=70)


class Manager:
    """A manager: its key, what it calls with that, and its nodes."""

    def __init__(self, cloud: RealCloud, name: str, account: str = "") -> None:
        """``account``: whose manager it is; empty: the cluster's."""
        own = ["--account", account] if account else []
        cloud.pileus("create", "manager", name, *own)
        made = cloud.json("create", "key", f"{name}-key", "--manager", name, *own)
        self.name, self.key, self._cloud, self._own = name, str(made["secret"]), cloud, own
        config = json.loads((cloud.folder / "config.json").read_bytes())
        context = config["contexts"][config["current"]]
        self.api = _example("cloud").Cloud(context["server"], context["ca"], self.key)

    def consented(self, *accounts: str) -> None:
        """Let accounts consent to it."""
        for account in accounts:
            self._cloud.pileus("create", "consent", self.name, "--account", account, "--manager", self.name)
        until("the consents are known", lambda: set(accounts) <= set(self.api.accounts()))

    def package(self, role: str, *options: str, nics: int = 0) -> None:
        """Make the package of a role, named as it is."""
        size = ["--vcpus", "1", "--memory-mib", str(MEMORY_MIB), "--nics", str(nics)]
        wish = [role, "--manager", self.name, "--version", role, "--image", IMAGE, *size]
        self._cloud.pileus("create", "package", *wish, *self._own, *(options or ("--role", role)))

    def node(self, name: str, account: str, **desired: Any) -> Json:
        """Make a node of the package that ``package`` names."""
        wish = {"name": name, "account": account, "desired": {"manager": self.name, **desired}}
        return dict(self.api.call("POST", "/v1/fleet.node", wish))

    def ready(self, *nodes: Json) -> list[Json]:
        """Return the nodes once they are ready."""

        def look() -> list[Json] | None:
            found = [self.api.call("GET", f"/v1/fleet.node/{node['id']}") for node in nodes]
            return found if all(one["conditions"][0]["status"] == "true" for one in found) else None

        return until("the nodes are ready", look, BOOT_S)

    def told(self, node: Json, document: Json) -> Json:
        """Return the node once a document is in force."""
        self.api.call("PATCH", f"/v1/fleet.node/{node['id']}", {"desired": {"document": document}})
        return self.ready(node)[0]

    def request(self, node: Json, payload: str) -> Json:
        """Ask the node something, and return the request as it is now."""
        wish = {"account": node["account"], "desired": {"node": node["id"], "payload": payload}}
        return dict(self.api.call("POST", "/v1/fleet.request", wish))

    def answer(self, request: Json, limit_s: float = BOOT_S) -> tuple[str, str]:
        """Return how the request ended and what was answered; the cloud may be away meanwhile."""

        def look() -> tuple[str, str] | None:
            try:
                found = self.api.call("GET", f"/v1/fleet.request/{request['id']}")
            except OSError:
                return None
            observed = found["observed"] or {"state": "queued"}
            return None if observed["state"] == "queued" else (observed["state"], observed["answer"])

        return until(f"request {request['name']} is settled", look, limit_s)

    def ask(self, node: Json, payload: str) -> str:
        """Return what the node answered to what it did."""
        state, answer = self.answer(self.request(node, payload))
        assert state == "applied", (state, answer)
        return answer

    def run(self, example: str, *arguments: str) -> str:
        """Return what an example of a manager printed, run with this manager's key."""
        argv, environment = self._command(example, arguments)
        done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=LIMIT_S, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    @contextmanager
    def running(self, example: str, *arguments: str) -> Iterator[None]:
        """Let an example of a manager run during the block."""
        argv, environment = self._command(example, arguments)
        with subprocess.Popen(argv, env=environment, stdout=subprocess.DEVNULL) as child:
            try:
                yield
                assert child.poll() is None, "it runs for ever"
            finally:
                child.kill()

    def _command(self, example: str, arguments: Sequence[str]) -> tuple[list[str], dict[str, str]]:
        environment = {**self._cloud.environment, "PILEUS_KEY": self.key}
        return [sys.executable, str(EXAMPLES / example / "manager.py"), *arguments], environment


def _example(name: str) -> Any:
    """Return a module of the examples, which are no part of the project."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
