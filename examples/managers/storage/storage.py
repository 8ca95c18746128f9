#!/usr/bin/python3 -IS
"""The role ``storage``: disks that VMs of the node's network use over iSCSI, served by tgtd, which needs no kernel module.

Document: ``volumes`` has per name a size in MiB, and the address of the one VM that may use it (``for``).
Request: ``{"erase": "scratch"}`` deletes what is left of a volume that the document no longer has; ``{}`` lists all.
A volume is a file on the node's own disk, and only as lasting as that.
"""

import ipaddress
import json
import os
import re
import subprocess
import sys
import time

DOCUMENT = "document.json"
NAME = re.compile(r"[a-z][a-z0-9-]{0,31}")
SIZE_MIB_MAX = 1 << 20
PREFIX = "iqn.2026-11.example.pileus:"
START_S = 30.0


class Refused(Exception):
    """The document or the request is wrong; nothing was changed."""


def volume_of(name, wish):
    """Return size and address of a volume."""
    size, address = wish.get("size_mib"), wish.get("for")
    if NAME.fullmatch(name) is None or type(size) is not int or not 1 <= size <= SIZE_MIB_MAX:
        raise Refused(f"volume {name!r}: size_mib is 1 to {SIZE_MIB_MAX}, and a name begins with a letter")
    try:
        return size, str(ipaddress.IPv4Address(address))
    except ValueError as wrong:
        raise Refused(f"volume {name}: for: {wrong}") from None


def file_of(name):
    return os.path.abspath(f"{name}.volume")


def tgtadm(mode, verb, *words):
    command = ["tgtadm", "--lld", "iscsi", "--mode", mode, "--op", verb, *words]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def targets():
    """Return the number of each target by its volume's name, and who may use it; None: tgtd does not run."""
    try:
        listed = tgtadm("target", "show")
    except subprocess.CalledProcessError:
        return None
    found = {}
    for part in re.split(r"^(?=Target \d+: )", listed, flags=re.MULTILINE)[1:]:
        number, name = re.match(r"Target (\d+): (\S+)", part).groups()
        allowed = part.partition("ACL information:")[2].split()
        found[name.removeprefix(PREFIX)] = (number, tuple(allowed), "LUN: 1\n" in part)
    return found


def served():
    """Return the targets of a tgtd that runs."""
    found = targets()
    if found is None:
        subprocess.run(["tgtd", "--iscsi", "portal=0.0.0.0:3260"], check=True)
        until = time.monotonic() + START_S
        while (found := targets()) is None:
            if time.monotonic() > until:
                raise TimeoutError("tgtd does not start")
            time.sleep(0.2)
    return found


def remove(number):
    tgtadm("target", "delete", "--tid", number, "--force")


def add(number, name, address):
    tgtadm("target", "new", "--tid", number, "--targetname", PREFIX + name)
    tgtadm("logicalunit", "new", "--tid", number, "--lun", "1", "--backing-store", file_of(name))
    tgtadm("target", "bind", "--tid", number, "--initiator-address", address)


def apply(document):
    """Serve what the document has and nothing else; a volume that stays as it is notices nothing."""
    wanted = {name: volume_of(name, wish) for name, wish in sorted(document.get("volumes", {}).items())}
    for name, (size, _) in wanted.items():
        if os.path.exists(file_of(name)) and os.path.getsize(file_of(name)) > size << 20:
            raise Refused(f"volume {name} would lose its end: it is larger than {size} MiB")
    there = served()
    for name, (number, allowed, is_whole) in list(there.items()):
        if name not in wanted or allowed != (wanted[name][1],) or not is_whole:
            remove(number)
            del there[name]
    numbers = (str(number) for number in range(1, 1 << 15))
    taken = {number for number, *_ in there.values()}
    free = (number for number in numbers if number not in taken)
    for name, (size, address) in wanted.items():
        is_longer = not os.path.exists(file_of(name)) or os.path.getsize(file_of(name)) < size << 20
        if is_longer:
            with open(file_of(name), "ab") as file:
                file.truncate(size << 20)
        if name in there and is_longer:
            remove(there.pop(name)[0])
        if name not in there:
            add(next(free), name, address)
    with open(f"{DOCUMENT}.new", "w") as file:
        json.dump(document, file)
    os.rename(f"{DOCUMENT}.new", DOCUMENT)


def tick():
    """Start tgtd again when it died."""
    if os.path.exists(DOCUMENT) and targets() is None:
        with open(DOCUMENT) as file:
            apply(json.load(file))


def volumes():
    return sorted(name.removesuffix(".volume") for name in os.listdir(".") if name.endswith(".volume"))


def request(asked):
    if set(asked) - {"erase"}:
        raise Refused("say erase, or nothing")
    name = asked.get("erase")
    if name is not None:
        if name in (targets() or {}):
            raise Refused(f"volume {name} is in use: take it out of the document first")
        if NAME.fullmatch(name) is not None and os.path.exists(file_of(name)):
            os.unlink(file_of(name))
    return {"volumes": volumes(), "served": sorted(targets() or {})}


def main(verb, *words):
    """Do one thing, as docs/concepts/roles.md says."""
    if verb == "apply":
        apply(json.load(sys.stdin))
    elif verb == "request":
        print(json.dumps(request(json.load(sys.stdin))))
    elif verb == "status":
        print(json.dumps({"volumes": volumes(), "served": sorted(targets() or {})}))
    elif verb == "tick":
        tick()
    else:
        return 3
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(*sys.argv[1:]))
    except (Refused, ValueError, AttributeError, TypeError) as refused:
        print(refused, file=sys.stderr)
        sys.exit(3)
