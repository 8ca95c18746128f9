"""What a package allows to be done in its appliances through QEMU's guest agent. Pure.

The list is written by whoever makes the package; nothing else can be done::

    {"commands": [{"name": "load", "path": "/usr/sbin/nft", "arguments": ["-f", "/etc/firewall/rules.nft"]},
                  {"name": "ban", "path": "/usr/sbin/ban", "arguments": ["--for", "{minutes}", "{peer}"],
                   "values": {"minutes": "number", "peer": "address"}, "timeout_s": 10, "repeatable": true}],
     "files": ["/etc/firewall/rules.nft"],
     "document": "/etc/firewall/pileus.json", "apply": "load"}

A command is a program and its arguments; no shell reads them. What a caller gives stands in braces, and is of a kind:
``word`` (letters and digits, then ``._-`` too, 64), ``number`` (18 digits), ``address`` (an IP address or network) or
``text`` (1000 printable characters, the first no ``-``). There are no patterns, because one of these can take for ever.

A file is written whole. Owner and mode stay as they are in the image; a file that is not there yet becomes root's alone.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Mapping
from typing import Literal

import msgspec
from msgspec import Struct

from pileus.drivers.host.errors import DriverError

TIMEOUT_S_MAX = 3600
STATE_FOLDER = "/var/lib/pileus-fleet"

ValueKind = Literal["word", "number", "address", "text"]

_NAME = re.compile(r"[a-z][a-z0-9-]{0,62}")
_PATH = re.compile(r"(/(?!\.\.?(/|$))[A-Za-z0-9._+@:-]{1,255}){1,32}")
_PLACE = re.compile(r"\{([a-z][a-z0-9_-]{0,62})\}")
_ARGUMENT_MAX = 4096
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_NUMBER = re.compile(r"[0-9]{1,18}")
_TEXT_MAX = 1000


class Command(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A program that may be run, and how. It is ended after ``timeout_s``.

    ``repeatable``: it does no harm when it runs twice, so it runs again after a guest that died in the middle.
    """

    name: str
    path: str
    arguments: tuple[str, ...] = ()
    values: dict[str, ValueKind] = {}
    timeout_s: int = 60
    repeatable: bool = False


class Allowed(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything that may be done.

    ``document``: the file that has the node's document, as JSON. ``apply``: the command that is run when it changed, and
    again until it ended well. ``state``: a folder in the guest, which survives its reboots, for our own notes.
    """

    commands: tuple[Command, ...] = ()
    files: tuple[str, ...] = ()
    document: str = ""
    apply: str = ""
    state: str = STATE_FOLDER

    def file(self, path: str) -> str:
        """Return the path, which may be written. Raises DriverError (NotAllowed)."""
        if path not in self.files:
            raise DriverError("NotAllowed", f"the package does not allow the file {path[:200]!r} to be written")
        return path

    def command(self, name: str) -> Command:
        """Return the command. Raises DriverError (NotAllowed)."""
        for command in self.commands:
            if command.name == name:
                return command
        raise DriverError("NotAllowed", f"the package allows no command {name[:200]!r}")


def read_allowed(text: bytes) -> Allowed:
    """Return the list that a package holds. Raises DriverError (BadPackage)."""
    try:
        allowed = msgspec.json.decode(text, type=Allowed)
    except (ValueError, RecursionError) as wrong:
        raise DriverError("BadPackage", f"the list of what is allowed cannot be read: {wrong}") from wrong
    check(allowed)
    return allowed


def check(allowed: Allowed) -> None:
    """Accept a list that means one thing. Raises DriverError (BadPackage)."""
    for command in allowed.commands:
        _check_command(command)
    paths = (*allowed.files, allowed.state, *((allowed.document,) if allowed.document else ()))
    for path in paths:
        if not _PATH.fullmatch(path):
            raise _bad(f"{path!r} is no absolute plain path")
        if path != allowed.state and f"{path}/".startswith(f"{allowed.state}/"):
            raise _bad(f"{path} is where the notes of requests lie")
    names = [one.name for one in allowed.commands]
    if len(set(names)) != len(names):
        raise _bad("two commands have the same name")
    if bool(allowed.document) != bool(allowed.apply):
        raise _bad("a document needs a command that applies it, and the other way round")
    if allowed.apply and (allowed.apply not in names or allowed.command(allowed.apply).values):
        raise _bad(f"{allowed.apply!r}, which applies the document, is none of the commands, or wants values")


def argv(command: Command, values: Mapping[str, str]) -> tuple[str, ...]:
    """Return the program and its arguments with ``values`` put in. Raises DriverError (NotAllowed)."""
    if values.keys() != command.values.keys():
        wanted = ", ".join(command.values) or "none"
        raise DriverError("NotAllowed", f"command {command.name} takes these values: {wanted}")
    for name, text in values.items():
        if not _KINDS[command.values[name]](text):
            raise DriverError("NotAllowed", f"command {command.name}: {name} is no {command.values[name]}")
    return (command.path, *(_PLACE.sub(lambda place: values[place[1]], part) for part in command.arguments))


def _check_command(command: Command) -> None:
    if not _NAME.fullmatch(command.name) or not _PATH.fullmatch(command.path):
        raise _bad(f"command {command.name!r} has no plain name, or no absolute path of a program")
    if not 1 <= command.timeout_s <= TIMEOUT_S_MAX:
        raise _bad(f"command {command.name} may run from 1 to {TIMEOUT_S_MAX} s")
    places: set[str] = set()
    for part in command.arguments:
        places.update(_PLACE.findall(part))
        rest = _PLACE.sub("", part)
        if len(part) > _ARGUMENT_MAX or not rest.isprintable() or "{" in rest or "}" in rest:
            raise _bad(f"command {command.name}: {part[:80]!r} has a brace that is no {{word}}, or cannot be printed")
    if places != set(command.values):
        raise _bad(f"command {command.name}: the words in braces are not those that have a kind of value")


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_interface(text)
    except ValueError:
        return False
    return text.isascii() and "%" not in text


def _is_text(text: str) -> bool:
    return 0 < len(text) <= _TEXT_MAX and text.isprintable() and not text.startswith("-")


_KINDS: dict[ValueKind, Callable[[str], object]] = {
    "word": _WORD.fullmatch,
    "number": _NUMBER.fullmatch,
    "address": _is_address,
    "text": _is_text,
}


def _bad(words: str) -> DriverError:
    return DriverError("BadPackage", f"the list of what is allowed: {words}")
