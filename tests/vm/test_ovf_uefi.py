"""VMs that start by UEFI: imported, booted by real firmware, exported with what they are, and gone with their variables."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.appliances import System, descriptor, ova, packed, vmdk_of

from pileus.drivers.host.qemu.firmware import UEFI_CODE
from pileus.ovf.machines import machines
from pileus.ovf.package import open_package

if TYPE_CHECKING:
    from tests.vm.efi_disk import DISK_BYTES, GRUB_SAYS, KERNEL_SAYS, efi_disk
    from tests.vm.realcloud import RealCloud
else:
    from efi_disk import DISK_BYTES, GRUB_SAYS, KERNEL_SAYS, efi_disk
    from realcloud import RealCloud

ACCOUNT = ("--account", "acme")


@pytest.mark.long
def test_a_vm_that_starts_by_uefi_goes_in_runs_and_comes_out(cloud: RealCloud, tmp_path: Path) -> None:
    if not UEFI_CODE.is_file():
        pytest.skip("the package ovmf is not installed")
    content = vmdk_of(efi_disk(tmp_path))
    system = System(name="modern", disks=("root",), memory_mib=256, firmware="efi")
    text = descriptor({"modern.vmdk": len(content)}, {"root": ("modern.vmdk", DISK_BYTES)}, (system,))
    file = ova(tmp_path / "modern.ova", packed("modern", text, {"modern.vmdk": content}))
    cloud.pileus("ovf", "import", str(file), *ACCOUNT, "--network", "default", "--start")
    cloud.until_printed("modern", GRUB_SAYS)
    cloud.until_printed("modern", KERNEL_SAYS)
    variables = cloud.paths.firmware(cloud.vm("modern")["id"])
    assert variables.stat().st_mode & 0o077 == 0
    cloud.pileus("stop", "vm", "modern", *ACCOUNT, "--wait")
    exported = tmp_path / "exported.ova"
    cloud.pileus("ovf", "export", "modern", *ACCOUNT, "-o", str(exported))
    with open_package(exported) as package:
        (machine,) = machines(package.envelope, package.faults)
    assert machine.firmware == "uefi"
    cloud.pileus("delete", "vm", "modern", *ACCOUNT, "--wait")
    assert not variables.parent.exists()
