"""The rules that a filter means. Pure."""

from __future__ import annotations

from functools import lru_cache
from ipaddress import ip_network
from typing import Literal

from pileus.kernel.errors import Invalid
from pileus.mirror.filter.language import parse
from pileus.mirror.filter.types import FilterDesired, MirrorRule
from pileus.node.mirror.rules import PORT_MAX, WITH_PORTS, Rule

_PROTOCOLS: dict[str, int | Literal["arp"] | None] = {
    "any": None, "arp": "arp", "tcp": 6, "udp": 17, "sctp": 132, "icmp": 1, "icmp6": 58,
}  # fmt: skip


def compiled(filter: FilterDesired, field: str = "desired") -> tuple[Rule, ...]:
    """Return the rules in force. Raises: Invalid naming the field below ``field``."""
    if bool(filter.expression) == bool(filter.rules):
        raise Invalid(
            "a filter has either an expression, such as 'tcp port 443', or rules", field=f"{field}.expression"
        )
    if filter.expression:
        return expression_rules(filter.expression)
    return tuple(_compiled(rule, f"{field}.rules[{position}]") for position, rule in enumerate(filter.rules))


@lru_cache(maxsize=1024)
def expression_rules(text: str) -> tuple[Rule, ...]:
    """Return the rules that an expression means, found once: some take a tenth of a second.

    Raises: Invalid naming the word that is not understood.
    """
    return parse(text)


def _compiled(rule: MirrorRule, field: str) -> Rule:
    protocol = _protocol(rule.protocol, field)
    has_ports = rule.port_first or rule.source_port_first
    if has_ports and protocol not in (None, *WITH_PORTS):
        raise Invalid(f"{field}: {rule.protocol} has no ports; leave them out", field=f"{field}.port_first")
    versions = {ip_network(text).version for text in _checked(rule, field)}
    if len(versions) > 1:
        raise Invalid(f"{field}: source and destination are not of one IP version", field=f"{field}.destination")
    if versions and protocol == "arp":
        raise Invalid(f"{field}: ARP is no IP; leave source and destination out", field=f"{field}.source")
    return Rule(
        action=rule.action,
        direction=rule.direction,
        protocol=protocol,
        source=rule.source,
        destination=rule.destination,
        source_ports=_ports(rule.source_port_first, rule.source_port_last, f"{field}.source_port_last"),
        destination_ports=_ports(rule.port_first, rule.port_last, f"{field}.port_last"),
    )


def _protocol(word: str, field: str) -> int | Literal["arp"] | None:
    if word in _PROTOCOLS:
        return _PROTOCOLS[word]
    if word.isascii() and word.isdigit() and int(word) < 256:
        return int(word)
    known = ", ".join(_PROTOCOLS)
    raise Invalid(
        f"{field}: there is no protocol {word!r}; say {known}, or an IP protocol number", field=f"{field}.protocol"
    )


def _checked(rule: MirrorRule, field: str) -> list[str]:
    """Return the ranges that are said. Raises: Invalid."""
    said = [(word, getattr(rule, word)) for word in ("source", "destination") if getattr(rule, word)]
    for word, text in said:
        try:
            ip_network(text)
        except ValueError as error:
            message = f"{field}.{word}: {text!r} is no range such as 10.1.0.0/16 or 2001:db8::/32: {error}"
            raise Invalid(message, field=f"{field}.{word}") from None
    return [text for _, text in said]


def _ports(first: int, last: int, field: str) -> tuple[int, int]:
    if not first:
        if last:
            raise Invalid(f"{field}: there is a last port and no first one", field=field)
        return (0, PORT_MAX)
    if last and last < first:
        raise Invalid(f"{field}: the last port {last} is below the first, {first}", field=field)
    return (first, last or first)
