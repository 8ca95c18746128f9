"""The table of ``pileus mirror flows``: what was told of a flow never becomes less, and it does not grow without end."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from pileus.cli.client import Json
from pileus.cli.commands.mirror_flows import Table
from pileus.node.mirror.flows import FLOWS_MAX

AT_S = 1.7e9


def flow(first: float, last: float, packets: tuple[int, int], port: int = 50000) -> Json:
    """What a decapsulator tells of a flow; a packet has 100 bytes, times are seconds after AT_S."""
    return {
        "protocol": "tcp", "a": "10.1.0.1", "a_port": port, "b": "10.1.0.2", "b_port": 443,
        "first": AT_S + first, "last": AT_S + last, "packets": packets, "bytes": [100 * each for each in packets],
    }  # fmt: skip


def end(received: int, gone: int = 0) -> Json:
    """The line that ends a round."""
    return {"flows": 1, "gone": {"flows": gone}, "received": received, "lost": 1, "dropped": 0}


@pytest.fixture
def table() -> Table:
    """A table that is shown at its end, as JSON."""
    return Table("json", 0, is_live=False, is_summed=False)


def take(table: Table, *said: Json) -> None:
    """One connection says this."""
    table.begin()
    asyncio.run(table.take(b"".join(msgspec.json.encode(each) + b"\n" for each in said)))


def shown(table: Table, capsys: pytest.CaptureFixture[str]) -> Any:
    table.finish()
    return msgspec.json.decode(capsys.readouterr().out)


def row(found: Any) -> tuple[float, float, list[int], list[int]]:
    """Return begin, end, packets and bytes of the only flow."""
    (only,) = found["flows"]
    return only["first"] - AT_S, only["last"] - AT_S, only["packets"], only["bytes"]


def test_a_flow_that_was_forgotten_and_came_back_is_added(table: Table, capsys: pytest.CaptureFixture[str]) -> None:
    take(
        table,
        *(flow(0, 1, (2, 1)), end(3), flow(0, 2, (4, 1)), end(5)),
        *(flow(9, 9, (1, 0)), end(6, gone=1), flow(9, 12, (5, 2)), end(12, gone=1)),
    )
    found = shown(table, capsys)
    assert row(found) == (0, 12, [9, 3], [900, 300])
    assert found["totals"] == {"flows": 1, "gone": {"flows": 1}, "received": 12, "lost": 1, "dropped": 0}


def test_what_another_decapsulator_tells_is_added(table: Table, capsys: pytest.CaptureFixture[str]) -> None:
    take(table, flow(0, 5, (4, 1)), end(5, gone=2))
    take(table, flow(7, 7, (1, 1)), end(2))
    take(table, flow(7, 8, (2, 1)), end(3, gone=1))
    found = shown(table, capsys)
    assert row(found) == (0, 8, [6, 2], [600, 200])
    assert found["totals"] == {"flows": 1, "gone": {"flows": 3}, "received": 8, "lost": 2, "dropped": 0}


def test_another_hosts_clock_that_is_behind_takes_nothing_away(
    table: Table, capsys: pytest.CaptureFixture[str]
) -> None:
    take(table, flow(5, 9, (4, 1)), end(5))
    take(table, flow(4, 6, (1, 1)), end(2))
    assert row(shown(table, capsys)) == (4, 9, [5, 2], [500, 200])


def test_what_the_same_decapsulator_tells_again_is_not_added(table: Table, capsys: pytest.CaptureFixture[str]) -> None:
    take(table, flow(1, 5, (4, 1)), end(5))
    take(table, flow(1, 5, (4, 1)), end(5), flow(0.5, 7, (5, 1)), end(6))
    found = shown(table, capsys)
    assert row(found) == (0.5, 7, [5, 1], [500, 100])
    assert found["totals"]["received"] == 6


def test_the_flows_that_were_idle_longest_go(table: Table, capsys: pytest.CaptureFixture[str]) -> None:
    take(table, *(flow(port, port, (1, 0), port) for port in range(3 * FLOWS_MAX)))
    take(table, flow(0, 4 * FLOWS_MAX, (1, 0), 65535), end(3 * FLOWS_MAX))
    ports = {each["a_port"] for each in shown(table, capsys)["flows"]}
    assert ports == {65535, *range(2 * FLOWS_MAX + 1, 3 * FLOWS_MAX)}
