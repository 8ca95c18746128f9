"""The past that a simulation goes through, read from the customer's PostgreSQL as it was written there."""

from __future__ import annotations

import asyncio

import pytest
from tests.contract.monitor_history.history_rig import ACTION, STATE, STREAM, Rig, entry

from pileus.cli.failure import Failure
from pileus.cli.past import past
from pileus.kernel.clock import unix

MONITOR = {"id": "monitor-1", "name": "watch", "account": "acme"}
HISTORY = {"id": STREAM, "desired": {"monitor": "watch"}}


def test_states_come_in_their_order_and_nothing_else_does(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pileus.cli.past.PAGE", 2)
    told = [entry(seq, "state", {**STATE, "vm": f"vm-{seq}"}) for seq in range(1, 6)]
    gone = entry(9, "gone", {"vm": "vm-1", "name": "web"})
    asyncio.run(rig.take([*told, entry(7, "action", ACTION), gone]))
    url = rig.database.url(rig.name)
    with past(url, MONITOR, [{"id": "other", "desired": {"monitor": "another"}}, HISTORY]) as found:
        moments = list(found.moments)
    assert [(each.vm, each.row is None) for each in moments] == [
        *((f"vm-{seq}", False) for seq in range(1, 6)),
        ("vm-1", True),
    ]
    assert moments[0].row is not None
    assert (moments[0].name, moments[0].row.execution.state) == ("web", "running")
    assert {each.at for each in moments} == {unix("2026-01-02T03:04:05.250Z")}


def test_another_histories_rows_are_not_read_and_wrong_ones_are_named(rig: Rig) -> None:
    url = rig.database.url(rig.name)
    with (
        pytest.raises(Failure, match=r"cannot read .*does not exist"),
        past(url, MONITOR, [HISTORY]) as found,
    ):
        list(found.moments)
    asyncio.run(rig.take([entry(3, "state", {"vm": 5})]))
    with past(url, MONITOR, [{**HISTORY, "id": "elsewhere"}]) as found:
        assert list(found.moments) == []
    with (
        pytest.raises(Failure, match="entry 3 is no state of an appliance: Expected `str`, got `int`"),
        past(url, MONITOR, [HISTORY]) as found,
    ):
        list(found.moments)
    with pytest.raises(Failure, match="monitor watch has no history"), past(url, MONITOR, []):
        pass
