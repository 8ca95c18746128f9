#!/usr/bin/env python3
"""A manager of firewalls: a node per account, whose rules are a file here, and addresses that are blocked at once.

The same program serves all accounts that consented to a manager of the cluster, and the one account that a manager
belongs to; which of the two it is says its key.
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from cloud import Refused, connect, report

NODE = "firewall"


def document(rules, account):
    """Return what the account's node shall do: what is said for all, and over it what is said for the account."""
    common, own = rules.get("all", {}), rules.get("accounts", {}).get(account, {})
    return {part: {**common.get(part, {}), **own.get(part, {})} for part in ("policy", "rules")}


def tend(cloud, file, network, once):
    """Bring every account's node to what the file says, as accounts consent and the file changes."""

    def look():
        rules = json.loads(file.read_text())
        for account in cloud.accounts():
            try:
                cloud.bring(account, NODE, document(rules, account), network)
            except Refused as refused:
                print(f"{account}: {refused}", flush=True)

    if once:
        look()
    else:
        cloud.tend(look, "fleet.consent", "fleet.node")


def ask(cloud, account, wanted):
    """Ask the nodes, print what each answered, and return how many did not do it."""
    failed = 0
    for node in cloud.nodes(account):
        state, answer = cloud.ask(node, wanted)
        failed += state != "applied"
        print(f"{node['account']}/{node['name']}: {state}: {answer.strip()}")
    return failed


def main():
    """Read the command line and do one thing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--account", default="", help="only nodes of this account")
    verbs = parser.add_subparsers(dest="verb", required=True)
    tending = verbs.add_parser("tend", help="make nodes and keep their rules")
    tending.add_argument("rules", type=Path)
    tending.add_argument("--network", default="default")
    tending.add_argument("--once", action="store_true")
    for verb in ("block", "unblock"):
        verbs.add_parser(verb).add_argument("address")
    verbs.add_parser("report", help="what each node says")
    said = parser.parse_args()
    cloud = connect()
    if said.verb == "tend":
        tend(cloud, said.rules, said.network, said.once)
    elif said.verb == "report":
        report(cloud, said.account, lambda status: f"blocked {status.get('blocked')}, {status.get('counters')}")
    else:
        sys.exit(min(1, ask(cloud, said.account, {said.verb: [said.address]})))


if __name__ == "__main__":
    main()
