"""Requests to calls: every parameter is known, well-formed and given once, or the request is refused."""

from __future__ import annotations

import difflib
from collections.abc import Collection

import msgspec
from starlette.requests import HTTPConnection

from pileus.kernel.access import Principal
from pileus.kernel.errors import Invalid
from pileus.kernel.reading import LIMIT_MAX, Call, ListQuery
from pileus.server.edge import PRINCIPAL, REQUEST_ID

IDS_MAX = 512
LABELS_MAX = 4
TEXT_MAX = 255
COMMON = ("account", "all_accounts")
LIST = (
    *COMMON, "host", "zone", "vdc", "manager", "owner", "name", "ready", "label", "id", "owned", "limit", "after",
    "watch", "since",
)  # fmt: skip
REPEATED = ("label",)


class Query:
    """The parameters of one request."""

    def __init__(self, connection: HTTPConnection, known: Collection[str]) -> None:
        self._given: dict[str, list[str]] = {}
        for name, value in connection.query_params.multi_items():
            _check(name, value, known)
            self._given.setdefault(name, []).append(value)
        for name, values in self._given.items():
            if len(values) > 1 and name not in REPEATED:
                raise Invalid(f"the parameter {name} is given {len(values)} times", field=name)

    def text(self, name: str) -> str:
        """Return a parameter; empty when it is not given."""
        return self._given.get(name, [""])[0]

    def number(self, name: str, default: int, most: int) -> int:
        """Return a whole number from 0 to ``most``. Raises: Invalid."""
        text = self.text(name)
        if not text:
            return default
        if not (text.isascii() and text.isdigit() and len(text) < 20 and int(text) <= most):
            raise Invalid(f"{name} must be a whole number from 0 to {most}, not {text!r}", field=name)
        return int(text)

    def flag(self, name: str) -> bool:
        """Return whether a switch is on. Raises: Invalid."""
        text = self.text(name)
        if text not in ("", "0", "1", "true", "false"):
            raise Invalid(f"{name} must be 1 or 0, not {text!r}", field=name)
        return text in ("1", "true")

    def list_query(self) -> ListQuery:
        """Return the filters of a list. Raises: Invalid."""
        ready = self.text("ready")
        if ready not in ("", "true", "false", "unknown"):
            raise Invalid(f"ready must be true, false or unknown, not {ready!r}", field="ready")
        limit = self.number("limit", 500, LIMIT_MAX)
        if limit == 0:
            raise Invalid(f"limit must be from 1 to {LIMIT_MAX}", field="limit")
        return ListQuery(
            host=self.text("host"),
            zone=self.text("zone"),
            vdc=self.text("vdc"),
            manager=self.text("manager"),
            owner=self.text("owner"),
            name=self.text("name"),
            ready=ready,
            labels=self._labels(),
            ids=self._ids(),
            owned=self.flag("owned"),
            limit=limit,
            after=self.text("after"),
        )

    def _labels(self) -> tuple[tuple[str, str], ...]:
        given = self._given.get("label", [])
        if len(given) > LABELS_MAX:
            raise Invalid(f"at most {LABELS_MAX} labels in one list", field="label")
        pairs = []
        for text in given:
            key, equals, value = text.partition("=")
            if not equals or not key:
                raise Invalid(f"label must be key=value, not {text!r}", field="label")
            pairs.append((key, value))
        return tuple(sorted(set(pairs)))

    def _ids(self) -> tuple[str, ...]:
        ids = sorted({id for id in self.text("id").split(",") if id})
        if len(ids) > IDS_MAX:
            raise Invalid(f"at most {IDS_MAX} ids in one list", field="id")
        if not ids:
            return ()
        # Padded to a power of two: each length is a statement of its own, and those are kept.
        size = 1 << (len(ids) - 1).bit_length()
        return (*ids, *[ids[-1]] * (size - len(ids)))


def call(connection: HTTPConnection, query: Query, *, dry_run: bool = False) -> Call:
    """Return who calls and how. Raises: Invalid."""
    key = connection.headers.get("idempotency-key", "")
    if len(key) > TEXT_MAX or not (key.isascii() and key.isprintable()):
        raise Invalid(f"Idempotency-Key must be at most {TEXT_MAX} printable ASCII characters")
    principal: Principal = connection.scope[PRINCIPAL]
    return Call(
        principal=principal,
        request_id=connection.scope[REQUEST_ID],
        account=query.text("account"),
        all_accounts=query.flag("all_accounts"),
        dry_run=dry_run,
        idempotency_key=key,
    )


def ident(connection: HTTPConnection) -> str:
    """Return the id or name in the path. Raises: Invalid for what could be neither."""
    word: str = connection.path_params["ident"]
    if len(word) > TEXT_MAX or not word.isprintable():
        raise Invalid("the path holds no id and no name", field="ident")
    return word


def kind(connection: HTTPConnection) -> str:
    """Return the kind in the path."""
    return str(connection.path_params["kind"])


def answer_json(value: object) -> bytes:
    """Return a small answer of the server's own."""
    return msgspec.json.encode(value)


def _check(name: str, value: str, known: Collection[str]) -> None:
    if name not in known:
        close = difflib.get_close_matches(name[:TEXT_MAX], known, 1)
        hint = f"did you mean {close[0]}?" if close else f"this path takes {', '.join(known) or 'none'}"
        raise Invalid(f"there is no parameter {name[:TEXT_MAX]!r}; {hint}", code="unknown-parameter", field=name[:63])
    limit = IDS_MAX * 37 if name == "id" else 2 * TEXT_MAX
    if len(value) > limit or not (value == "" or value.isprintable()):
        raise Invalid(f"the parameter {name} is too long or holds characters that cannot be printed", field=name)
