"""``pileus explain KIND[.FIELD...]``: what the types say, without a server."""

from __future__ import annotations

import ast
import functools
import inspect
import sys
import textwrap
from collections.abc import Iterator, Sequence

import click
from click.shell_completion import CompletionItem
from msgspec import Struct

from pileus.cli.failure import suggestion, usage
from pileus.cli.fields import Field, fields_of
from pileus.cli.flags import flags_of
from pileus.cli.session import a, find_kind
from pileus.cli.units import UNITS, suffix
from pileus.kernel.kind import Empty, Kind
from pileus.registry import KINDS

WIDTH = 100


def _complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    word, dot, _ = incomplete.rpartition(".")
    if not dot:
        return [CompletionItem(kind.short) for kind in KINDS if kind.short.startswith(incomplete)]
    try:
        kind, path = _target(word)
    except click.UsageError:
        return []
    fields = _resolve(kind, path)[0]
    return [CompletionItem(f"{word}.{one.name}") for one in fields if f"{word}.{one.name}".startswith(incomplete)]


@click.command("explain")
@click.argument("target", metavar="[KIND[.FIELD...]]", default="", shell_complete=_complete)
def command(target: str) -> None:
    """Say what a kind or a field means: type, unit, default, limits, reasons.

    `pileus explain`, `pileus explain vm`, `pileus explain vm.nics.address`, `pileus explain vm.observed`
    """
    lines = _kinds() if not target else _explain(*_target(target))
    sys.stdout.write("\n".join(lines) + "\n")


def _kinds() -> Iterator[str]:
    width = max(len(kind.name) for kind in KINDS)
    for kind in KINDS:
        yield f"{kind.short:<10} {kind.name:<{width}}  {kind.summary}"


def _target(text: str) -> tuple[Kind, Sequence[str]]:
    """Return the kind and the words after it; ``compute.vm.nics`` and ``vm.nics`` are the same."""
    words = text.split(".")
    full = ".".join(words[:2])
    if full in KINDS:
        return KINDS[full], words[2:]
    return find_kind(words[0], click.get_current_context(silent=True)), words[1:]


def _explain(kind: Kind, path: Sequence[str]) -> Iterator[str]:
    if not path:
        yield from _kind(kind)
        return
    fields, field, struct = _resolve(kind, path)
    yield from _wrap(f"{kind.short}.{'.'.join(path)}  ", kind_of(field) if field else "")
    if field is not None:
        yield ""
        yield from _facts(kind, path, field)
    if struct is not None and fields:
        yield ""
        yield from _doc(struct)
        yield from _fields(fields)


def _kind(kind: Kind) -> Iterator[str]:
    yield from _wrap(f"{kind.name}: ", kind.summary)
    yield ""
    owner = {"cluster": "the cluster", "account": "an account", "either": "an account or the cluster"}[kind.scope]
    words = (kind.plural, *kind.aliases)
    yield f"Also called  {', '.join(dict.fromkeys(words))}"
    yield f"Belongs to   {owner}"
    yield f"Made by      {_maker(kind)}"
    for word, title in (("desired", "the wish"), ("assigned", "the decision"), ("observed", "the fact")):
        section: type[Struct] = getattr(kind, word)
        if section is not Empty:
            yield ""
            yield f"{word}: {title}"
            yield from _doc(section, "  ")
            yield from _fields(fields_of(section), wish=word == "desired", fixed=kind.immutable)
    reasons = reasons_of(kind)
    if reasons:
        yield ""
        yield "reasons of the condition Ready"
        width = max(len(reason) for reason, _ in reasons)
        for reason, message in reasons:
            yield from _wrap(f"  {reason:<{width}}  ", message)


def _maker(kind: Kind) -> str:
    if kind.created_by == "kernel":
        return "the cloud itself, never by hand"
    return "operators" if kind.writable_by == "operator" else "owners and members of the account, and operators"


def _resolve(kind: Kind, path: Sequence[str]) -> tuple[tuple[Field, ...], Field | None, type[Struct] | None]:
    """Return the fields below the path, the field at it, and the struct that it holds."""
    struct: type[Struct] | None = kind.desired
    rest = list(path)
    if rest and rest[0] in ("desired", "assigned", "observed"):
        struct = getattr(kind, rest.pop(0))
    field: Field | None = None
    for word in rest:
        known = {one.name: one for one in (fields_of(struct) if struct is not None else ())}
        name = word.replace("-", "_").partition("[")[0]
        if name not in known:
            close = suggestion(name, list(known)) or (f"; it has {', '.join(known)}" if known else "")
            raise usage(f"{kind.short}.{'.'.join(path)}: there is no field {word!r}{close}")
        field = known[name]
        struct = field.struct
    return (fields_of(struct) if struct is not None else ()), field, struct


