"""Appliances with applications, for tests: of the package that anybody can make of the image ``appliance``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.vm.fleet_rig import Manager, add_image
    from tests.vm.realcloud import Json, RealCloud, until
else:
    from fleet_rig import Manager, add_image
    from realcloud import until

PACKAGE = "applications"
MEMORY_MIB = 192


class Appliances:
    """A manager of the cluster whose nodes run applications, in an account that consented."""

    def __init__(self, cloud: RealCloud, account: str = "acme", manager: str = "appliances") -> None:
        """The image is brought here; the cloud must not have it yet."""
        self.account = account
        add_image(cloud, "appliance")
        self.manager = Manager(cloud, manager)
        self.manager.consented(account)
        size = ["--vcpus", "1", "--memory-mib", str(MEMORY_MIB), "--nics", "0"]
        made = ["--manager", manager, "--version", "1", "--image", "appliance", "--role", "applications"]
        cloud.pileus("create", "package", PACKAGE, *made, *size)

    def make(self, names: list[str], document: Json) -> list[Json]:
        """Return nodes of these names once the document is in force in each."""
        wish = {"package": PACKAGE, "document": document}
        return self.manager.ready(*(self.manager.node(name, self.account, **wish) for name in names))

    def applications(self, node: Json) -> Json:
        """Return what the server knows of a node's applications."""
        found = self.manager.api.call("GET", f"/v1/fleet.node/{node['id']}")
        return dict(found["observed"]["status"].get("applications", {}))

    def until(self, node: Json, name: str, **wanted: Any) -> Json:
        """Return what the server knows of an application as soon as it is as wanted."""

        def look() -> Json | None:
            told = self.applications(node).get(name, {})
            return told if wanted.items() <= told.items() else None

        return until(f"the application {name} is {wanted}", look)

    def ask(self, node: Json, **asked: Any) -> tuple[str, Json]:
        """Return how a request ended, and the answer, or the words of a refusal."""
        state, answer = self.manager.answer(self.manager.request(node, json.dumps(asked)))
        return state, json.loads(answer) if state == "applied" else {"words": answer}
