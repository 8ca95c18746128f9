"""A machine's UEFI variables: made once, kept as they became, and what is said on a host without the firmware."""

from __future__ import annotations

from pathlib import Path

import pytest

from pileus.drivers.host.errors import MissingTool
from pileus.drivers.host.qemu import firmware


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Files of the package; the folder is that of a machine."""
    for name in ("UEFI_CODE", "UEFI_VARIABLES"):
        file = tmp_path / name
        file.write_bytes(name.encode())
        monkeypatch.setattr(firmware, name, file)
    return tmp_path


def test_variables_are_made_once_for_their_owner_only(installed: Path) -> None:
    file = firmware.uefi_variables(installed / "firmware.vars")
    assert file.read_bytes() == b"UEFI_VARIABLES"
    assert file.stat().st_mode & 0o777 == 0o600
    file.write_bytes(b"what the guest wrote")
    assert firmware.uefi_variables(file).read_bytes() == b"what the guest wrote"
    assert not list(installed.glob("*.new"))


def test_a_host_without_the_firmware_says_which_package_has_it(installed: Path) -> None:
    (installed / "UEFI_CODE").unlink()
    with pytest.raises(MissingTool, match="install the package ovmf"):
        firmware.uefi_variables(installed / "firmware.vars")
    assert not (installed / "firmware.vars").exists()
