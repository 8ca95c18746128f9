"""Command-line flags of a kind's wish, derived from its type, and the wish that given flags make.

``snake_case`` becomes ``--kebab-case``; fields of a nested struct carry its name (``--quota-vms``). A list of structs
has the struct's fields as flags: each occurrence of the first one starts a new element.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import click
import msgspec
from click.shell_completion import CompletionItem

from pileus.cli.completing import complete_names
from pileus.cli.fields import Field, fields_of
from pileus.cli.values import Value
from pileus.kernel.kind import Kind

Given = Sequence[tuple["Flag", Any]]
Json = dict[str, Any]

RESERVED = frozenset(
    {
        "account", "all-accounts", "context", "dry-run", "file", "help", "initrd", "kernel", "label", "output",
        "reset", "timeout", "wait", "yes",
    }
)  # fmt: skip
"""Words that the commands themselves use; a field of that name carries its parent's or the kind's word in front."""

_GIVEN = "pileus.given"


@dataclass(frozen=True, slots=True, kw_only=True)
class Flag:
    """A flag: where its value goes. ``group`` is the path of the list of structs that it belongs to, or empty."""

    word: str
    field: Field
    path: tuple[str, ...]
    group: tuple[str, ...] = ()
    first: bool = False
    needed: bool = False
    """The first flag of a group that must be given."""
    noun: str = ""

    @property
    def name(self) -> str:
        """The flag as it is written."""
        return f"--{self.word}"

    @property
    def dest(self) -> str:
        """Click's name of the parameter; it cannot meet another's."""
        return f"desired_{self.word.replace('-', '_')}"


def flags_of(kind: Kind) -> tuple[Flag, ...]:
    """Return the flags of a kind's wish, in the order of its fields."""
    taken = set(RESERVED)
    made = []
    for flag in _flags(fields_of(kind.desired), (), kind.short):
        word = flag.word if flag.word not in taken else f"{flag.noun}-{flag.word}"
        taken.add(word)
        made.append(replace(flag, word=word))
    return tuple(made)


def _flags(fields: Iterable[Field], prefix: tuple[str, ...], noun: str) -> Iterator[Flag]:
    for field in fields:
        path = (*prefix, field.name)
        if field.struct is not None and field.many:
            yield from _group(field, path)
        elif field.struct is not None:
            yield from _flags(field.fields, path, noun)
        else:
            yield Flag(word=_word(field, prefix), field=field, path=path, noun=noun)


def _group(field: Field, group: tuple[str, ...]) -> Iterator[Flag]:
    noun = field.name.removesuffix("s").replace("_", "-")
    for position, flag in enumerate(_flags(field.fields, (), noun)):
        first = position == 0
        yield replace(flag, group=group, first=first, needed=first and field.required and len(group) == 1, noun=noun)


def _word(field: Field, prefix: tuple[str, ...]) -> str:
    return "-".join((*prefix, field.flag or field.name)).replace("_", "-")


# making the wish


def desired_of(given: Given) -> Json:
    """Return the wish that the given flags make, with nothing in it that was not said. Raises: UsageError."""
    desired: Json = {}
    open_groups: dict[tuple[str, ...], Json] = {}
    for flag, value in given:
        if not flag.group:
            _set(desired, flag, value)
            continue
        element = open_groups.get(flag.group)
        if element is None or (flag.first and _get(element, flag.path) is not None):
            element = open_groups[flag.group] = {}
            _parent(desired, flag.group).setdefault(flag.group[-1], []).append(element)
        _set(element, flag, value)
    return desired


def _parent(root: Json, path: tuple[str, ...]) -> Json:
    for name in path[:-1]:
        root = root.setdefault(name, {})
    return root


def _get(root: Json, path: tuple[str, ...]) -> Any:
    for name in path:
        root = root.get(name, {})
    return root if root != {} else None


def _set(root: Json, flag: Flag, value: Any) -> None:
    where = _parent(root, flag.path)
    name = flag.path[-1]
    if flag.field.many:
        # An empty value empties the list: `--dns ''`.
        where.setdefault(name, []).extend(value)
    elif name in where:
        start = f"; put {_start(flag)} before the flags of each further {flag.noun}" if flag.group else ""
        raise click.UsageError(f"{flag.name} is given twice{start}", click.get_current_context(silent=True))
    else:
        where[name] = value


def _start(flag: Flag) -> str:
    return "the group's first flag" if flag.first else "its first flag"


# the click side


class FlagOption(click.Option):
    """An option made from a field."""

    def __init__(self, flag: Flag, *, required: bool) -> None:
        self.flag = flag
        super().__init__(
            [flag.name, flag.dest],
            type=Value(flag.name, flag.field),
            multiple=True,
            help=_help(flag, required=required),
            metavar=_metavar(flag.field),
            shell_complete=_complete,
        )


