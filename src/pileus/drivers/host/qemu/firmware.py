"""UEFI for machines: OVMF's code, which all machines read, and a file of variables for each of them."""

from __future__ import annotations

import shutil
from pathlib import Path

from pileus.drivers.host.errors import MissingTool

PACKAGE = "ovmf"
UEFI_CODE = Path("/usr/share/OVMF/OVMF_CODE_4M.fd")
"""Without secure boot: that needs another kind of machine, with system management mode."""
UEFI_VARIABLES = Path("/usr/share/OVMF/OVMF_VARS_4M.fd")
"""Empty ones, in the layout that the code expects."""


def has_uefi() -> bool:
    """Tell whether machines of this computer can start by UEFI."""
    return UEFI_CODE.is_file() and UEFI_VARIABLES.is_file()


def uefi_variables(file: Path) -> Path:
    """Return the machine's file of variables, made when it is not there yet. Raises: MissingTool, OSError."""
    if not has_uefi():
        raise MissingTool(
            f"the VM starts by UEFI, and its host has no firmware for that; install the package {PACKAGE}"
        )
    if not file.exists():
        draft = file.with_suffix(".new")
        shutil.copyfile(UEFI_VARIABLES, draft)
        draft.chmod(0o600)
        draft.replace(file)
    return file
