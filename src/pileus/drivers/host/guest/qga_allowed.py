"""What a package allows to be done in its appliances through QEMU's guest agent. Pure.

The list is written by whoever makes the package, beside the appliance's image; nothing else can be done::

    {"files": [{"path": "/etc/firewall/rules.nft", "mode": "0640"}],
     "commands": [{"name": "check", "path": "/usr/sbin/nft", "arguments": ["-c", "-f", "/etc/firewall/rules.nft"]},
                  {"name": "load", "path": "/usr/sbin/nft", "arguments": ["-f", "/etc/firewall/rules.nft"],
                   "repeatable": true},
                  {"name": "ban", "path": "/usr/sbin/ban", "arguments": ["--for", "{minutes:number}", "{peer:address}"]}],
     "configuration": {"path": "/etc/firewall/pileus.json", "apply": "load"}}

A command is a program and its arguments, started without a shell. What a caller may add stands in braces, with its
kind: ``word`` (letters, digits and ``._-``, not first), ``number`` (up to 18 digits), ``address`` (IP address or network).
``repeatable`` commands do no harm when they run twice; only these run again after a guest that died in the middle.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Mapping

import msgspec
from msgspec import Struct

from pileus.drivers.host.errors import DriverError

TIMEOUT_S_MAX = 3600

_NAME = re.compile(r"[a-z][a-z0-9-]{0,62}")
_PATH = re.compile(r"(/(?!\.\.?(/|$))[A-Za-z0-9._+@:-]{1,255}){1,32}")
_MODE = re.compile(r"0[0-7]{3}")
_PLACE = re.compile(r"\{([a-z][a-z0-9_]{0,31}):(word|number|address)\}")
_ARGUMENT_MAX = 4096
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_NUMBER = re.compile(r"[0-9]{1,18}")


class AllowedFile(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A file that may be written whole; it belongs to root then, with ``mode`` (octal)."""

    path: str
    mode: str = "0600"


class Command(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A program that may be run, and how. It is ended after ``timeout_s``."""

    name: str
    path: str
    arguments: tuple[str, ...] = ()
    timeout_s: int = 60
    repeatable: bool = False


class Configuration(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the node's document goes, as JSON, and the command that is run after each change: it must be repeatable."""

    path: str
    apply: str
    mode: str = "0600"


class Allowed(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything that may be done. ``state``: a folder in the guest, which survives its reboots, for our own notes."""

    commands: tuple[Command, ...] = ()
    files: tuple[AllowedFile, ...] = ()
    configuration: Configuration | None = None
    state: str = "/var/lib/pileus-fleet"

    def file(self, path: str) -> AllowedFile:
        """Return what is allowed of the file. Raises DriverError (NotAllowed)."""
        for file in self.files:
            if file.path == path:
                return file
        raise DriverError("NotAllowed", f"the package does not allow the file {path[:200]!r} to be written")

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
    except (msgspec.DecodeError, RecursionError) as wrong:
        raise DriverError("BadPackage", f"the list of what is allowed cannot be read: {wrong}") from wrong
    check(allowed)
    return allowed


def check(allowed: Allowed) -> None:
    """Accept a list that means one thing. Raises DriverError (BadPackage)."""
    for command in allowed.commands:
        _check_command(command)
    for file in (*allowed.files, *((allowed.configuration,) if allowed.configuration else ())):
        if not _PATH.fullmatch(file.path) or not _MODE.fullmatch(file.mode):
            raise _bad(f"file {file.path!r} has no absolute plain path, or no mode such as 0640")
    for names in ([one.name for one in allowed.commands], [one.path for one in allowed.files]):
        if len(set(names)) != len(names):
            raise _bad("a command or file is there twice")
    if not _PATH.fullmatch(allowed.state):
        raise _bad(f"{allowed.state!r} is no absolute plain path")
    if allowed.configuration is not None:
        apply = next((one for one in allowed.commands if one.name == allowed.configuration.apply), None)
        if apply is None or not apply.repeatable or _places(apply):
            raise _bad("the configuration's command is not one of the commands, not repeatable, or wants values")


def argv(command: Command, values: Mapping[str, str]) -> list[str]:
    """Return the program and its arguments with ``values`` put in. Raises DriverError (NotAllowed)."""
    places = _places(command)
    if values.keys() != places.keys():
        raise DriverError("NotAllowed", f"command {command.name} takes the values: {', '.join(places) or 'none'}")
    for name, text in values.items():
        if not _KINDS[places[name]](text):
            raise DriverError("NotAllowed", f"command {command.name}: the value of {name} is no {places[name]}")
    return [command.path, *(_PLACE.sub(lambda place: values[place[1]], part) for part in command.arguments)]


def _places(command: Command) -> dict[str, str]:
    """Return the kinds of the values that the command takes, by name."""
    return {place[1]: place[2] for part in command.arguments for place in _PLACE.finditer(part)}


def _check_command(command: Command) -> None:
    if not _NAME.fullmatch(command.name) or not _PATH.fullmatch(command.path):
        raise _bad(f"command {command.name!r} has no plain name, or no absolute path of a program")
    if not 1 <= command.timeout_s <= TIMEOUT_S_MAX:
        raise _bad(f"command {command.name} may run from 1 to {TIMEOUT_S_MAX} s")
    places = [(place[1], place[2]) for part in command.arguments for place in _PLACE.finditer(part)]
    if len(set(places)) != len({name for name, _ in places}):
        raise _bad(f"command {command.name} wants one value in two kinds")
    for part in command.arguments:
        rest = _PLACE.sub("", part)
        if len(part) > _ARGUMENT_MAX or not rest.isprintable() or "{" in rest or "}" in rest:
            raise _bad(
                f"command {command.name}: {part[:80]!r} has braces that are no {{name:kind}}, or cannot be printed"
            )


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_interface(text)
    except ValueError:
        return False
    return "%" not in text and text.isascii()


_KINDS: dict[str, Callable[[str], object]] = {
    "word": _WORD.fullmatch,
    "number": _NUMBER.fullmatch,
    "address": _is_address,
}


def _bad(words: str) -> DriverError:
    return DriverError("BadPackage", f"the list of what is allowed: {words}")
