"""Which controller and which admission each kind has on the server."""

from __future__ import annotations

from pathlib import Path

from pileus.compute.vm.api import VmAdmission
from pileus.compute.vm.controller import VmController
from pileus.drivers.host.disk.base import ImageFacts
from pileus.drivers.host.errors import DriverError, ImageRefused
from pileus.image.jail import convert
from pileus.infra.host.controller import HostController
from pileus.infra.pod.api import PodAdmission
from pileus.infra.zone.api import ZoneAdmission
from pileus.kernel.admission import Admission
from pileus.kernel.errors import Transient
from pileus.kernel.loop import Controller
from pileus.kernel.store.store import Store
from pileus.network.network.api import NetworkAdmission
from pileus.network.port.controller import PortController
from pileus.server.defaults import AccountAdmission, HostWithPool
from pileus.storage.image.controller import Files, ImageController, Refused
from pileus.storage.pool.api import PoolAdmission, PoolController
from pileus.storage.volume.api import VolumeAdmission
from pileus.storage.volume.controller import VolumeController
from pileus.tenancy.key.api import KeyAdmission
from pileus.tenancy.user.api import RoleAdmission, UserAdmission
from pileus.tenancy.vdc.api import VdcAdmission, VdcController


def controllers(store: Store, images: Files) -> dict[str, Controller]:
    """Return the controllers, by kind."""
    return {
        "tenancy.vdc": VdcController(),
        "infra.host": HostController(),
        "storage.pool": PoolController(),
        "storage.image": ImageController(images, convert_upload),
        "storage.volume": VolumeController(),
        "network.port": PortController(),
        "compute.vm": VmController(store),
    }


def admissions() -> dict[str, Admission]:
    """Return the admissions, by kind; a kind that is not here has no rules of its own."""
    result: dict[str, Admission] = {
        "tenancy.user": UserAdmission(),
        "tenancy.role": RoleAdmission(),
        "tenancy.key": KeyAdmission(),
        "tenancy.vdc": VdcAdmission(),
        "infra.zone": ZoneAdmission(),
        "infra.pod": PodAdmission(),
        "storage.pool": PoolAdmission(),
        "storage.volume": VolumeAdmission(),
        "network.network": NetworkAdmission(),
        "compute.vm": VmAdmission(),
    }
    result["tenancy.account"] = AccountAdmission(result)
    result["infra.host"] = HostWithPool(result)
    return result


async def convert_upload(source: Path, format: str, target: Path) -> ImageFacts:
    """Inspect and convert in the jail. Raises: Refused for what the owner must mend, Transient for what may pass."""
    try:
        return await convert(source, "raw" if format == "raw" else "qcow2", target)
    except ImageRefused as error:
        raise Refused(error.reason, error.message) from None
    except DriverError as error:
        raise Transient(error.message, code="image-not-converted") from error
