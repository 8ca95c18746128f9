"""Kinds of resources: what each is made of, and the registry from which everything generic is derived."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec
from msgspec import Struct

from pileus.kernel.condition import Condition
from pileus.kernel.errors import NotFound
from pileus.kernel.notice import Notice
from pileus.kernel.usage import Use

NAME_PATTERN = r"^[a-z]([a-z0-9-]{0,61}[a-z0-9])?$(?!\n)"
"""A DNS label (RFC 1035 2.3.1): names become host names, folder-safe and readable."""

_NAME = re.compile(NAME_PATTERN)


class Empty(Struct, frozen=True):
    """The section of a kind that has none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resource:
    """A resource with its sections decoded into the kind's structs.

    ``account`` is the account's name, ``account_id`` its id; both empty for what belongs to the cluster.
    ``owner`` is the id of the resource that made this one and whose deletion deletes it.
    ``manager`` is the id of the fleet manager that it stands for, who may see it; empty for nearly everything.
    """

    id: str
    kind: str
    name: str
    desired: Any
    assigned: Any = None
    observed: Any = None
    account_id: str = ""
    account: str = ""
    owner: str = ""
    zone: str = ""
    vdc: str = ""
    host: str = ""
    manager: str = ""
    generation: int = 1
    observed_generation: int = 0
    revision: int = 0
    created_at: str = ""
    deleting_at: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    conditions: tuple[Condition, ...] = ()

    @property
    def deleting(self) -> bool:
        """Whether deletion was asked for."""
        return self.deleting_at is not None

    @property
    def gone_confirmed(self) -> bool:
        """Whether what its host last said was said knowing of the deletion, and nothing kept it from looking.

        Only then ``absent`` is a fact: before, the host may be making it, or not have heard.
        """
        problem = getattr(self.observed, "problem", None)
        return self.deleting and problem is None and self.observed_generation >= self.generation

    @property
    def unheard(self) -> bool:
        """Whether what its host says of it is of before the host fell silent: it came back, and looks first."""
        return self.observed is not None and self.observed_generation == 0

    @property
    def ready(self) -> Condition | None:
        """The condition Ready, if any was computed."""
        return next((c for c in self.conditions if c.type == "Ready"), None)

    def placed(self, word: str) -> str:
        """Return where it is: the field ``word`` of ``assigned``, else what its creator said."""
        value = getattr(self.assigned, word, "") if self.assigned is not None else ""
        return str(value or getattr(self, word))

    def __str__(self) -> str:
        return f"{self.kind.partition('.')[2]} {self.name}"


class Column(Struct, frozen=True):
    """A column of the table view: header, path into the JSON, whether only in -o wide, and the kind of an id in it."""

    header: str
    path: str
    wide: bool = False
    ref: str = ""


class Kind(Struct, frozen=True, kw_only=True):
    """Everything the generic surface needs to know of a kind."""

    name: str
    summary: str
    desired: type[Struct]
    assigned: type[Struct] = Empty
    observed: type[Struct] = Empty
    ready: Callable[[Resource], Condition]
    """Pure: the condition Ready from the three sections, called at every write."""
    scope: Literal["cluster", "account", "either"] = "account"
    """Who owns one: the cluster, an account, or (an image) either of them."""
    readable_by: Literal["everyone", "operator"] = "everyone"
    """Who may read the cluster's own resources of this kind."""
    managed: Literal["shown", "hidden"] = "shown"
    """Whether ``everyone`` may read those of the cluster that stand for a fleet manager, too."""
    writable_by: Literal["tenant", "operator"] = "tenant"
    """Who may write one; accounts' own rights come on top."""
    word: str = ""
    """What people call it where another kind has the short word; empty: its name without its capability."""
    aliases: tuple[str, ...] = ()
    columns: tuple[Column, ...] = ()
    immutable: frozenset[str] = frozenset()
    """Fields of ``desired`` that never change after creation."""
    host_bound: bool = False
    """Whether an agent observes it: its row then goes to the host in its ``host`` column."""
    lists: Literal["all", "own"] = "all"
    """What a list without further filters shows; ``own``: not those that another resource made (a router's VM)."""
    private: frozenset[str] = frozenset()
    """What agents and controllers get and no answer of the API has: ``assigned``, or a part such as ``desired.document``."""
    leaves: bool = True
    """Whether one that goes leaves something on its host that has to be removed there."""
    name_prefix: str = ""
    """What names begin with that are made for those that come without one; empty: each must come with a name."""
    notice: Callable[[Resource | None, Resource | None], Notice | None] | None = None
    """Pure: what the resource's manager is told of a write, from what was and what is; None: nothing."""
    meter: Callable[[Resource], Use | None] | None = None
    """Pure: what an account's resource uses, from its sections; None: nobody knows now, and it goes on as before."""
    discreet: frozenset[str] = frozenset()
    """Paths as in ``private``, of the cluster's own, that accounts' users are not shown."""
    created_by: Literal["user", "kernel"] = "user"
    """``kernel``: only controllers make one (a VM's port); users read it."""

    @property
    def short(self) -> str:
        """The word of the kind, by which people call it: its name without its capability, if no other has that."""
        return self.word or self.name.partition(".")[2]

    @property
    def plural(self) -> str:
        """The word for many of the kind."""
        word = self.short
        if word.endswith("y") and word[-2] not in "aeou":
            return f"{word[:-1]}ies"
        return f"{word}es" if word.endswith("s") else f"{word}s"


class Registry:
    """The kinds of this program, by name, short word and alias."""

    def __init__(self, kinds: tuple[Kind, ...]) -> None:
        self._kinds = {kind.name: kind for kind in kinds}
        self._words = {word: kind for kind in kinds for word in (kind.name, kind.short, kind.plural, *kind.aliases)}
        self._decoders: dict[type[Struct], msgspec.json.Decoder[Any]] = {}

    def __iter__(self) -> Iterator[Kind]:
        return iter(self._kinds.values())

    def __getitem__(self, name: str) -> Kind:
        """Return the kind with this full name. Raises: NotFound."""
        try:
            return self._kinds[name]
        except KeyError:
            raise NotFound(f'there is no kind "{name}"; see GET /v1 or `pileus explain`', code="unknown-kind") from None

    def __contains__(self, name: str) -> bool:
        return name in self._kinds

    def find(self, word: str) -> Kind:
        """Return the kind for a full name, a short word, its plural or an alias. Raises: NotFound."""
        try:
            return self._words[word]
        except KeyError:
            raise NotFound(
                f'there is no kind "{word}"; `pileus explain` lists the kinds', code="unknown-kind"
            ) from None

    def decode(self, section: type[Struct], text: str | None) -> Any:
        """Return the section as its struct, ignoring fields of a newer version; None for none."""
        if text is None:
            return None
        decoder = self._decoders.get(section)
        if decoder is None:
            decoder = self._decoders[section] = msgspec.json.Decoder(section)
        return decoder.decode(text)


def is_name(text: str) -> bool:
    """Tell whether ``text`` may name a resource."""
    return _NAME.fullmatch(text) is not None
