"""A folder for what is scanned."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder; skipped where no jail can be made."""
    missing = [tool for tool in ("qemu-img", "unshare", "setpriv") if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}")
    if os.geteuid() != 0:
        pytest.skip("a jail needs root")
    words = ["unshare", "--mount", "--pid", "--net", "--fork", "true"]
    if subprocess.run(words, capture_output=True, check=False).returncode != 0:
        pytest.skip("namespaces cannot be made here")
    (tmp_path / "scratch").mkdir()
    return tmp_path
