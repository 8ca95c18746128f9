"""All kinds of this program, in the order of the capabilities: what server, agent, CLI and docs are derived from."""

from __future__ import annotations

from pileus.compute.offering import types as offering
from pileus.compute.placement import types as placement
from pileus.compute.request import types as machine_request
from pileus.compute.set import types as vm_set
from pileus.compute.vm import types as vm
from pileus.fleet.consent import types as consent
from pileus.fleet.manager import types as manager
from pileus.fleet.node import types as node
from pileus.fleet.package import types as package
from pileus.fleet.request import types as request
from pileus.fleet.rollout import types as rollout
from pileus.gateway.address import types as address
from pileus.gateway.balancer import types as balancer
from pileus.gateway.firewall import types as firewall
from pileus.gateway.forward import types as forward
from pileus.gateway.link import types as link
from pileus.gateway.router import types as router
from pileus.gateway.vpn import types as vpn
from pileus.infra.host import types as host
from pileus.infra.pod import types as pod
from pileus.infra.provider import types as provider
from pileus.infra.zone import types as zone
from pileus.kernel.kind import Registry
from pileus.mirror.decapsulator import types as decapsulator
from pileus.mirror.filter import types as filter
from pileus.mirror.leg import types as leg
from pileus.mirror.session import types as session
from pileus.mirror.sniffer import types as sniffer
from pileus.monitor.action import types as action
from pileus.monitor.entitlement import types as entitlement
from pileus.monitor.history import types as history
from pileus.monitor.look import types as look
from pileus.monitor.monitor import types as monitor
from pileus.monitor.policy import types as policy
from pileus.monitor.scan import types as scan
from pileus.monitor.seat import types as seat
from pileus.monitor.signature import types as signature
from pileus.monitor.state import types as state
from pileus.monitor.watcher import types as watcher
from pileus.network.network import types as network
from pileus.network.port import types as port
from pileus.network.segment import types as segment
from pileus.storage.image import types as image
from pileus.storage.pool import types as pool
from pileus.storage.snapshot import types as snapshot
from pileus.storage.volume import types as volume
from pileus.tenancy.account import types as account
from pileus.tenancy.key import types as key
from pileus.tenancy.role import types as role
from pileus.tenancy.user import types as user
from pileus.tenancy.vdc import types as vdc

KINDS = Registry(
    (
        account.KIND,
        user.KIND,
        role.KIND,
        key.KIND,
        vdc.KIND,
        zone.KIND,
        pod.KIND,
        host.KIND,
        provider.KIND,
        pool.KIND,
        image.KIND,
        volume.KIND,
        snapshot.KIND,
        network.KIND,
        port.KIND,
        segment.KIND,
        offering.KIND,
        vm.KIND,
        vm_set.KIND,
        placement.KIND,
        machine_request.KIND,
        manager.KIND,
        consent.KIND,
        package.KIND,
        node.KIND,
        request.KIND,
        rollout.KIND,
        router.KIND,
        address.KIND,
        forward.KIND,
        balancer.KIND,
        firewall.KIND,
        vpn.KIND,
        link.KIND,
        monitor.KIND,
        policy.KIND,
        watcher.KIND,
        state.KIND,
        action.KIND,
        history.KIND,
        signature.KIND,
        scan.KIND,
        look.KIND,
        entitlement.KIND,
        seat.KIND,
        session.KIND,
        filter.KIND,
        sniffer.KIND,
        decapsulator.KIND,
        leg.KIND,
    )
)
