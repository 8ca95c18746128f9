"""Filters as people write them, in the words of tcpdump, and the rules that mean exactly the same.

    tcp port 443
    host 10.1.1.5 and not port 22
    udp dst portrange 5000-5999 or icmp
    inbound and (src net 203.0.113.0/24 or ip6)

As in tcpdump, ``not`` binds most, ``and`` and ``or`` bind alike and from left to right, and a value alone says again what stood
before the last one: ``port 80 or 443``. Different from tcpdump: addresses are of IP packets (ARP has none), names are never
looked up, and what depends on other bytes of a packet cannot be said.
Source: pcap-filter(7), grammar of libpcap 1.10.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from ipaddress import ip_address, ip_network

from pileus.kernel.errors import Invalid
from pileus.mirror.filter.decisions import (
    ANY_PORT,
    Decision,
    TooLong,
    all_of,
    any_of,
    fitting,
    in_force,
    meet,
    negated,
)
from pileus.node.mirror.rules import PORT_MAX, RULES_MAX, Rule

TEXT_MAX = 2_000
DEPTH_MAX = 30
"""Parentheses within parentheses."""
PROTOCOL_MAX = 255

PROTOCOLS = {
    "arp": Rule(protocol="arp"), "ip": Rule(family=4), "ip6": Rule(family=6), "tcp": Rule(protocol=6),
    "udp": Rule(protocol=17), "sctp": Rule(protocol=132), "icmp": Rule(family=4, protocol=1),
    "icmp6": Rule(family=6, protocol=58),
}  # fmt: skip
NUMBERS = {
    "icmp": 1, "igmp": 2, "tcp": 6, "udp": 17, "gre": 47, "esp": 50, "ah": 51, "icmp6": 58, "ospf": 89, "pim": 103,
    "vrrp": 112, "sctp": 132,
}  # fmt: skip
"""Words for ``proto``. Source: IANA, protocol numbers."""
SERVICES = {
    "ftp": 21, "ssh": 22, "telnet": 23, "smtp": 25, "domain": 53, "dns": 53, "dhcp": 67, "bootps": 67, "bootpc": 68,
    "tftp": 69, "http": 80, "pop3": 110, "ntp": 123, "imap": 143, "snmp": 161, "bgp": 179, "ldap": 389, "https": 443,
    "syslog": 514, "ldaps": 636, "imaps": 993, "mysql": 3306, "rdp": 3389, "postgresql": 5432,
}  # fmt: skip
"""Words for ``port``. Source: IANA, service names."""
TYPES = ("host", "net", "port", "portrange", "proto")
SIDES = ("src", "dst")
DIRECTIONS = {"inbound": Rule(direction="ingress"), "outbound": Rule(direction="egress")}
JOINTS = {"and": "and", "&&": "and", "or": "or", "||": "or"}
NOT = ("not", "!")
WORDS = (*PROTOCOLS, *TYPES, *SIDES, *DIRECTIONS, *JOINTS, *NOT)
ELSEWHERE = {
    "broadcast", "decnet", "ether", "gateway", "greater", "less", "ifname", "len", "mpls", "multicast", "rarp", "vlan", "wlan",
}  # fmt: skip
"""Words that tcpdump has beyond these."""

_TOKENS = re.compile(r"[()]|&&|\|\||!(?!=)|[^\s()!&|]+|\S")


@dataclass(frozen=True, slots=True)
class Word:
    """A word of a filter, and how many characters stand before it."""

    text: str
    at: int


class FilterError(Invalid):
    """A filter that cannot be read. ``picture``: the text, and under it a mark where it is wrong."""

    def __init__(self, message: str, text: str, word: Word, hint: str = "") -> None:
        super().__init__(f"{message}{f'; {hint}' if hint else ''}", field="desired.expression")
        self.picture = f"{text}\n{' ' * word.at}{'^' * max(1, len(word.text))}"


@dataclass(frozen=True, slots=True)
class Said:
    """What stands before a value, and holds for the next one too."""

    protocol: str = ""
    side: str = ""
    """src, dst, "src and dst"; "": either."""
    type: str = ""


def parse(text: str) -> tuple[Rule, ...]:
    """Return the rules that take the packets that ``text`` describes; none, which take every packet, for an empty text.

    Raises: FilterError.
    """
    words = tuple(Word(found[0], found.start()) for found in _TOKENS.finditer(text))
    if not words:
        return ()
    whole = Word(text.strip(), words[0].at)
    if len(text) > TEXT_MAX:
        raise FilterError(f"a filter has at most {TEXT_MAX} characters, not {len(text)}", text, words[-1])
    try:
        rules = in_force(_Reading(text, words).whole())
    except TooLong:
        hint = "leave something out, or name networks instead of single hosts"
        raise FilterError(f"this filter needs more than {RULES_MAX} rules", text, whole, hint) from None
    if not rules:
        raise FilterError("no packet can be so", text, whole, "what is joined by `and` must be possible at once")
    return rules


class _Reading:
    """Reads words from left to right; what it returns are equal decisions, the shortest first."""

    def __init__(self, text: str, words: Sequence[Word]) -> None:
        self._text = text
        self._words = words
        self._place = 0
        self._depth = 0
        self._said = Said()

    def whole(self) -> list[Decision]:
        """Read all words. Raises: FilterError, TooLong."""
        found = self._joined()
        word = self._peek()
        if word.text == ")":
            raise self._error("there is no ( for this )", word)
        if word.text.lower() in WORDS or word.text == "(":
            raise self._error(f'"{word.text}" cannot stand here', word, "join what is asked by `and` or `or`")
        if word.text:
            raise self._unexpected(word)
        return found

    def _joined(self) -> list[Decision]:
        """Read parts with ``and`` and ``or`` between them."""
        run, joint = [self._part()], ""
        while word := JOINTS.get(self._peek().text.lower(), ""):
            self._place += 1
            if joint not in ("", word):
                run = [_fold(run, joint)]
            joint = word
            run.append(self._part())
        return _fold(run, joint)

    def _part(self) -> list[Decision]:
        is_not = False
        while self._peek().text.lower() in NOT:
            self._place += 1
            is_not = not is_not
        found = self._group() if self._peek().text == "(" else self._primitive()
        return [negated(form) for form in found] if is_not else found

    def _group(self) -> list[Decision]:
        opening = self._take()
        self._depth += 1
        if self._depth > DEPTH_MAX:
            raise self._error(f"more than {DEPTH_MAX} parentheses within each other", opening)
        found = self._joined()
        if self._peek().text != ")":
            raise self._error("there is no ) for this (", opening)
        self._place += 1
        self._depth -= 1
        return found

    def _primitive(self) -> list[Decision]:
        first = self._peek()
        word = first.text.lower()
        if word in DIRECTIONS:
            self._place, self._said = self._place + 1, Said()
            return [fitting([DIRECTIONS[word]])]
        protocol = self._one_of(PROTOCOLS)
        side = self._side()
        said = Said(protocol, side, self._one_of(TYPES))
        if protocol and not side and not said.type:
            self._said = Said()
            return [fitting([PROTOCOLS[protocol]])]
        if said != Said():
            self._said = said
            if self._peek().text == "(":
                return self._group()
        return [fitting(self._boxes(first))]

    def _one_of(self, words: Collection[str]) -> str:
        word = self._peek().text.lower()
        if word not in words:
            return ""
        self._place += 1
        return word

    def _side(self) -> str:
        side = self._one_of(SIDES)
        if not side:
            return ""
        joint, other = (self._peek(more).text.lower() for more in (0, 1))
        if JOINTS.get(joint) is None or other not in SIDES or other == side:
            return side
        self._place += 2
        return "" if JOINTS[joint] == "or" else "src and dst"

    def _boxes(self, first: Word) -> list[Rule]:
        """Read a value, and return rules for what is said of it. ``first``: where the primitive begins."""
        said, word = self._said, self._peek()
        kind = said.type or ("net" if "/" in word.text else "host" if _is_address(word.text) else "")
        if word.text.lower() in (*WORDS, "(", ")", "") or not kind:
            raise self._unexpected(word)
        self._place += 1
        if kind == "proto":
            if said.side:
                raise self._error("a protocol has no side", first, "say `proto` without `src` or `dst`")
            found = [Rule(protocol=self._protocol(word))]
        else:
            found = _sided(said.side, self._ends(kind, word))
        of = PROTOCOLS.get(said.protocol, Rule())
        fit = [rule for one in found if (rule := meet(of, one)) is not None]
        if not fit:
            raise self._error(f"no {said.protocol} packet is so", Word(self._text[first.at : word.at], first.at))
        return fit

    def _ends(self, kind: str, word: Word) -> list[End]:
        match kind:
            case "host":
                return [self._host(word)]
            case "net":
                return [self._net(word)]
            case "port":
                number = SERVICES.get(word.text.lower())
                return _ports(*(2 * [self._number(word, word.text, "port", PORT_MAX) if number is None else number]))
            case _:
                low, dash, high = word.text.partition("-")
                if not dash:
                    raise self._error(f'"{word.text}" is no range of ports', word, "write it like 5000-5999")
                first, last = (self._number(word, one, "port", PORT_MAX) for one in (low, high))
                if first > last:
                    raise self._error("the range ends before it begins", word, f"write {last}-{first}")
                return _ports(first, last)

    def _host(self, word: Word) -> str:
        if "/" in word.text:
            raise self._error("`host` takes one address", word, f"say `net {word.text}`")
        if not _is_address(word.text):
            raise self._error(f'"{word.text}" is no IP address', word, "names are not looked up")
        return str(ip_network(word.text))

    def _net(self, word: Word) -> str:
        address, _, length = word.text.partition("/")
        try:
            if not _is_address(address) or (length and not _is_number(length)):
                raise ValueError
            network = ip_network(word.text, strict=False)
        except ValueError:
            hint = "write it like 10.1.0.0/16 or 2001:db8::/32"
            raise self._error(f'"{word.text}" is no range of addresses', word, hint) from None
        if ip_address(address) != network.network_address:
            hint = f"say `net {network}`, or `host {address}`"
            raise self._error(f"{word.text} has bits beyond its first {length}", word, hint)
        return str(network)

    def _protocol(self, word: Word) -> int:
        number = NUMBERS.get(word.text.lower().removeprefix("\\"))
        return self._number(word, word.text, "protocol", PROTOCOL_MAX) if number is None else number

    def _number(self, word: Word, text: str, what: str, most: int) -> int:
        if _is_number(text) and int(text) <= most:
            return int(text)
        close = _close(text, SERVICES if what == "port" else NUMBERS)
        raise self._error(f'"{text}" is no {what}; it is a number from 0 to {most}', word, close)

    def _peek(self, more: int = 0) -> Word:
        place = self._place + more
        return self._words[place] if place < len(self._words) else Word("", len(self._text))

    def _take(self) -> Word:
        self._place += 1
        return self._words[self._place - 1]

    def _unexpected(self, word: Word) -> FilterError:
        """Return what is wrong with a word where something to ask for has to begin, or its value has to stand."""
        said = self._words[self._place - 1] if self._place else Word("", 0)
        after = f" after `{said.text}`" if said.text else ""
        if not word.text:
            return self._error(f"something is missing at the end{after}", word)
        lower = word.text.lower()
        if lower in ELSEWHERE or "[" in lower:
            known = "protocols, addresses, ports and directions can be asked for"
            return self._error(f'"{word.text}" cannot be asked for here', word, known)
        if lower in WORDS or word.text in "()":
            return self._error(f'"{word.text}" cannot stand here{after}', word)
        if _is_number(word.text):
            return self._error(f'"{word.text}" alone says nothing', word, f"say what it is, such as `port {word.text}`")
        return self._error(
            f'unknown word "{word.text}"', word, _close(lower, WORDS) or "see `pileus mirror watch --help`"
        )

    def _error(self, message: str, word: Word, hint: str = "") -> FilterError:
        return FilterError(message, self._text, word, hint)


End = str | tuple[int, int]
"""A range of addresses, or of ports, of one side of a packet."""


def _sided(side: str, ends: Sequence[End]) -> list[Rule]:
    sources, destinations = [_at("src", end) for end in ends], [_at("dst", end) for end in ends]
    if side == "src and dst":
        return [rule for one in sources for other in destinations if (rule := meet(one, other)) is not None]
    return [*(sources if side != "dst" else ()), *(destinations if side != "src" else ())]


def _at(side: str, end: End) -> Rule:
    if isinstance(end, str):
        return Rule(source=end) if side == "src" else Rule(destination=end)
    return Rule(source_ports=end) if side == "src" else Rule(destination_ports=end)


def _ports(low: int, high: int) -> list[End]:
    """Return the ports as rules can say them: all of them, which means none too, takes two."""
    if (low, high) != ANY_PORT:
        return [(low, high)]
    return [(low, high // 2), (high // 2 + 1, high)]


def _fold(parts: Sequence[list[Decision]], joint: str) -> list[Decision]:
    """Return what all parts make together; halves are made first, which costs least."""
    if len(parts) == 1:
        return parts[0]
    half = len(parts) // 2
    one, other = _fold(parts[:half], joint), _fold(parts[half:], joint)
    return all_of(one, other) if joint == "and" else any_of(one, other)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 6


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return "%" not in text  # a zone is of one machine, and no part of a packet


def _close(word: str, known: Iterable[str]) -> str:
    found = get_close_matches(word.lower(), list(known), n=1, cutoff=0.7)
    return f"did you mean `{found[0]}`?" if found else ""


SHOWN_MAX = 4
"""Rules that a line of a table shows."""
_NAMES = {(rule.family, rule.protocol): word for word, rule in PROTOCOLS.items()}


def describe(rules: Sequence[Rule]) -> str:
    """Return what the rules take, on one line for tables: nearly the words that ``parse`` reads."""
    if not rules:
        return "every packet"
    phrases: list[str] = []
    place = 0
    while place < len(rules):
        rule = rules[place]
        is_pair = place + 1 < len(rules) and rules[place + 1] == _turned(rule) and rule != _turned(rule)
        phrases.append(f"{'not ' if rule.action == 'reject' else ''}{_phrase(rule, is_pair=is_pair)}")
        place += 2 if is_pair else 1
    shown, more = phrases[:SHOWN_MAX], len(phrases) - SHOWN_MAX
    return ", ".join(shown) + (f" and {more} more" if more > 0 else "")


def _turned(rule: Rule) -> Rule:
    """Return the rule for packets the other way."""
    return replace(
        rule,
        source=rule.destination,
        destination=rule.source,
        source_ports=rule.destination_ports,
        destination_ports=rule.source_ports,
    )


def _phrase(rule: Rule, *, is_pair: bool) -> str:
    words = []
    if rule.direction != "both":
        words.append("inbound" if rule.direction == "ingress" else "outbound")
    protocol = _NAMES.get((rule.family, rule.protocol)) or _NAMES.get((0, rule.protocol))
    if protocol and (rule.protocol or not (rule.source or rule.destination)):
        words.append(protocol)
    elif rule.protocol is not None:
        words.append(f"proto {rule.protocol}")
    if is_pair and _is_simple(rule):
        words += [text.partition(" ")[2] for text in _side_words(rule)]
    else:
        words += _side_words(rule) + (["and back"] if is_pair else [])
    return " ".join(words) or "everything else"


def _is_simple(rule: Rule) -> bool:
    """Tell whether one thing is asked of one side, so that "either side" says it and its turned form."""
    asked = (rule.source, rule.destination, rule.source_ports != ANY_PORT, rule.destination_ports != ANY_PORT)
    return sum(map(bool, asked)) == 1


def _side_words(rule: Rule) -> list[str]:
    words = []
    for side, network, ports in (
        ("src", rule.source, rule.source_ports),
        ("dst", rule.destination, rule.destination_ports),
    ):
        if network:
            found = ip_network(network)
            is_one = found.prefixlen == found.max_prefixlen
            words.append(f"{side} {f'host {found.network_address}' if is_one else f'net {found}'}")
        if ports != ANY_PORT:
            low, high = ports
            words.append(f"{side} {f'port {low}' if low == high else f'portrange {low}-{high}'}")
    return words
