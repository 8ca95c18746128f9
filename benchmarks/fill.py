"""A database as large as the blueprint's largest cloud, written directly: rows as the server would have written them."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import replace

from msgspec import Struct

from pileus.compute.vm.types import VmAssigned, VmDesired, VmNic, VmObserved
from pileus.infra.host.types import HostAssigned, HostDesired, HostNic, HostObserved
from pileus.kernel import records
from pileus.kernel.clock import iso
from pileus.kernel.kind import Resource
from pileus.kernel.store.engine import Session
from pileus.kernel.store.store import Store
from pileus.kernel.transaction import Transaction
from pileus.network.network.types import NetworkAssigned, NetworkDesired
from pileus.registry import KINDS
from pileus.storage.volume.types import VolumeAssigned, VolumeDesired, VolumeObserved
from pileus.tenancy.account.types import AccountDesired

EPOCH_S = 1_790_000_000.0
BATCH = 500
FAR_S = 1e12
"""When the unready rows of this database are due: never during the measurement, which is of lists."""
LARGE_ACCOUNTS, LARGE_VMS = 20, 1000
"""Accounts with many VMs, so that a list of one account fills pages; the other accounts have few."""
FULL_HOST_VMS = 600
USER_DATA_CHARACTERS = 80
ZONE = "00000000-0000-7000-8000-000000000001"
POD = "00000000-0000-7000-8000-000000000002"
IMAGE = "00000000-0000-7000-8000-000000000003"


class Sizes(Struct, frozen=True, kw_only=True):
    """How many of each kind."""

    hosts: int
    vms: int
    networks: int
    accounts: int

    @property
    def volumes(self) -> int:
        """Two for each VM."""
        return 2 * self.vms


class Filled(Struct, frozen=True, kw_only=True):
    """What lists are asked for."""

    account: str
    host: str
    row_bytes: float
    """Mean size of a VM in the API's JSON."""


