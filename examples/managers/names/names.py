#!/usr/bin/python3 -IS
"""The role ``names``: a name server for the node's network, of dnsmasq.

Document: ``names`` has an address per name, ``upstream`` the servers that are asked for all other names.
Request: ``{"resolve": "db.corp"}``; the answer has the addresses that the server gives for it.
"""

import ipaddress
import json
import os
import re
import signal
import subprocess
import sys

NAME = re.compile(r"(?=.{1,253}$)[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*")
HOSTS, UPSTREAM, PID = "hosts", "upstream", "/run/names.pid"


class Refused(Exception):
    """The document or the request is wrong; nothing was changed."""


def name_of(word):
    if not isinstance(word, str) or NAME.fullmatch(word) is None:
        raise Refused(f"{word!r} is no name")
    return word


def address_of(word):
    try:
        return str(ipaddress.IPv4Address(word))
    except ValueError as wrong:
        raise Refused(str(wrong)) from None


def save(path, lines):
    """Write the file in one step."""
    with open(f"{path}.new", "w") as file:
        file.writelines(f"{line}\n" for line in lines)
    os.rename(f"{path}.new", path)


def running():
    """Return the server's process; None when it is not there."""
    try:
        with open(PID) as file:
            pid = int(file.read())
        with open(f"/proc/{pid}/comm") as file:
            return pid if file.read() == "dnsmasq\n" else None
    except (OSError, ValueError):
        return None


def serve():
    """Let the server read its files again, or start it."""
    pid = running()
    if pid is not None:
        os.kill(pid, signal.SIGHUP)
        return
    options = ["--no-resolv", "--no-hosts", "--domain-needed", "--bogus-priv", "--user=root", "--group=root"]
    files = [f"--addn-hosts={os.path.abspath(HOSTS)}", f"--servers-file={os.path.abspath(UPSTREAM)}"]
    subprocess.run(["dnsmasq", "--conf-file=/dev/null", f"--pid-file={PID}", *options, *files], check=True)


def apply(document):
    names = {name_of(name): address_of(one.get("address")) for name, one in document.get("names", {}).items()}
    upstream = [address_of(one.get("address")) for _, one in sorted(document.get("upstream", {}).items())]
    save(HOSTS, (f"{address} {name}" for name, address in sorted(names.items())))
    save(UPSTREAM, (f"server={address}" for address in upstream))
    serve()


def request(asked):
    if set(asked) != {"resolve"}:
        raise Refused("say resolve")
    name = name_of(asked["resolve"])
    done = subprocess.run(["nslookup", name, "127.0.0.1"], capture_output=True, text=True, check=False)
    answer = done.stdout.partition(f"Name:\t{name}")[2]
    return {"name": name, "addresses": re.findall(r"^Address(?: \d+)?:\s*([0-9.]+)", answer, re.MULTILINE)}


def status():
    try:
        with open(HOSTS) as file:
            names = len(file.readlines())
    except FileNotFoundError:
        names = 0
    return {"names": names, "server": "down" if running() is None else "up"}


def main(verb, *words):
    """Do one thing, as docs/concepts/roles.md says."""
    if verb == "apply":
        apply(json.load(sys.stdin))
    elif verb == "request":
        print(json.dumps(request(json.load(sys.stdin))))
    elif verb == "status":
        print(json.dumps(status()))
    elif verb == "tick":
        if running() is None and os.path.exists(HOSTS):
            serve()
    else:
        return 3
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(*sys.argv[1:]))
    except (Refused, ValueError, AttributeError, TypeError) as refused:
        print(refused, file=sys.stderr)
        sys.exit(3)
