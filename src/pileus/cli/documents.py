"""Wishes in files: several documents of YAML or JSON, each {kind, name, account, labels, desired}."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from msgspec import Struct

from pileus.cli.client import Json
from pileus.cli.failure import suggestion, usage
from pileus.cli.session import find_kind
from pileus.kernel.kind import Kind

KEYS = ("kind", "name", "account", "labels", "desired")

FROM_SERVER = frozenset(
    {
        "id", "account_id", "owner", "zone", "vdc", "host", "generation", "observed_generation", "revision",
        "created_at", "deleting_at", "assigned", "observed", "conditions", "items",
    }
)  # fmt: skip
"""What ``get -o yaml`` adds: dropped, so that what was got can be applied again."""


class Document(Struct, frozen=True, kw_only=True):
    """One wish. ``where`` says file and place in it."""

    kind: Kind
    name: str
    account: str
    labels: dict[str, str]
    desired: Json
    where: str


def read(names: tuple[str, ...]) -> list[Document]:
    """Return the documents of all files; ``-`` is standard input, a folder its files in order. Raises: Failure."""
    made = []
    for name in names:
        for file in _files(name):
            label = "standard input" if file == "-" else file
            for position, content in enumerate(_parse(_text(file), label), 1):
                for item in _items(content):
                    made.append(_document(item, f"{label}, document {position}"))
    return made


def _files(name: str) -> list[str]:
    folder = Path(name)
    if name == "-" or not folder.is_dir():
        return [name]
    found = sorted(str(file) for file in folder.iterdir() if file.suffix in (".yaml", ".yml", ".json"))
    if not found:
        raise usage(f"there is no .yaml, .yml or .json file in {name}")
    return found


def _text(name: str) -> str:
    try:
        return sys.stdin.read() if name == "-" else Path(name).read_text(encoding="utf-8")
    except OSError as error:
        raise usage(f"cannot read {name}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise usage(f"{name} is not text in UTF-8") from None


def _parse(text: str, label: str) -> list[Any]:
    import yaml

    try:
        # YAML 1.2 holds JSON; the C loader reads large files 8 times as fast where it is built in.
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        return [content for content in yaml.load_all(text, Loader=loader) if content is not None]
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}" if mark is not None else ""
        raise usage(f"{label}{place} is neither YAML nor JSON: {getattr(error, 'problem', None) or error}") from None


def parse_one(text: str, label: str) -> Any:
    """Return the only document in ``text``. Raises: Failure."""
    documents = _parse(text, label)
    if len(documents) != 1:
        raise usage(f"{label} must hold one document, not {len(documents)}")
    return documents[0]


def _items(content: Any) -> list[Any]:
    """Return the list that ``get -o json`` prints as its items; anything else as it is."""
    if isinstance(content, dict) and "kind" not in content and isinstance(content.get("items"), list):
        return list(content["items"])
    return content if isinstance(content, list) else [content]


def _document(content: Any, where: str) -> Document:
    if not isinstance(content, dict):
        raise usage(f"{where}: a document is a mapping with kind, name and desired, not {content!r:.60}")
    unknown = [str(key) for key in content if key not in KEYS and key not in FROM_SERVER]
    if unknown:
        raise usage(f"{where}: there is no key {unknown[0]!r} here{suggestion(unknown[0], list(KEYS))}")
    for key, form in (("kind", str), ("name", str), ("account", str), ("labels", dict), ("desired", dict)):
        if not isinstance(content.get(key) or form(), form):
            raise usage(f"{where}: {key} must be a {'mapping' if form is dict else 'text'}, not {content[key]!r:.60}")
    for key in ("kind", "name"):
        if not content.get(key):
            raise usage(f"{where}: {key} is missing")
    labels = {str(key): _label(value, where) for key, value in (content.get("labels") or {}).items()}
    return Document(
        kind=find_kind(content["kind"]),
        name=content["name"],
        account=content.get("account") or "",
        labels=labels,
        desired=content.get("desired") or {},
        where=where,
    )


def _label(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise usage(f"{where}: a label's value must be a text, not {value!r}", "put it between quotes")
    return value
