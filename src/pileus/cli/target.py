"""A VM as the commands that use one take it: ``vm/web``, ``vm web`` or just ``web``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click
from click.shell_completion import CompletionItem

from pileus.cli.completing import complete_names
from pileus.cli.session import a
from pileus.kernel.errors import NotFound
from pileus.kernel.kind import Kind
from pileus.registry import KINDS

F = TypeVar("F", bound=Callable[..., Any])
VM: Kind = KINDS["compute.vm"]


def vm_argument(rest: str = "") -> Callable[[F], F]:
    """Add the argument VM, and what may follow it, as ``words``; see ``split``."""
    metavar = f"VM {rest}".rstrip()
    return click.argument("words", metavar=metavar, nargs=-1, required=True, shell_complete=_complete)


def split(words: Sequence[str], what: str) -> tuple[str, list[str]]:
    """Return the VM's name or id, and the words after it. ``what``: what only VMs have, for the error.

    Raises: UsageError when it is no VM.
    """
    first, *rest = words
    word, slash, name = first.partition("/")
    if not slash and not _kind(word):
        return first, rest  # a plain name
    kind = KINDS.find(word) if _kind(word) else None
    if kind is not VM:
        found = a(kind.short) if kind is not None else f'"{first}"'
        raise click.UsageError(f"only a vm has {what}, not {found}; name it like vm/web")
    if not slash and rest:
        name, *rest = rest
    if not name:
        raise click.UsageError("the name of the VM is missing; name it like vm/web")
    return name, rest


def _kind(word: str) -> bool:
    try:
        KINDS.find(word)
    except NotFound:
        return False
    return True


def _complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    words = ctx.params.get("words") or ()
    if words and not (len(words) == 1 and words[0] == VM.short):
        return []
    prefix = f"{VM.short}/" if incomplete.startswith(f"{VM.short}/") else ""
    names = complete_names(ctx, VM.name, incomplete.removeprefix(prefix))
    return [CompletionItem(f"{prefix}{item.value}") for item in names]
