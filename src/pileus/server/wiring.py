"""Which controller and which admission each kind has on the server."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec

from pileus.compute.offering.controller import OfferingController
from pileus.compute.request.api import RequestAdmission as MachineRequestAdmission
from pileus.compute.request.controller import RequestController as MachineRequestController
from pileus.compute.set.api import SetAdmission
from pileus.compute.set.controller import SetController
from pileus.compute.vm.api import VmAdmission
from pileus.compute.vm.controller import VmController
from pileus.drivers.host.disk.base import ImageFacts, UploadFormat
from pileus.drivers.host.errors import DriverError, ImageRefused
from pileus.drivers.host.guest.qga_allowed import read_allowed
from pileus.fleet.consent.api import ConsentAdmission
from pileus.fleet.consent.controller import ConsentController
from pileus.fleet.manager.api import ManagerAdmission
from pileus.fleet.manager.controller import ManagerController
from pileus.fleet.node.api import NodeAdmission
from pileus.fleet.node.controller import NodeController
from pileus.fleet.package.api import PackageAdmission
from pileus.fleet.package.controller import PackageController
from pileus.fleet.package.types import PackageGuestAgent
from pileus.fleet.request.api import RequestAdmission
from pileus.fleet.request.controller import RequestController, wake_kept
from pileus.fleet.rollout.api import RolloutAdmission
from pileus.fleet.rollout.controller import RolloutController
from pileus.gateway.address.api import AddressAdmission
from pileus.gateway.address.controller import AddressController
from pileus.gateway.balancer.api import BalancerAdmission
from pileus.gateway.balancer.controller import BalancerController
from pileus.gateway.firewall.api import FirewallAdmission
from pileus.gateway.firewall.controller import FirewallController
from pileus.gateway.forward.api import ForwardAdmission
from pileus.gateway.forward.controller import ForwardController
from pileus.gateway.link.api import LinkAdmission
from pileus.gateway.link.controller import LinkController
from pileus.gateway.router.controller import RouterController
from pileus.gateway.vpn.api import VpnAdmission
from pileus.gateway.vpn.controller import VpnController
from pileus.image.jail import convert
from pileus.infra.host.controller import HostController, wake_silent
from pileus.infra.pod.api import PodAdmission
from pileus.infra.zone.api import ZoneAdmission
from pileus.infra.zone.controller import ZoneController
from pileus.kernel.admission import Admission
from pileus.kernel.background import for_ever
from pileus.kernel.errors import Invalid, Transient
from pileus.kernel.hub import Hub
from pileus.kernel.kind import Resource
from pileus.kernel.loop import Controller
from pileus.kernel.outbound import Internet, Outbound
from pileus.kernel.store.store import Store
from pileus.kernel.transaction import Transaction
from pileus.mirror.decapsulator.controller import DecapsulatorController
from pileus.mirror.filter.api import FilterAdmission
from pileus.mirror.leg.controller import LegController
from pileus.mirror.session.api import SessionAdmission
from pileus.mirror.session.controller import SessionController
from pileus.mirror.sniffer.api import SnifferAdmission
from pileus.monitor.action.api import ActionAdmission
from pileus.monitor.action.controller import ActionController
from pileus.monitor.entitlement.api import EntitlementAdmission
from pileus.monitor.entitlement.controller import EntitlementController
from pileus.monitor.history.api import HistoryAdmission
from pileus.monitor.history.controller import HistoryController
from pileus.monitor.monitor.api import MonitorAdmission
from pileus.monitor.monitor.controller import MonitorController
from pileus.monitor.policy.api import PolicyAdmission
from pileus.monitor.receiver import Postgres, Receiver
from pileus.monitor.scan.api import ScanAdmission
from pileus.monitor.scan.controller import ScanController
from pileus.monitor.seat.api import SeatAdmission
from pileus.monitor.seat.controller import SeatController
from pileus.monitor.seats import SeatGate
from pileus.monitor.signature.api import SignatureAdmission
from pileus.monitor.signature.controller import SignatureController
from pileus.monitor.watcher.controller import WatcherController
from pileus.network.network.controller import NetworkController
from pileus.network.port.controller import PortController
from pileus.network.segment.controller import SegmentController
from pileus.server.agents import Agents
from pileus.server.defaults import AccountAdmission, HostWithPool, NetworkWithRouter
from pileus.server.parts import Uploaded
from pileus.server.run import Wiring
from pileus.server.watching import Watching
from pileus.storage.image.api import ImageAdmission
from pileus.storage.image.controller import Files, ImageController, Refused, upload_noted
from pileus.storage.pool.api import PoolAdmission, PoolController
from pileus.storage.snapshot.api import SnapshotAdmission
from pileus.storage.snapshot.controller import SnapshotController
from pileus.storage.volume.api import VolumeAdmission
from pileus.storage.volume.controller import VolumeController
from pileus.tenancy.account.controller import AccountController
from pileus.tenancy.key.api import KeyAdmission
from pileus.tenancy.user.api import RoleAdmission, UserAdmission
from pileus.tenancy.vdc.api import VdcAdmission, VdcController

SILENCE_EVERY_S = 5.0
FORGET_EVERY_S = 600.0


def controllers(
    store: Store, images: Files, outbound: Outbound | None = None, receiver: Receiver | None = None
) -> dict[str, Controller]:
    """Return the controllers, by kind. ``outbound``: where notices go out; left out: the internet. ``receiver``: of
    histories; left out: customers' PostgreSQL.
    """
    return {
        "tenancy.account": AccountController(),
        "tenancy.vdc": VdcController(),
        "infra.zone": ZoneController(),
        "infra.host": HostController(store.clock()),
        "storage.pool": PoolController(),
        "storage.image": ImageController(images, convert_upload),
        "storage.volume": VolumeController(),
        "storage.snapshot": SnapshotController(),
        "network.network": NetworkController(),
        "network.port": PortController(),
        "network.segment": SegmentController(),
        "compute.offering": OfferingController(),
        "compute.vm": VmController(store, SeatGate()),
        "compute.set": SetController(store.clock),
        "compute.request": MachineRequestController(store),
        "fleet.manager": ManagerController(outbound or Internet()),
        "fleet.consent": ConsentController(),
        "fleet.package": PackageController(),
        "fleet.node": NodeController(),
        "fleet.request": RequestController(),
        "fleet.rollout": RolloutController(),
        "gateway.router": RouterController(store.clock),
        "gateway.address": AddressController(),
        "gateway.forward": ForwardController(),
        "gateway.balancer": BalancerController(),
        "gateway.firewall": FirewallController(),
        "gateway.vpn": VpnController(),
        "gateway.link": LinkController(),
        "monitor.monitor": MonitorController(),
        "monitor.watcher": WatcherController(),
        "monitor.action": ActionController(outbound or Internet(), store.clock),
        "monitor.history": HistoryController(receiver or Postgres(), store.clock),
        "monitor.signature": SignatureController(store.clock),
        "monitor.scan": ScanController(store.clock),
        "monitor.entitlement": EntitlementController(store.clock),
        "monitor.seat": SeatController(store.clock),
        "mirror.session": SessionController(store.clock),
        "mirror.decapsulator": DecapsulatorController(store.clock),
        "mirror.leg": LegController(),
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
        "storage.image": ImageAdmission(),
        "storage.volume": VolumeAdmission(),
        "storage.snapshot": SnapshotAdmission(),
        "network.network": NetworkWithRouter(),
        "compute.vm": VmAdmission(),
        "compute.set": SetAdmission(),
        "compute.request": MachineRequestAdmission(),
        "fleet.manager": ManagerAdmission(),
        "fleet.consent": ConsentAdmission(),
        "fleet.request": RequestAdmission(),
        "fleet.rollout": RolloutAdmission(),
        "fleet.package": PackageAdmission(check_guest_agent),
        "fleet.node": NodeAdmission(),
        "gateway.address": AddressAdmission(),
        "gateway.forward": ForwardAdmission(),
        "gateway.balancer": BalancerAdmission(),
        "gateway.firewall": FirewallAdmission(),
        "gateway.vpn": VpnAdmission(),
        "gateway.link": LinkAdmission(),
        "monitor.monitor": MonitorAdmission(),
        "monitor.policy": PolicyAdmission(),
        "monitor.action": ActionAdmission(),
        "monitor.history": HistoryAdmission(),
        "monitor.signature": SignatureAdmission(),
        "monitor.scan": ScanAdmission(),
        "monitor.entitlement": EntitlementAdmission(),
        "monitor.seat": SeatAdmission(),
        "mirror.session": SessionAdmission(),
        "mirror.filter": FilterAdmission(),
        "mirror.sniffer": SnifferAdmission(),
    }
    result["tenancy.account"] = AccountAdmission(result)
    result["infra.host"] = HostWithPool(result)
    return result


@contextlib.asynccontextmanager
async def agents(store: Store, hub: Hub) -> AsyncIterator[Agents]:
    """Give the agents' side of the server for the block, with an eye on hosts that fall silent."""
    made = Agents(store, hub)
    await made.open()
    watching = Watching(store, hub, made)
    tasks = [
        for_ever(watching.look, "watchers"),
        for_ever(lambda: _watch_silence(store), "silence"),
        for_ever(lambda: _forget_requests(store), "kept-requests"),
    ]
    try:
        yield made
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await watching.close()
        await made.close()


