"""Writes the generated reference, or (``--check``) tells which of it is not current."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from pileus.registry import KINDS
from tools.cli_page import cli_page
from tools.code import ROOT, SOURCE, first_sentence
from tools.error_page import errors_page
from tools.pages import kind_page, kinds_index, reasons_page

REFERENCE = ROOT / "docs" / "reference"
TREE_START, TREE_END = "<!-- tree -->\n", "<!-- /tree -->"


def pages() -> dict[Path, str]:
    """Return every generated file with its text."""
    result = {REFERENCE / f"{kind.name}.md": kind_page(kind) for kind in KINDS}
    result[REFERENCE / "kinds.md"] = kinds_index()
    result[REFERENCE / "reasons.md"] = reasons_page()
    result[REFERENCE / "errors.md"] = errors_page()
    result[REFERENCE / "cli.md"] = cli_page()
    guide = ROOT / "DEVELOPMENT.md"
    head, _, rest = guide.read_text().partition(TREE_START)
    tail = rest.partition(TREE_END)[2]
    result[guide] = f"{head}{TREE_START}```text\n{source_tree()}```\n{TREE_END}{tail}"
    return result


def source_tree() -> str:
    """Return the folders of the package with what each is for."""
    rows = list(_tree(SOURCE, "src/pileus"))
    width = max(len(path) for path, _ in rows)
    return "".join(f"{path:<{width}}  {text}".rstrip() + "\n" for path, text in rows)


def stale(current: dict[Path, str]) -> list[Path]:
    """Return the files whose text is not what it should be, and generated pages that nothing stands for any more."""
    wrong = [path for path, text in current.items() if not path.is_file() or path.read_text() != text]
    return sorted([*wrong, *(path for path in REFERENCE.glob("*.md") if path not in current)])


def main(arguments: Sequence[str]) -> int:
    """Write or check, and return the exit code."""
    current = pages()
    wrong = stale(current)
    for path in wrong:
        if "--check" in arguments:
            print(f"{path.relative_to(ROOT)} is not current; run: make docs")
        elif path in current:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(current[path])
            print(f"wrote {path.relative_to(ROOT)}")
        else:
            path.unlink()
            print(f"removed {path.relative_to(ROOT)}")
    return 1 if wrong and "--check" in arguments else 0


def _tree(folder: Path, name: str, depth: int = 0) -> Iterator[tuple[str, str]]:
    """Yield (indented name, purpose): folders two deep, the drivers' three deep."""
    yield "  " * depth + f"{name}/", _purpose(folder)
    deepest = 3 if "drivers" in folder.parts else 2
    if depth < deepest:
        for below in sorted(folder.iterdir()):
            if (below / "__init__.py").is_file():
                yield from _tree(below, below.name, depth + 1)


def _purpose(folder: Path) -> str:
    for name in ("__init__.py", "types.py", "base.py"):
        file = folder / name
        if file.is_file():
            text = first_sentence(ast.get_docstring(ast.parse(file.read_text())))
            if text:
                return text.partition(". ")[0].rstrip(".")
    return ""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
