"""What the example managers have in common: a node per account, kept as a file says, and asked things by hand.

The file has ``all``, what every account's node gets, and ``accounts``, what is laid over it for single ones; both are
documents: sections with entries by name.
"""

import argparse
import json
import sys
from pathlib import Path

from cloud import Refused, connect


def document(wishes, account):
    """Return what the account's node shall do."""
    common, own = wishes.get("all", {}), wishes.get("accounts", {}).get(account, {})
    return {part: {**common.get(part, {}), **own.get(part, {})} for part in {**common, **own}}


def tend(cloud, name, said):
    """Bring every account's node to what the file says, as accounts consent, nodes come and go and the file changes."""

    def look():
        wishes = json.loads(said.file.read_text())
        for account in cloud.accounts():
            try:
                cloud.bring(account, name, document(wishes, account), said.network)
            except Refused as refused:
                print(f"{account}: {refused}", flush=True)

    if said.once:
        look()
    else:
        cloud.tend(look, "fleet.consent", "fleet.node")


def ask(cloud, account, wanted):
    """Ask the nodes, print what each answered, and return 1 when one of them did not do it."""
    failed = 0
    for node in cloud.nodes(account):
        state, answer = cloud.ask(node, wanted)
        failed |= state != "applied"
        print(f"{node['account']}/{node['name']}: {state}: {answer.strip()}")
    return failed


def report(cloud, account):
    """Print a line per node: how it is, and what its role says of itself."""
    for node in cloud.nodes(account):
        (condition,) = [one for one in node["conditions"] if one["type"] == "Ready"]
        status = (node["observed"] or {}).get("status", {})
        print(f"{node['account']}/{node['name']}: {condition['reason']}: {json.dumps(status)}")


def main(name, summary, *requests):
    """Read the command line and do one thing; a word of ``requests`` asks the nodes that, with one argument."""
    parser = argparse.ArgumentParser(description=summary)
    parser.add_argument("--account", default="", help="only nodes of this account")
    verbs = parser.add_subparsers(dest="verb", required=True)
    tending = verbs.add_parser("tend", help="make nodes, and keep them as the file says")
    tending.add_argument("file", type=Path)
    tending.add_argument("--network", default="default")
    tending.add_argument("--once", action="store_true", help="look once and end")
    verbs.add_parser("report", help="say how the nodes are")
    for verb in requests:
        verbs.add_parser(verb, help="ask the nodes").add_argument("what")
    said = parser.parse_args()
    cloud = connect()
    if said.verb == "tend":
        tend(cloud, name, said)
    elif said.verb == "report":
        report(cloud, said.account)
    else:
        sys.exit(ask(cloud, said.account, {said.verb: said.what}))
