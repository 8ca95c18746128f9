"""Nodes of fleet managers: how soon many are configured, and requests from the API's create to the node's answer.

Simulated hosts and nodes do their part in no time, so what is measured is the cloud itself: admission, the queue of each
node, the way to its host, the node's end and back.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any

from benchmarks.clouds import Api, Lab, cpu_s, folder, lab
from benchmarks.deploy import make_accounts
from benchmarks.report import Report, Result, percentile
from pileus.cli.contexts import Context
from pileus.kernel.clock import unix

CLIENTS = 8
POLL_S = 0.05
LIMIT_S = 600.0
MANAGER, PACKAGE = "firewalls", "firewall-1"
PAYLOAD = "block 203.0.113.9"
ALONE = 200
"""Requests to one node, fewer than may wait for it."""


def run(report: Report, *, quick: bool) -> None:
    """Measure."""
    nodes, hosts, accounts, requests = (40, 4, 2, 400) if quick else (500, 20, 10, 2000)
    report.say(f"fleet: {nodes} nodes of {accounts} accounts on {hosts} simulated hosts, {requests} requests")
    with folder("fleet") as where, lab(where, hosts, "--instant") as it:
        api = Api(it.context)
        names = make_accounts(api, accounts)
        _prepare(api, names)
        began = time.monotonic()
        _each(it.context, range(nodes), lambda client, number: _make_node(client, names, number))
        _until_ready(api, "fleet.node")
        report.add(Result(name=f"fleet: {nodes} nodes made and configured", value=time.monotonic() - began, unit="s"))
        _measure(report, it, names, nodes, hosts, requests)


def _prepare(api: Api, accounts: Sequence[str]) -> None:
    api.call("POST", "/v1/fleet.manager", {"name": MANAGER})
    package = {"manager": MANAGER, "version": "1", "image": "tiny", "vcpus": 1, "memory_mib": 64, "nics": 0}
    api.call("POST", "/v1/fleet.package", {"name": PACKAGE, "desired": package})
    for account in accounts:
        consent = {"manager": MANAGER, "nodes_max": 1000}
        api.call("POST", "/v1/fleet.consent", {"name": MANAGER, "account": account, "desired": consent})


def _make_node(api: Api, accounts: Sequence[str], number: int) -> None:
    desired = {
        "manager": MANAGER,
        "package": PACKAGE,
        "document": {"rules": {str(rule): {"port": rule} for rule in range(50)}},
    }
    body = {"name": f"node-{number}", "account": accounts[number % len(accounts)], "desired": desired}
    api.call("POST", "/v1/fleet.node", body)


def _measure(report: Report, it: Lab, accounts: Sequence[str], nodes: int, hosts: int, requests: int) -> None:
    api = Api(it.context)
    alone = _ask(it, accounts, [0] * ALONE)
    report.add(Result(name="fleet: requests per second to one node", value=ALONE / alone, unit="requests/s"))
    _delete(api, accounts)
    one_by_one = []
    for _ in range(50):
        began = time.monotonic()
        _send(api, accounts, 0)
        while not _settled(api, accounts[0]):
            time.sleep(0.002)
        one_by_one.append((time.monotonic() - began) * 1000)
    report.add(
        Result(name="fleet: a request at rest, create to answer read, p50", value=percentile(one_by_one, 50), unit="ms")
    )
    report.add(
        Result(name="fleet: a request at rest, create to answer read, p99", value=percentile(one_by_one, 99), unit="ms")
    )
    _delete(api, accounts)
    before = cpu_s(it.server_pid)
    took_s = _ask(it, accounts, [number % nodes for number in range(requests)])
    used_s = cpu_s(it.server_pid) - before
    report.add(Result(name=f"fleet: requests per second to {nodes} nodes", value=requests / took_s, unit="requests/s"))
    report.add(Result(name=f"fleet: the same per host of {hosts}", value=requests / took_s / hosts, unit="requests/s"))
    report.add(Result(name="fleet: server CPU per request", value=used_s / requests * 1000, unit="ms"))
    api = Api(it.context)  # the other one was idle for longer than a server waits
    waited = [1000 * (one["assigned"]["settled_at"] - unix(one["created_at"])) for one in _all(api)]
    report.add(Result(name="fleet: create to settled in that load, p50", value=percentile(waited, 50), unit="ms"))
    report.add(Result(name="fleet: create to settled in that load, p99", value=percentile(waited, 99), unit="ms"))


def _settled(api: Api, account: str) -> bool:
    newest = api.call("GET", "/v1/fleet.request", account=account, ready="false", limit=1)["items"]
    return not newest


def _ask(it: Lab, accounts: Sequence[str], nodes: Sequence[int]) -> float:
    """Return the seconds from the first request to the last end. Raises: RuntimeError unless all were applied."""
    began = time.monotonic()
    _each(it.context, nodes, lambda client, number: _send(client, accounts, number))
    api = Api(it.context)
    _until_ready(api, "fleet.request")
    took_s = time.monotonic() - began
    answers = [one["observed"]["answer"] for one in _all(api)]
    if answers != [PAYLOAD] * len(nodes):
        raise RuntimeError(f"{answers.count(PAYLOAD)} of {len(nodes)} requests were answered")
    return took_s


def _send(api: Api, accounts: Sequence[str], node: int) -> None:
    desired = {"node": f"node-{node}", "payload": PAYLOAD}
    api.call("POST", "/v1/fleet.request", {"account": accounts[node % len(accounts)], "desired": desired})


def _each(context: Context, numbers: Sequence[int], work: Any) -> None:
    """Let several clients do ``work`` for all numbers."""

    def client(own: Sequence[int]) -> None:
        api = Api(context)
        for number in own:
            work(api, number)
        api.close()

    threads = [threading.Thread(target=client, args=(numbers[first::CLIENTS],)) for first in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _all(api: Api) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    after = ""
    while True:
        page = api.call("GET", "/v1/fleet.request", all_accounts=1, limit=1000, after=after)
        found += page["items"]
        after = page["next"]
        if not after:
            return found


def _until_ready(api: Api, kind: str) -> None:
    began = time.monotonic()
    while api.call("GET", f"/v1/{kind}", all_accounts=1, ready="false", limit=1)["items"]:
        if time.monotonic() - began > LIMIT_S:
            raise RuntimeError(f"not all of {kind} are ready after {LIMIT_S} s")
        time.sleep(POLL_S)


def _delete(api: Api, accounts: Sequence[str]) -> None:
    for one in _all(api):
        api.call("DELETE", f"/v1/fleet.request/{one['id']}", account=one["account"])
    while _all(api):
        time.sleep(POLL_S)
