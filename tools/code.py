"""Reads the project's own source: what is called, with which words."""

from __future__ import annotations

import ast
import functools
import itertools
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "pileus"


@functools.cache
def tree(file: Path) -> ast.Module:
    """Return a file's syntax tree."""
    return ast.parse(file.read_text(), str(file))


def files(folder: Path = SOURCE) -> list[Path]:
    """Return the Python files below a folder, in order."""
    return sorted(file for file in folder.rglob("*.py") if "__pycache__" not in file.parts)


def calls(file: Path) -> Iterator[tuple[str, ast.Call]]:
    """Yield (name of what is called, call): ``Conflict``, or ``get`` for ``store.get``."""
    for part in ast.walk(tree(file)):
        if isinstance(part, ast.Call):
            if isinstance(part.func, ast.Name):
                yield part.func.id, part
            elif isinstance(part.func, ast.Attribute):
                yield part.func.attr, part


Texts = dict[str, list[tuple[int, ast.expr]]]


def text_of(expression: ast.expr | None, texts: Texts | None = None) -> str:
    """Return a string expression as text with ``…`` for what is only known at run time; empty for no string.

    A name stands for the nearest text that was bound to it above.
    """
    if isinstance(expression, ast.Constant) and isinstance(expression.value, str):
        return expression.value
    if isinstance(expression, ast.JoinedStr):
        return re.sub("…+", "…", "".join(text_of(part) or "…" for part in expression.values))
    if isinstance(expression, ast.Name) and texts:
        above = [value for line, value in texts.get(expression.id, ()) if line < expression.lineno]
        return text_of(above[-1]) if above else ""
    if isinstance(expression, ast.Call) and isinstance(expression.func, ast.Attribute):
        return text_of(expression.func.value)
    return ""


def assigned_texts(file: Path) -> Texts:
    """Return the string expressions that each name of the file is bound to, with their lines, in order."""
    found: Texts = {}
    for part in ast.walk(tree(file)):
        if isinstance(part, ast.Assign) and isinstance(part.value, ast.Constant | ast.JoinedStr):
            for target in part.targets:
                if isinstance(target, ast.Name):
                    found.setdefault(target.id, []).append((part.lineno, part.value))
    return {name: sorted(values, key=lambda pair: pair[0]) for name, values in found.items()}


def attribute_docs(file: Path, struct: str) -> dict[str, str]:
    """Return the docstrings under the attributes of a class, by attribute."""
    found: dict[str, str] = {}
    for part in ast.walk(tree(file)):
        if isinstance(part, ast.ClassDef) and part.name == struct:
            for field, below in itertools.pairwise(part.body):
                if (
                    isinstance(field, ast.AnnAssign)
                    and isinstance(below, ast.Expr)
                    and isinstance(field.target, ast.Name)
                ):
                    found[field.target.id] = first_sentence(text_of(below.value))
    return found


def keyword(call: ast.Call, name: str) -> ast.expr | None:
    """Return the value of a keyword argument."""
    return next((word.value for word in call.keywords if word.arg == name), None)


def first_sentence(text: str | None) -> str:
    """Return the first paragraph of a docstring, on one line."""
    return " ".join((text or "").strip().partition("\n\n")[0].split())
