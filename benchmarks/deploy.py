"""VMs per second from the API's create to running, through quota, placement, network and the real agent API.

Several clients create at once; the clock stops when no VM is unready. Simulated hosts do their part in no time, so
what is measured is the cloud itself.
"""

from __future__ import annotations

import threading
import time

from benchmarks.clouds import Api, Lab, cpu_s, folder, lab
from benchmarks.report import Report, Result
from pileus.cli.contexts import Context

BAR_PER_S = 100.0
PUBLISHED_PER_S = 5.4
"""Of another cloud manager on about 52 cores, with simulated hosts too (its own publication)."""
CLIENTS = 8
POLL_S = 0.02
LIMIT_S = 600.0
QUOTA = {"vms": 1000, "vcpus": 1000, "memory_mib": 1_000_000, "volumes": 1000, "disk_gib": 10_000, "networks": 10}


def run(report: Report, *, quick: bool) -> None:
    """Measure."""
    vms, hosts, accounts = (200, 20, 4) if quick else (2000, 100, 20)
    report.say(f"deploy: {vms} VMs of {accounts} accounts on {hosts} simulated hosts, {CLIENTS} clients")
    with folder("deploy") as where, lab(where, hosts, "--instant") as it:
        names = make_accounts(Api(it.context), accounts)
        before = cpu_s(it.server_pid)
        took_s, created_s = deploy(it, names, vms)
        used_s = cpu_s(it.server_pid) - before
        rate = vms / took_s
        reference = f"{PUBLISHED_PER_S} VMs/s, as published for another cloud manager on about 52 cores"
        report.add(
            Result(name="deploy: VMs per second", value=rate, unit="VMs/s", bar=BAR_PER_S, at_least=True,
                   ratio=rate / PUBLISHED_PER_S, reference=reference)
        )  # fmt: skip
        report.add(Result(name="deploy: creates answered per second", value=vms / created_s, unit="creates/s"))
        report.add(Result(name="deploy: server CPU per VM", value=used_s / vms * 1000, unit="ms"))
        began = time.monotonic()
        delete(it, names)
        report.add(
            Result(
                name="deploy: deletions per second, whole accounts",
                value=vms / (time.monotonic() - began),
                unit="VMs/s",
            )
        )


def make_accounts(api: Api, count: int) -> list[str]:
    """Make accounts whose quota does not stand in the way."""
    names = [f"acme-{number}" for number in range(count)]
    for name in names:
        api.call("POST", "/v1/tenancy.account", {"name": name})
        api.call("PATCH", "/v1/tenancy.vdc/main", {"desired": {"quota": QUOTA}}, account=name)
    return names


def deploy(it: Lab, accounts: list[str], vms: int) -> tuple[float, float]:
    """Return the seconds from the first create until all VMs are ready, and until all creates were answered."""
    began = time.monotonic()
    threads = [
        threading.Thread(target=_create, args=(it.context, accounts, range(number, vms, CLIENTS)))
        for number in range(CLIENTS)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    created_s = time.monotonic() - began
    api = Api(it.context)
    _until_none(api, "false", began)
    took_s = time.monotonic() - began
    _check(api, vms)
    return took_s, created_s


def _create(context: Context, accounts: list[str], numbers: range) -> None:
    api = Api(context)
    for number in numbers:
        body = {"name": f"web-{number}", "account": accounts[number % len(accounts)], "desired": {"offering": "tiny"}}
        api.call("POST", "/v1/compute.vm", body)
    api.close()


def _until_none(api: Api, ready: str, began: float) -> None:
    while api.call("GET", "/v1/compute.vm", all_accounts=1, ready=ready, limit=1)["items"]:
        if time.monotonic() - began > LIMIT_S:
            raise RuntimeError(f"VMs are not ready after {LIMIT_S} s")
        time.sleep(POLL_S)


def _check(api: Api, vms: int) -> None:
    """Raises: RuntimeError unless all VMs run, each with an address of its own in its network."""
    seen: set[tuple[str, str]] = set()
    running, after = 0, ""
    while True:
        page = api.call("GET", "/v1/compute.vm", all_accounts=1, limit=1000, after=after)
        for item in page["items"]:
            running += item["observed"]["power"] == "running"
            seen.add((item["account"], item["observed"]["addresses"][0]))
        after = page["next"]
        if not after:
            break
    if (running, len(seen)) != (vms, vms):
        raise RuntimeError(f"{running} of {vms} VMs run, with {len(seen)} different addresses")


def delete(it: Lab, accounts: list[str]) -> None:
    """Delete the accounts with everything in them and wait until they are gone."""
    api = Api(it.context)
    for name in accounts:
        api.call("DELETE", f"/v1/tenancy.account/{name}")
    began = time.monotonic()
    while api.call("GET", "/v1/tenancy.account", limit=1)["items"]:
        if time.monotonic() - began > LIMIT_S:
            raise RuntimeError(f"accounts are not gone after {LIMIT_S} s")
        time.sleep(POLL_S)
