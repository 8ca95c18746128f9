#!/usr/bin/python3 -IS
"""The role ``firewall``: makes nftables be as the document says, and blocks addresses when it is asked to.

Document: ``policy`` says what happens to what no rule names, ``rules`` has a rule per name; a rule is for what the node
answers itself (``input``), or for what it forwards (``forward``), and rules are looked at in order of their names.
Request: ``{"block": "203.0.113.9"}``, ``{"unblock": …}`` or ``{}``; the answer has what is blocked and all counters.
"""

import ipaddress
import json
import os
import re
import subprocess
import sys

TABLE = "inet firewall"
BLOCKED = "blocked.json"
NAME = re.compile(r"[a-z][a-z0-9-]{0,62}")
HOOKS, ACTIONS, PROTOCOLS = ("input", "forward"), ("accept", "drop", "reject"), ("tcp", "udp", "icmp")
NO_DOCUMENT = {"policy": {}, "rules": {}}


class Refused(Exception):
    """The document or the request is wrong; nothing was changed."""


def one_of(value, words, what):
    if value not in words:
        raise Refused(f"{what}: {value!r} is none of {', '.join(words)}")
    return value


def network(value, what):
    try:
        return str(ipaddress.IPv4Network(value))
    except ValueError as wrong:
        raise Refused(f"{what}: {wrong}") from None


def matches(name, rule):
    """Return what the rule matches, in words of nft."""
    unknown = set(rule) - {"hook", "from", "to", "protocol", "port", "action"}
    if NAME.fullmatch(name) is None or unknown:
        raise Refused(f"rule {name!r}: {', '.join(sorted(unknown)) or 'not a name'} is not understood")
    words = []
    for field, match in (("from", "ip saddr"), ("to", "ip daddr")):
        if field in rule:
            words.append(f"{match} {network(rule[field], f'rule {name}: {field}')}")
    protocol = rule.get("protocol")
    if protocol is not None:
        words.append(f"meta l4proto {one_of(protocol, PROTOCOLS, f'rule {name}: protocol')}")
    port = rule.get("port")
    if port is not None:
        if protocol not in ("tcp", "udp") or type(port) is not int or not 1 <= port <= 65535:
            raise Refused(f"rule {name}: a port is 1 to 65535, of tcp or udp")
        words.append(f"{protocol} dport {port}")
    return " ".join(words)


def ruleset(document, blocked, counters):
    """Return the commands that make the table so, in one transaction; counters of rules that stay go on counting."""
    policy = {hook: document.get("policy", {}).get(hook, {}).get("action", "accept") for hook in HOOKS}
    lines = [f"add table {TABLE}", f"add set {TABLE} blocked {{ type ipv4_addr; flags interval; auto-merge; }}"]
    rules = {"blocked": None, **dict(sorted(document.get("rules", {}).items()))}
    for hook in HOOKS:
        one_of(policy[hook], ("accept", "drop"), f"policy {hook}")
        lines.append(f"add chain {TABLE} {hook} {{ type filter hook {hook} priority 0; policy {policy[hook]}; }}")
        lines.append(f"flush chain {TABLE} {hook}")
    lines += [f"delete counter {TABLE} {name}" for name in counters if name not in rules]
    lines += [f"add counter {TABLE} {name}" for name in rules]
    lines.append(f"flush set {TABLE} blocked")
    lines += [f"add element {TABLE} blocked {{ {address} }}" for address in blocked]
    for hook in HOOKS:
        lines.append(f"add rule {TABLE} {hook} iifname lo accept")
        lines.append(f"add rule {TABLE} {hook} ip saddr @blocked counter name blocked drop")
        lines.append(f"add rule {TABLE} {hook} ct state established,related accept")
    for name, rule in list(rules.items())[1:]:
        hook = one_of(rule.get("hook", "input"), HOOKS, f"rule {name}: hook")
        action = one_of(rule.get("action"), ACTIONS, f"rule {name}: action")
        lines.append(f"add rule {TABLE} {hook} {matches(name, rule)} counter name {name} {action}")
    return "\n".join(lines) + "\n"


def counters():
    """Return the packets that each rule has seen."""
    done = subprocess.run(["nft", "-j", "list", "counters", "table", *TABLE.split()], capture_output=True, check=False)
    listed = json.loads(done.stdout)["nftables"] if done.returncode == 0 else []
    return {one["counter"]["name"]: one["counter"]["packets"] for one in listed if "counter" in one}


def bring(document, blocked):
    """Make the kernel be so. Raises: Refused, CalledProcessError (nothing was changed)."""
    text = ruleset(document, blocked, counters())
    subprocess.run(["nft", "-f", "-"], input=text.encode(), check=True)
    with open("/proc/sys/net/ipv4/ip_forward", "w") as switch:
        switch.write("1")


def load(name, otherwise):
    try:
        with open(name) as file:
            return json.load(file)
    except FileNotFoundError:
        return otherwise


def save(name, value):
    """Keep the value over power cuts."""
    with open(f"{name}.new", "w") as file:
        json.dump(value, file)
        file.flush()
        os.fsync(file.fileno())
    os.rename(f"{name}.new", name)
    folder = os.open(".", os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)


def apply(document):
    bring(document, load(BLOCKED, []))
    save("document.json", document)


def request(asked):
    """Block and unblock. Done twice it is as done once, so that a request that comes again needs no thought."""
    unknown = set(asked) - {"block", "unblock"}
    if unknown:
        raise Refused(f"{', '.join(sorted(unknown))} is not understood; say block or unblock")
    block, unblock = ({network(asked[word], word)} if word in asked else set() for word in ("block", "unblock"))
    blocked = sorted(set(load(BLOCKED, [])) - unblock | block)
    bring(load("document.json", NO_DOCUMENT), blocked)
    save(BLOCKED, blocked)
    return {"blocked": blocked, "counters": counters()}


def main(verb, *words):
    """Do one thing, as docs/concepts/roles.md says."""
    if verb == "apply":
        apply(json.load(sys.stdin))
    elif verb == "request":
        print(json.dumps(request(json.load(sys.stdin))))
    elif verb == "status":
        print(json.dumps({"blocked": load(BLOCKED, []), "counters": counters()}))
    else:
        return 3
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(*sys.argv[1:]))
    except (Refused, ValueError, AttributeError, TypeError) as refused:
        print(refused, file=sys.stderr)
        sys.exit(3)
