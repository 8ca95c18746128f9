"""A request for real machines: three of them boot, run until their time is over, and nothing of them is left."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.vm.realcloud import RealCloud, until
else:
    from realcloud import RealCloud, until

DURATION_S = 45
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