class Filler:
    """Makes the rows; the same seed gives the same database."""

    def __init__(self, sizes: Sizes, seed: int) -> None:
        self._sizes = sizes
        self._random = random.Random(seed)
        self._revision = 0
        self.accounts = [self._id(1, number) for number in range(sizes.accounts)]
        self.hosts = [self._id(2, number) for number in range(sizes.hosts)]

    @staticmethod
    def _id(kind: int, number: int) -> str:
        return f"01900000-0000-7{kind:03x}-8000-{number:012x}"

    def rows(self) -> Iterator[Resource]:
        """Yield every resource."""
        for number, id in enumerate(self.accounts):
            yield self._done(
                Resource(id=id, kind="tenancy.account", name=f"account-{number}", desired=AccountDesired())
            )
        for number in range(self._sizes.hosts):
            yield self._done(self._host(number))
        for number in range(self._sizes.networks):
            yield self._done(self._network(number))
        for number in range(self._sizes.vms):
            vm = self._vm(number)
            yield vm
            for position in range(2):
                yield self._done(self._volume(vm, 2 * number + position))

    def _done(self, resource: Resource) -> Resource:
        self._revision += 1
        return replace(resource, created_at=iso(EPOCH_S + self._revision), revision=self._revision,
                       generation=1, observed_generation=1)  # fmt: skip

    def _host(self, number: int) -> Resource:
        nics = tuple(
            HostNic(
                name=f"eth{port}",
                mac=f"52:54:00:00:00:{port:02x}",
                mtu=9000,
                addresses=("192.0.2.1/24",),
                speed_mbps=25_000,
            )
            for port in range(4)
        )
        observed = HostObserved(version="1", cpus=64, memory_mib=524_288, kernel="6.1.0", accelerator="kvm",
                                hypervisor="QEMU 7.2", switch="Open vSwitch 3.1", nics=nics)  # fmt: skip
        return Resource(
            id=self.hosts[number], kind="infra.host", name=f"host-{number:05}", labels={"rack": f"r{number // 40}"},
            desired=HostDesired(pod=POD), assigned=HostAssigned(host=self.hosts[number], zone=ZONE, pod=POD),
            observed=observed,
        )  # fmt: skip

    def _network(self, number: int) -> Resource:
        account = number % self._sizes.accounts
        return Resource(
            id=self._id(3, number), kind="network.network", name=f"net-{number}", desired=NetworkDesired(),
            account_id=self.accounts[account], account=f"account-{account}", owner=self.accounts[account],
            assigned=NetworkAssigned(zone=ZONE, vdc=self.accounts[account], gateway="10.1.1.1"),
        )  # fmt: skip

    def _account_of(self, number: int) -> int:
        large = min(LARGE_ACCOUNTS, self._sizes.accounts)
        if number < large * LARGE_VMS:
            return number % large
        return number % self._sizes.accounts

    def _host_of(self, number: int) -> str:
        return self.hosts[0] if number < FULL_HOST_VMS else self.hosts[number % self._sizes.hosts]

    def _vm(self, number: int) -> Resource:
        account, ready = self._account_of(number), self._random.random() >= 0.05
        volumes = (self._id(5, 2 * number), self._id(5, 2 * number + 1))
        observed = VmObserved(power="running" if ready else "stopped", vcpus=2, memory_mib=2048, boots=1,
                              started_at=iso(EPOCH_S), addresses=("10.1.1.2",), volumes=volumes)  # fmt: skip
        return self._done(
            Resource(
                id=self._id(4, number), kind="compute.vm", name=f"vm-{number}", account_id=self.accounts[account],
                account=f"account-{account}", owner=self.accounts[account],
                labels={"tier": self._random.choice(("web", "db", "queue", "cache")), "stage": "production"},
                desired=VmDesired(vcpus=2, memory_mib=2048, nics=(VmNic(),), user_data="x" * USER_DATA_CHARACTERS),
                assigned=VmAssigned(zone=ZONE, vdc=self.accounts[account], vcpus=2, memory_mib=2048, disk_gib=20,
                                    host=self._host_of(number), volumes=volumes, image=IMAGE, append="quiet"),
                observed=observed,
            )
        )  # fmt: skip

    def _volume(self, vm: Resource, number: int) -> Resource:
        assigned: VmAssigned = vm.assigned
        return Resource(
            id=self._id(5, number), kind="storage.volume", name=f"{vm.name}-{number % 2}", account_id=vm.account_id,
            account=vm.account, owner=vm.id, desired=VolumeDesired(size_gib=20),
            assigned=VolumeAssigned(zone=ZONE, vdc=assigned.vdc, host=assigned.host, pool=POD),
            observed=VolumeObserved(state="present", size_gib=20),
        )  # fmt: skip


async def fill(store: Store, sizes: Sizes, seed: int) -> Filled:
    """Write the whole database, and return what is in it."""
    filler = Filler(sizes, seed)
    rows = filler.rows()
    vm_bytes = 0
    while batch := list(itertools.islice(rows, BATCH)):
        written = await write(store, batch)
        vm_bytes += sum(len(records.public_of(KINDS, each)) for each in written if each.kind == "compute.vm")
    return Filled(account="account-1", host=filler.hosts[0], row_bytes=vm_bytes / sizes.vms)


async def write(store: Store, batch: list[Resource]) -> list[Resource]:
    """Write rows with their place and condition, as every write of the server leaves them, but without their work."""

    async def written(tx: Transaction) -> list[Resource]:
        session: Session = tx._session
        settled = [tx._settled(each) for each in batch]
        for each in settled:
            await session.run(tx.insert.resource, **records.encode(each))
            for key, value in each.labels.items():
                await session.run(tx.insert.label, id=each.id, key=key, value=value)
            if each.ready is not None and each.ready.status != "true":
                await session.run(tx.insert.enqueue, id=each.id, due=FAR_S)
        session.revision = max(session.revision, settled[-1].revision)
        return settled

    return await store.write(written)
