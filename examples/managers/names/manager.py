#!/usr/bin/env python3
"""A manager of names: it gives out addresses of each account's network, and a name server per account knows them.

The same program serves all accounts that consented to a manager of the cluster, and the one account that a manager
belongs to; which of the two it is says its key. ``give FILE ACCOUNT NAME`` gives the name an address of the account's
``pool`` and writes it into the file, which ``tend`` brings to the account's node.
"""

import ipaddress
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from serving import main


def give(file, account, name):
    """Return the name's address: the one that it has, or else the lowest that is free."""
    wishes = json.loads(file.read_text())
    wish = wishes["accounts"][account]
    names = wish.setdefault("names", {})
    if name not in names:
        first, last = (int(ipaddress.IPv4Address(wish["pool"]["guests"][end])) for end in ("first", "last"))
        taken = {int(ipaddress.IPv4Address(one["address"])) for one in names.values()}
        free = next((number for number in range(first, last + 1) if number not in taken), None)
        if free is None:
            sys.exit(f"the pool of account {account} has no free address")
        names[name] = {"address": str(ipaddress.IPv4Address(free))}
        draft = file.with_suffix(".new")
        draft.write_text(json.dumps(wishes, indent=2) + "\n")
        draft.replace(file)
    return names[name]["address"]


if __name__ == "__main__":
    if sys.argv[1:2] == ["give"] and len(sys.argv) == 5:
        print(give(Path(sys.argv[2]), *sys.argv[3:]))
    else:
        main("names", "A manager of names; `give FILE ACCOUNT NAME` gives out an address", "resolve")
