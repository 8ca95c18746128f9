"""``make kind`` gives a kind that imports, type-checks, and passes the linter and its own tests."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tools.code import ROOT
from tools.new_kind import write


def run(root: Path, *arguments: str) -> None:
    """Run a Python module in the copy; what it says is shown when it fails."""
    environment = os.environ | {"PYTHONPATH": f"{root}/src:{ROOT}/src", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-m", *arguments], cwd=root, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{' '.join(arguments)}\n{done.stdout}{done.stderr}"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A checkout with the package and the settings, without the history."""
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    package = tmp_path / "src" / "pileus"
    for file in (ROOT / "src" / "pileus").rglob("*.py"):
        place = package / file.relative_to(ROOT / "src" / "pileus")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(file.read_bytes())
    return tmp_path


def test_a_new_kind_is_clean_and_its_tests_pass(copy: Path) -> None:
    written = [str(path.relative_to(copy)) for path in write(copy, "metering.usage")]
    assert "src/pileus/metering/usage/types.py" in written
    run(copy, "ruff", "check", *written)
    run(copy, "ruff", "format", "--check", *written)
    run(copy, "mypy", "--no-incremental", *(path for path in written if path.startswith("src")))
    run(copy, "pytest", "-q", "-p", "no:cacheprovider", "tests/unit/metering")


def test_a_kind_that_exists_is_left_alone(copy: Path) -> None:
    with pytest.raises(ValueError, match=r"compute\.vm exists already"):
        write(copy, "compute.vm")


@pytest.mark.parametrize("name", ["session", "Mirror.session", "mirror.../x", "mirror.a.b"])
def test_a_name_that_is_no_kind_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="is not CAPABILITY"):
        write(tmp_path, name)
    assert list(tmp_path.iterdir()) == []