async def _watch_silence(store: Store) -> None:
    await asyncio.sleep(SILENCE_EVERY_S)
    await wake_silent(store)


async def _forget_requests(store: Store) -> None:
    await asyncio.sleep(FORGET_EVERY_S)
    await wake_kept(store)


def uploaded(store: Store, images: Files) -> Uploaded:
    """Return what notes an upload in the image's facts; its controller does the rest."""

    async def note(image: Resource, part: str, sha256: str, size_bytes: int) -> None:
        async def write(tx: Transaction) -> None:
            current = await tx.get(image.id)
            await tx.update(current, observed=upload_noted(current.observed, part, sha256, size_bytes))

        await store.write(write)

    return note


def check_guest_agent(allowed: PackageGuestAgent) -> None:
    """Raises: Invalid for a list of what may be done in a guest that does not mean one thing."""
    try:
        read_allowed(msgspec.json.encode(allowed))
    except DriverError as error:
        raise Invalid(f"desired.guest_agent: {error.message}", field="desired.guest_agent") from None


async def convert_upload(source: Path, format: str, target: Path) -> ImageFacts:
    """Inspect and convert in the jail. Raises: Refused for what the owner must mend, Transient for what may pass."""
    try:
        return await convert(source, msgspec.convert(format, UploadFormat), target)
    except ImageRefused as error:
        raise Refused(error.reason, error.message) from None
    except DriverError as error:
        raise Transient(error.message, code="image-not-converted") from error


WIRING = Wiring(admissions=admissions(), controllers=controllers, agents=agents, uploaded=uploaded)
"""What ``pileus server`` runs."""
