"""The server half of a volume: it goes to the host of the VM that has it, once, and stays there."""

from __future__ import annotations

from msgspec.structs import replace

from pileus.kernel.kind import Resource
from pileus.kernel.loop import Controller
from pileus.kernel.outcome import Done, Outcome, Wait, Waiting
from pileus.kernel.quota import space
from pileus.kernel.store import statements as sql
from pileus.kernel.store.lists import Filter
from pileus.kernel.store.store import Store
from pileus.kernel.transaction import Exhausted, Transaction
from pileus.storage.image.types import ImageObserved
from pileus.storage.volume.types import ImageSource, VolumeAssigned, VolumeDesired, VolumeObserved, attachment_space
from pileus.tenancy.account.types import VmLimits, lowest


class VolumeController(Controller):
    """Binds a volume to the pool of its first VM's host."""

    async def reconcile(self, resource: Resource, store: Store) -> Outcome:
        """Decide where the volume is; it is gone when its host says so."""
        assigned: VolumeAssigned = resource.assigned
        observed: VolumeObserved | None = resource.observed
        if resource.deleting:
            if not assigned.host or (resource.gone_confirmed and observed is not None and observed.state == "absent"):
                return Done()
            return Wait("Deleting", "its host still has the disk", after_s=30.0)
        if assigned.host:
            return await self._keep(resource, store)
        holder = await store.holder(attachment_space(resource.id), "vm")
        if holder is None:
            return Done()
        vm = await store.get(holder)
        if not vm.host:
            return Wait("NoHost", f"{vm} has no host yet", after_s=10.0)
        pools = await store.list(Filter(kind="storage.pool", host=vm.host), limit=1)
        if not pools:
            return Wait("NoPool", "the host of its VM has no pool", after_s=10.0)
        source = await self._source(resource, store)
        if isinstance(source, Wait):
            return source
        placed = replace(await _limited(resource, store), host=vm.host, pool=pools[0].id, image=source)

        async def apply(tx: Transaction) -> None:
            held = await tx.statement(sql.CHARGE, space=space(placed.pool, "disk_gib"), owner=vm.id)
            await tx.uncharge(vm.id, f"{placed.pool}/")  # what was held there for it before it was made
            await _charge_pool(tx, resource, placed.pool, until=held[0][1])
            await tx.update(resource, assigned=placed)

        return Done(apply)

    async def _keep(self, volume: Resource, store: Store) -> Outcome:
        """Keep charge and limits as wished."""
        limited = await _limited(volume, store)
        observed: VolumeObserved | None = volume.observed
        links = await store.links(volume.id)

        async def apply(tx: Transaction) -> None:
            await _charge_pool(tx, volume, limited.pool)
            if "snapshot" in links and observed is not None and observed.state == "present":
                # It is a copy: what it began as may go.
                await tx.link(volume.id, {field: id for field, id in links.items() if field != "snapshot"})
            await tx.update(volume, assigned=limited)

        return Done(apply)

    async def _source(self, resource: Resource, store: Store) -> ImageSource | Wait | None:
        image_id = (await store.links(resource.id)).get("image")
        if image_id is None:
            return None
        image = await store.get(image_id)
        observed: ImageObserved | None = image.observed
        if observed is None or observed.state != "available":
            state = observed.state if observed else "awaiting-upload"
            return Wait("ImageNotReady", f"{image} is {state}; see `pileus describe image {image.name}`", after_s=5.0)
        direct = bool(image.desired.append)
        return ImageSource(
            id=image.id,
            sha256=observed.sha256,
            size_bytes=observed.size_bytes,
            virtual_size_bytes=observed.virtual_size_bytes,
            kernel_sha256=observed.kernel_sha256 if direct else "",
            kernel_size_bytes=observed.kernel_size_bytes if direct else 0,
            initrd_sha256=observed.initrd_sha256 if direct else "",
            initrd_size_bytes=observed.initrd_size_bytes if direct else 0,
        )


async def _limited(volume: Resource, store: Store) -> VolumeAssigned:
    """Return the decision with the limits in force; a root volume's wish has those of its VM already."""
    desired: VolumeDesired = volume.desired
    assigned: VolumeAssigned = volume.assigned
    limits = VmLimits(iops_limit=desired.iops_limit, throughput_limit_kib_s=desired.throughput_limit_kib_s)
    if volume.owner == volume.account_id:
        account, zone = await store.get(volume.account_id), await store.get(volume.zone)
        limits = lowest(limits, account.desired.limits, zone.desired.limits)
    return replace(assigned, iops_limit=limits.iops_limit, throughput_limit_kib_s=limits.throughput_limit_kib_s)


async def _charge_pool(tx: Transaction, volume: Resource, pool: str, until: float | None = None) -> None:
    desired: VolumeDesired = volume.desired
    try:
        await tx.charge(space(pool, "disk_gib"), volume.id, desired.size_gib, until)
    except Exhausted:
        raise Waiting("PoolFull", "its pool has too little room left for it", 30.0) from None