def _facts(kind: Kind, path: Sequence[str], field: Field) -> Iterator[str]:
    """Yield everything the type says of one field."""
    if field.description:
        yield from _wrap("", field.description)
        yield ""
    unit = UNITS.get(suffix(field.name), "")
    facts = [
        ("Unit", unit),
        ("Default", "none: it must be given" if field.required else default_of(field)),
        ("Limits", limits_of(field)),
        ("One of", ", ".join(field.words)),
        ("Refers to", f"{a(field.ref.rpartition('.')[2])}, by name or id" if field.ref else ""),
        ("Flag", _flag(kind, path)),
        ("Changes", "never after creation" if path[-1] in kind.immutable and len(path) == 1 else ""),
    ]
    for word, text in facts:
        if text:
            yield from _wrap(f"{word:<10} ", text)


def _flag(kind: Kind, path: Sequence[str]) -> str:
    plain = [word for word in path if word != "desired"]
    for flag in flags_of(kind) if kind.created_by == "user" else ():
        if list((*flag.group, *flag.path)) == plain:
            text = " (a path, or - for standard input)" if flag.field.file else ""
            return flag.name + (" (@FILE or a path reads it)" if flag.field.flag else text)
    return ""


def _fields(fields: Sequence[Field], *, wish: bool = True, fixed: frozenset[str] = frozenset()) -> Iterator[str]:
    """Yield a line for each field. Outside the wish nobody gives anything: nothing is required there or has a default."""
    if not fields:
        yield "  (no fields)"
        return
    names = max(len(field.name) for field in fields)
    kinds = min(34, max(len(kind_of(field)) for field in fields))
    for field in fields:
        notes = [field.description.rstrip(".")] if field.description else []
        if wish:
            notes += ["required"] if field.required else []
            notes += [f"default {default_of(field)}"] if field.default not in (None, "", []) else []
            notes += [limits_of(field)] if limits_of(field) else []
            notes += ["cannot change"] if field.name in fixed else []
        head = f"  {field.name:<{names}}  {kind_of(field):<{kinds}}  "
        if len(kind_of(field)) > kinds:
            yield from _wrap(f"  {field.name:<{names}}  ", kind_of(field))
            head = " " * (names + kinds + 6)
        yield from _wrap(head, "; ".join(notes))


def kind_of(field: Field) -> str:
    """Return the type of a field in words: ``integer (MiB)``, ``list of text``, ``running | stopped``."""
    word = " | ".join(field.words) if field.choices else str(field.form)
    if field.struct is not None:
        word = field.struct.__name__
    if field.ref:
        word = f"name of {field.ref.rpartition('.')[2]}"
    unit = UNITS.get(suffix(field.name), "")
    if unit and field.form in ("integer", "number"):
        word += f" ({unit})"
    return f"list of {word}" if field.many else word


def default_of(field: Field) -> str:
    """Return the default as it is written in JSON, ``empty`` for nothing."""
    import msgspec

    if field.default in (None, "", []):
        return "empty"
    return field.default if isinstance(field.default, str) else msgspec.json.encode(field.default).decode()


def limits_of(field: Field) -> str:
    """Return the limits in words; empty when there are none."""
    found = []
    low, high = field.minimum, field.maximum
    if low is not None or high is not None:
        found.append(f"{low} to {high}" if low is not None and high is not None else f"at least {low}")
    if field.length_max is not None:
        found.append(f"at most {field.length_max} characters")
    if field.items_max is not None:
        found.append(f"at most {field.items_max} of them")
    if field.items_min:
        found.append(f"at least {field.items_min} of them")
    return ", ".join(found)


def _doc(struct: type[Struct], indent: str = "") -> Iterator[str]:
    text = inspect.getdoc(struct)
    # msgspec gives a struct without a docstring that of its base.
    if text and text != inspect.getdoc(Struct):
        yield from _wrap(indent, text.replace("``", "").replace("\n", " "))


def _wrap(head: str, text: str) -> Iterator[str]:
    lines = textwrap.wrap(text, max(40, WIDTH - len(head))) or [""]
    yield f"{head}{lines[0]}".rstrip()
    for line in lines[1:]:
        yield " " * len(head) + line


@functools.cache
def reasons_of(kind: Kind) -> tuple[tuple[str, str], ...]:
    """Return the reasons that the kind's own types give Ready, with their messages; ``...`` stands for values."""
    module = inspect.getmodule(kind.desired)
    if module is None:
        return ()
    found: dict[str, str] = {}
    for call in ast.walk(ast.parse(inspect.getsource(module))):
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or not call.args:
            continue
        reason = call.args[0]
        if call.func.id in ("ready", "unready", "unknown") and isinstance(reason, ast.Constant):
            found.setdefault(str(reason.value), _said(call.args[1]) if len(call.args) > 1 else "")
    return tuple(found.items())


def _said(message: ast.expr) -> str:
    if isinstance(message, ast.Constant):
        return str(message.value)
    if isinstance(message, ast.Call) and isinstance(message.func, ast.Attribute):
        return _said(message.func.value)
    if isinstance(message, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "..." for part in message.values)
    return ""
