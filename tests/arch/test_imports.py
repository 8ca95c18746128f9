"""Who may import whom, beyond what import-linter can say; and that its contracts really bite."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tools.code import ROOT, SOURCE, files, tree

from pileus.registry import KINDS

SHARED = {"types", "plan"}
"""The parts of a kind that other kinds may import: both are pure (docs/decisions/0007)."""

PARTS = {"__init__", "types", "plan", "api", "controller", "host"}

KIND_FOLDERS = [SOURCE / kind.name.replace(".", "/") for kind in KINDS]


def imported(file: Path) -> list[str]:
    """Return the modules that a file imports from the package."""
    found = []
    for part in ast.walk(tree(file)):
        if isinstance(part, ast.ImportFrom) and part.module and part.module.startswith("pileus."):
            found += [part.module, *(f"{part.module}.{name.name}" for name in part.names)]
        elif isinstance(part, ast.Import):
            found += [name.name for name in part.names if name.name.startswith("pileus.")]
    return found


@pytest.mark.parametrize("folder", KIND_FOLDERS, ids=lambda folder: f"{folder.parent.name}.{folder.name}")
def test_a_kind_sees_only_types_and_plans_of_other_kinds(folder: Path) -> None:
    own = f"pileus.{folder.parent.name}.{folder.name}"
    others = {f"pileus.{kind.name}" for kind in KINDS} - {own}
    for file in files(folder):
        for module in imported(file):
            words = module.split(".")
            if ".".join(words[:3]) in others and len(words) > 3:
                assert words[3] in SHARED, f"{file.relative_to(ROOT)} imports {module}"


def test_every_kind_has_a_folder_of_its_own_name_and_every_folder_a_kind() -> None:
    capabilities = {kind.name.partition(".")[0] for kind in KINDS}
    found = {
        f"{capability}.{folder.name}"
        for capability in capabilities
        for folder in (SOURCE / capability).iterdir()
        if (folder / "types.py").is_file()
    }
    assert found == {kind.name for kind in KINDS}


def test_unit_and_cloud_tests_use_no_real_driver() -> None:
    for suite in ("cloud",):
        for file in files(ROOT / "tests" / suite):
            real = [module for module in imported(file) if module.startswith("pileus.drivers") and ".real" in module]
            assert real == [], f"{file.relative_to(ROOT)} imports {real}"


PLANTED = {
    "kernel/clock.py": "import pileus.compute.vm.types",
    "network/port/controller.py": "import pileus.drivers.host.ovs.base",
    "storage/volume/host.py": "import sqlalchemy",
    "compute/vm/plan.py": "import time",
    "node/document.py": "import msgspec",
}
"""One violation for each contract."""


def test_import_contracts_catch_planted_violations(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for name, line in PLANTED.items():
        file = tmp_path / "src" / "pileus" / name
        file.write_text(f"{file.read_text()}\n{line}\n")
    (tmp_path / "src" / "pileus" / "unplaced").mkdir()
    (tmp_path / "src" / "pileus" / "unplaced" / "__init__.py").touch()
    tool = Path(sys.executable).parent / "lint-imports"
    done = subprocess.run(
        [tool, "--no-cache"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path / "src"), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "0 kept, 5 broken" in done.stdout, done.stdout
    assert "unplaced" in done.stdout
