"""Reads a document's entries field by field: what is not exactly as it must be is refused. Pure.

A name in a document may be a tenant's. What passes here consists of characters that mean nothing in any configuration
file, so it is written there as it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network
from typing import Any, TypeVar

from pileus.node.role import RoleRefused

MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
LABEL = re.compile(r"(?!-)[a-z0-9-]{1,63}(?<!-)")
DOMAIN = re.compile(r"(?=.{1,253}$)(?!-)[a-z0-9-]{1,63}(?<!-)(\.(?!-)[a-z0-9-]{1,63}(?<!-))*")
KEY = re.compile(r"[A-Za-z0-9+/]{42}[AEIMQUYcgkosw480]=")
INTERFACE = re.compile(r"wg[0-9]{1,5}")
URL_PATH = re.compile(r"/[A-Za-z0-9._~/%?=&+:@,;-]{0,255}")
ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:,-]{0,127}")

T = TypeVar("T")


@lru_cache(maxsize=8192)
def address(text: str) -> str | None:
    """Return the IPv4 address as it is written; None for what is none."""
    try:
        return str(IPv4Address(text))
    except ValueError:
        return None


@lru_cache(maxsize=8192)
def network(text: str) -> IPv4Network | None:
    """Return the IPv4 range (an address alone: of one); None for what is none."""
    try:
        return IPv4Network(text, strict=False)
    except ValueError:
        return None


class Entry:
    """One entry of a document; every reader raises RoleRefused naming the entry and the field."""

    def __init__(self, where: str, fields: object) -> None:
        if not isinstance(fields, dict):
            raise RoleRefused(f"{where} is no object")
        self.where = where
        self._fields: dict[str, Any] = fields

    def word(self, name: str, pattern: re.Pattern[str], default: str | None = None) -> str:
        """Return a text that fits the pattern."""
        text = self._fields.get(name, default)
        if isinstance(text, str) and (pattern.fullmatch(text) or text == default):
            return text
        raise self.refused(name, text)

    def choice(self, name: str, *words: str) -> str:
        """Return a text that is one of ``words``."""
        text = self._fields.get(name)
        if text in words:
            return str(text)
        raise self.refused(name, text)

    def number(self, name: str, low: int, high: int, default: int | None = None) -> int:
        """Return an integer between the bounds."""
        number = self._fields.get(name, default)
        if isinstance(number, int) and not isinstance(number, bool) and low <= number <= high:
            return number
        raise self.refused(name, number)

    def moment(self, name: str, high: float) -> float:
        """Return Unix seconds up to the bound; a missing one is 0."""
        moment = self._fields.get(name, 0)
        if isinstance(moment, int | float) and not isinstance(moment, bool) and 0 <= moment <= high:
            return float(moment)
        raise self.refused(name, moment)

    def is_set(self, name: str) -> bool:
        """Return a truth value; a missing one is false."""
        value = self._fields.get(name, False)
        if isinstance(value, bool):
            return value
        raise self.refused(name, value)

    def address(self, name: str, default: str | None = None) -> str:
        """Return an IPv4 address, or the default, such as empty."""
        text = self._fields.get(name, default)
        if isinstance(text, str) and (text == default or address(text)):
            return text
        raise self.refused(name, text)

    def addresses(self, name: str) -> tuple[str, ...]:
        """Return a list of IPv4 addresses; a missing one is empty."""
        return tuple(self._one(name, text, address(text)) for text in self._texts(name))

    def words(self, name: str, pattern: re.Pattern[str]) -> tuple[str, ...]:
        """Return a list of texts that fit the pattern."""
        return tuple(self._one(name, text, pattern.fullmatch(text) and text) for text in self._texts(name))

    def network(self, name: str) -> IPv4Network:
        """Return an IPv4 range."""
        text = self._fields.get(name)
        found = network(text) if isinstance(text, str) else None
        if found is None:
            raise self.refused(name, text)
        return found

    def networks(self, name: str) -> tuple[str, ...]:
        """Return a list of IPv4 ranges; a missing one is empty."""
        return tuple(str(self._one(name, text, network(text))) for text in self._texts(name))

    def interface(self, name: str, default: str | None = None) -> str:
        """Return an address with its prefix length, such as ``10.9.0.1/24``, or the default."""
        text = self._fields.get(name, default)
        if isinstance(text, str) and (text == default or ("/" in text and _is_interface(text))):
            return text
        raise self.refused(name, text)

    def entries(self, name: str) -> Iterator[tuple[str, Entry]]:
        """Yield the entries of an object within this one."""
        found = self._fields.get(name, {})
        if not isinstance(found, dict):
            raise self.refused(name, found)
        for key, fields in sorted(found.items()):
            yield key, Entry(f"{self.where}, {name} {str(key)[:60]!r}", fields)

    def entry(self, name: str) -> Entry:
        """Return the object within this one."""
        return Entry(f"{self.where}, {name}", self._fields.get(name))

    def refused(self, name: str, value: object) -> RoleRefused:
        """Return the refusal of a field."""
        return RoleRefused(f"{self.where}: {name} is {str(value)[:80]!r}, which cannot be")

    def _texts(self, name: str) -> list[str]:
        found = self._fields.get(name, [])
        if isinstance(found, list) and all(isinstance(text, str) for text in found):
            return found
        raise self.refused(name, found)

    def _one(self, name: str, text: str, found: T | None) -> T:
        if found is None:
            raise self.refused(name, text)
        return found


def _is_interface(text: str) -> bool:
    host, _, prefix = text.partition("/")
    return address(host) is not None and prefix.isdecimal() and len(prefix) <= 2 and int(prefix) <= 32