def _complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    assert isinstance(param, FlagOption)
    field = param.flag.field
    if field.choices:
        return [CompletionItem(word) for word in field.choices if word.startswith(incomplete)]
    if field.ref:
        return complete_names(ctx, field.ref, incomplete)
    return [CompletionItem(incomplete, type="file")] if field.file or field.flag else []


def _metavar(field: Field) -> str:
    if field.choices:
        return "|".join(field.words)
    if field.file:
        return "FILE"
    if field.ref:
        return field.ref.rpartition(".")[2].upper()
    if field.plain_text:
        return "TEXT|JSON"
    return {"integer": "N", "number": "X", "json": "JSON"}.get(field.form, "TEXT")


def _help(flag: Flag, *, required: bool) -> str:
    field = flag.field
    notes = []
    if required and (flag.needed or (field.required and not flag.group)):
        notes.append("required")
    elif field.default not in (None, "", [], 0):
        default = ",".join(map(str, field.default)) if isinstance(field.default, list) else str(field.default)
        notes.append(f"default: {default}")
    if flag.group:
        notes.append(f"starts a further {flag.noun}" if flag.first else f"of the {flag.noun}")
    elif field.many:
        notes.append("may be repeated")
    text = field.description or f"{field.name.replace('_', ' ').capitalize()}."
    return f"{text}  [{'; '.join(notes)}]" if notes else text


class DesiredCommand(click.Command):
    """A command with the flags of a kind, which keeps the order in which they were given."""

    def __init__(
        self, name: str, flags: tuple[Flag, ...], *, required: bool, fixed: tuple[Flag, ...] = (), **attributes: Any
    ) -> None:
        """``fixed``: flags that the kind has, and this command does not take."""
        self._fixed = frozenset(flag.name for flag in fixed)
        self.flag_options = [FlagOption(flag, required=required) for flag in flags]
        self._required = required
        attributes["params"] = [*attributes["params"], *self.flag_options]
        super().__init__(name, **attributes)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse as click does, and keep (flag, value) in the order of the command line."""
        try:
            _, _, order = self.make_parser(ctx).parse_args(args=list(args))
        except click.NoSuchOption as unknown:
            if unknown.option_name not in self._fixed:
                raise
            raise click.UsageError(f"{unknown.option_name} cannot change once the {self.name} is made", ctx) from None
        rest = super().parse_args(ctx, args)
        values = {option: iter(ctx.params.pop(option.flag.dest, None) or ()) for option in self.flag_options}
        given = [(param.flag, next(values[param])) for param in order if isinstance(param, FlagOption)]
        ctx.meta[_GIVEN] = given
        if self._required and not ctx.resilient_parsing:
            self._refuse_missing(ctx, given)
        return rest

    def _refuse_missing(self, ctx: click.Context, given: Given) -> None:
        said = {flag.path for flag, _ in given if not flag.group}
        groups = {flag.group for flag, _ in given}
        for option in self.flag_options:
            flag = option.flag
            is_missing = flag.field.required and not flag.group and flag.path not in said
            if is_missing or (flag.needed and flag.group not in groups):
                raise click.UsageError(f"{flag.name} is missing: {flag.field.description}", ctx)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the kind's own flags first, then those of the command."""
        own = [record for option in self.flag_options if (record := option.get_help_record(ctx))]
        others = [
            param
            for param in self.get_params(ctx)
            if isinstance(param, click.Option) and not isinstance(param, FlagOption)
        ]
        rest = [record for param in others if (record := param.get_help_record(ctx))]
        for title, rows in (("What it shall be", own), ("Options", rest)):
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)


def given_flags() -> Given:
    """Return the flags of the running command in the order in which they were given."""
    found: Given = click.get_current_context().meta[_GIVEN]
    return found


def check(kind: Kind, desired: Json) -> None:
    """Raises: UsageError when the kind's type refuses the wish, so that nothing is sent in vain."""
    try:
        msgspec.convert(desired, kind.desired)
    except msgspec.ValidationError as error:
        raise click.UsageError(_refusal(kind, str(error)), click.get_current_context(silent=True)) from None


def _refusal(kind: Kind, words: str) -> str:
    """Return what the type says, in words for people; a field of a list that is missing is a flag to them."""
    from pileus.kernel.shape import missing_in

    message, _, where = words.partition(" - at `$.")
    field = where.rstrip("`")
    missing = missing_in(message)
    path = (*re.sub(r"\[\d+\]", "", field).split("."), missing)
    for flag in flags_of(kind):
        if missing and (*flag.group, *flag.path) == path:
            return f"{flag.name} is missing: {flag.field.description}"
    return f"{field}: {message[:1].lower()}{message[1:]}" if field else message
