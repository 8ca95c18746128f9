"""Where no jail can be made, tests that need one are skipped, and say why."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest


def require_jail(*tools: str) -> None:
    """Skip the test unless a jail can be made here, and these tools are installed."""
    missing = [tool for tool in ("unshare", *tools) if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}")
    if os.geteuid() != 0:
        pytest.skip("a jail needs root")
    words = ["unshare", "--mount", "--pid", "--net", "--fork", "true"]
    if subprocess.run(words, capture_output=True, check=False).returncode != 0:
        pytest.skip("namespaces cannot be made here")
