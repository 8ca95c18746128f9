"""A request for real machines: three of them boot, run until their time is over, and nothing of them is left."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.vm.realcloud import RealCloud, until, upped
else:
    from realcloud import RealCloud, until, upped

DURATION_S = 45
SLOW_S = 240.0
"""Machines come one after another, each after its host has heard of it; longer than that takes where much else runs."""
READY = r"PILEUS-READY (\S+) [0-9.]+$"


@pytest.mark.long
def test_three_machines_come_run_and_go_at_their_time(cloud: RealCloud) -> None:
    began = time.monotonic()
    wish = ("--count", "3", "--duration-s", str(DURATION_S), "--shutdown-timeout-s", "10", "--warn-s", "30")
    cloud.pileus("create", "machine-request", "trio", "--account", "acme", *wish)
    names = [f"trio-000{number}" for number in (1, 2, 3)]

    def request() -> dict[str, Any]:
        with cloud.client() as client:
            return cloud.resource(client, "compute.request", "trio")

    def is_in(*phases: str) -> bool:
        return request()["observed"]["phase"] in phases

    until("all machines are confirmed", lambda: is_in("running"))
    confirmed_s = time.monotonic() - began
    ids = {name: cloud.vm(name)["id"] for name in names}
    assert set(ids.values()) <= cloud.qemus().keys()
    for name in names:
        cloud.until_printed(name, READY)
    print(
        f"measured: request to three confirmed {confirmed_s:.2f} s, to their own words {time.monotonic() - began:.2f} s"
    )
    until("its end is announced", lambda: request()["conditions"][0]["reason"] == "EndsSoon")
    volumes = {id for name in names for id in cloud.vm(name)["assigned"]["volumes"]}
    assert volumes <= cloud.volume_files()

    until("no machine runs", lambda: not set(ids.values()) & cloud.qemus().keys(), limit_s=DURATION_S + 30)
    ran_s = time.monotonic() - began
    print(f"measured: the last machine was off {ran_s:.2f} s after the request for {DURATION_S} s")
    assert ran_s < DURATION_S + 3
    until("all is released", lambda: is_in("ended"))
    assert not set(ids.values()) & cloud.machine_folders()
    assert not volumes & cloud.volume_files()
    assert cloud.json("get", "compute.set", "--account", "acme")["items"] == []
    cloud.pileus("delete", "machine-request", "trio", "--account", "acme", "--wait")


def _ask(cloud: RealCloud, name: str, **wish: Any) -> None:
    """Ask for machines without NICs."""
    desired = {"vcpus": 1, "memory_mib": 128, "nics": [], "shutdown_timeout_s": 3, **wish}
    body = {"kind": "compute.request", "account": "acme", "name": name, "desired": desired}
    cloud.pileus("apply", "-f", cloud.file(f"{name}.json", json.dumps(body)))


def _request(cloud: RealCloud, name: str) -> dict[str, Any]:
    with cloud.client() as client:
        return cloud.resource(client, "compute.request", name)


def _comes_to(cloud: RealCloud, name: str, phase: str) -> None:
    until(f"{name} is {phase}", lambda: _request(cloud, name)["observed"]["phase"] == phase, SLOW_S)


def _machines(cloud: RealCloud, name: str) -> set[str]:
    """Return the ids of a request's machines whose process runs."""
    items = cloud.json("get", "vm", "--account", "acme", "--owned")["items"]
    return {vm["id"] for vm in items if vm["labels"].get("set") == name} & cloud.qemus().keys()


@pytest.mark.long
def test_on_a_full_host_best_effort_machines_make_room_others_are_promised_it_and_they_come_back() -> None:
    with upped() as cloud:
        cloud.pileus("create", "account", "acme")
        (host,) = cloud.json("get", "host")["items"]
        cpus: int = host["observed"]["cpus"]
        cloud.pileus("patch", "host", host["name"], "--vcpus-per-cpu", "1")
        _ask(cloud, "cheap", count=cpus, service="best-effort", mode="best-effort")
        _comes_to(cloud, "cheap", "running")
        until("all of cheap run", lambda: len(_machines(cloud, "cheap")) == cpus, SLOW_S)
        first = _machines(cloud, "cheap")

        began = time.monotonic()
        _ask(cloud, "dear", count=1, duration_s=40)
        _comes_to(cloud, "dear", "running")
        print(
            f"measured: a guaranteed machine ran {time.monotonic() - began:.2f} s after it was asked for on a full host"
        )
        assert len(_machines(cloud, "dear")) == 1
        assert len(_machines(cloud, "cheap")) == cpus - 1
        assert {each["reason"] for each in _request(cloud, "cheap")["observed"]["missing"]} == {"Preempted"}

        _ask(cloud, "next", count=1, start_within_s=300, duration_s=20, service="best-effort")
        _comes_to(cloud, "next", "reserved")
        assert _request(cloud, "next")["observed"]["starts_at"] == _request(cloud, "dear")["observed"]["ends_at"]
        _comes_to(cloud, "next", "running")
        assert not _machines(cloud, "dear")
        assert len(_machines(cloud, "next")) == 1
        assert len(_machines(cloud, "cheap")) == cpus - 1

        until("all of cheap are back", lambda: len(_machines(cloud, "cheap")) == cpus, SLOW_S)
        print(f"measured: all best-effort machines were back {time.monotonic() - began:.2f} s after one had gone")
        assert len(_machines(cloud, "cheap") & first) == cpus - 1
        cloud.pileus("delete", "machine-request", "cheap", "--account", "acme", "--wait")
        until("nothing is left", lambda: not cloud.qemus())
