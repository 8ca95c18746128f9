"""Starts a new kind: ``make kind NAME=metering.usage`` writes its folder and its tests from templates."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tools.code import ROOT

NAME = re.compile(r"([a-z]+)\.([a-z]+)")
PARTS = Path(__file__).parent / "kind"

NEXT = """next:
  1. fill types.py, then plan.py and its table of tests
  2. src/pileus/registry.py: add {kind}.KIND, in the order of the capabilities
  3. src/pileus/server/wiring.py: its controller and admission; src/pileus/agent/wiring.py: its host half, if it has one
  4. docs/concepts/{capability}.md: a paragraph; then: make docs && make check"""


def write(root: Path, name: str) -> list[Path]:
    """Write the files of kind ``name`` below the checkout ``root`` and return them. Raises: ValueError."""
    match = NAME.fullmatch(name)
    if match is None:
        raise ValueError(f"{name!r} is not CAPABILITY.KIND in lower-case letters, such as metering.usage")
    capability, kind = match.groups()
    folder = root / "src" / "pileus" / capability / kind
    if folder.exists():
        raise ValueError(f"{name} exists already in {folder.relative_to(root)}")
    words = {"@CAPABILITY@": capability, "@KIND@": kind, "@CLASS@": kind.capitalize()}
    written = []
    for template in sorted(PARTS.glob("*.txt")):
        place = root / _replaced(template.stem.replace("+", "/"), words)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(_replaced(template.read_text(), words))
        written.append(place)
    for package in (folder, folder.parent):
        if not (package / "__init__.py").exists():
            (package / "__init__.py").touch()
            written.append(package / "__init__.py")
    # Where the kind's own imports belong depends on its name.
    ruff = [sys.executable, "-m", "ruff", "check", "--quiet", "--select", "I", "--fix", "--no-cache"]
    subprocess.run([*ruff, *written], cwd=root, check=True)
    return written


def _replaced(text: str, words: dict[str, str]) -> str:
    for word, value in words.items():
        text = text.replace(word, value)
    return text


def main(arguments: Sequence[str]) -> int:
    """Write the kind and return the exit code."""
    if len(arguments) != 1:
        print("say which kind: make kind NAME=metering.usage", file=sys.stderr)
        return 2
    try:
        written = write(ROOT, arguments[0])
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for path in written:
        print(f"wrote {path.relative_to(ROOT)}")
    capability, _, kind = arguments[0].partition(".")
    print(NEXT.format(capability=capability, kind=kind))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
