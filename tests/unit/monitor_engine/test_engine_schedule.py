"""When appliances are polled: spread, jittered by the seed, at once when something failed."""

from __future__ import annotations

from collections import Counter, defaultdict
from itertools import pairwise

import pytest
from tests.unit.monitor_engine.engine_world import FAILED, START, applications, document, engine, hear, policy, report

from pileus.node.monitor.engine import Engine


def polled(made: Engine, until: float, start: float = START) -> list[tuple[float, str]]:
    """Answer every poll until then; return when which appliance was polled."""
    now, polls = start, []
    while now <= until:
        work = made.work(now)
        for vm in work.polls:
            polls.append((now, vm))
            made.hear(report(now, vm), now)
        assert work.next_at > now
        now = work.next_at
    return polls


def test_ten_thousand_are_not_polled_at_once_nor_ever() -> None:
    vms = tuple(f"vm-{number}" for number in range(10_000))
    seconds = Counter(int(at - START) for at, _ in polled(engine(vms=vms), START + 39))
    assert max(seconds.values()) < 1400
    assert min(count for second, count in seconds.items() if 8 < second < 39) > 600


def test_few_are_polled_soon_and_then_every_period_less_the_jitter_or_half_of_it() -> None:
    vms = tuple("abcde")
    moments = defaultdict(list)
    for at, vm in polled(engine(vms=vms, poll_s=10, jitter=0.2), START + 2000):
        moments[vm].append(at)
    assert all(found[0] - START < 0.1 for found in moments.values())
    pauses = [after - before for found in moments.values() for before, after in pairwise(found)]
    assert 8 <= min(pauses) < 8.1
    assert 8.9 < max(pauses) <= 9
    assert 8.4 < sum(pauses) / len(pauses) < 8.6


def test_the_seed_decides() -> None:
    vms = tuple("abc")
    one, same, other = (polled(engine(vms=vms, seed=seed), START + 200) for seed in (1, 1, 2))
    assert one == same != other
    assert polled(engine(vms=vms, seed="monitor"), START + 200) not in (one, other)


@pytest.mark.parametrize(
    "said",
    [
        {"origin": "fault"},
        {"origin": "push", "process": "hung"},
        {"origin": "push", "node": "silent", "heard_s": 3.0},
        {"origin": "push", "status": applications(web="failed:1")},
        {"origin": "push", "status": applications(web="running:1")},
    ],
)
def test_a_fault_and_a_push_that_shows_a_failure_are_looked_at_at_once(said: dict[str, object]) -> None:
    made = engine()
    made.work(START)
    hear(made, START + 0.1, status=applications(web="running"))
    assert hear(made, START + 3, **said).polls == ["a"]
    assert made.work(START + 3.5).polls == []


def test_a_push_that_shows_none_is_not() -> None:
    made = engine()
    made.work(START)
    hear(made, START + 0.1, status=applications(web="failed:1"))
    made.work(START + 1.5)
    assert hear(made, START + 4, origin="push", status=applications(web="failed:1")).polls == []


def test_a_poll_without_an_answer_is_made_again_after_a_period() -> None:
    made = engine(jitter=0)
    assert made.work(START).polls == ["a"]
    made.miss("a", START + 2)
    assert made.work(START + 9.9).polls == []
    assert made.work(START + 10).polls == ["a"]


def test_what_is_watched_no_more_is_polled_no_more_and_another_period_holds_at_once() -> None:
    made = engine(vms=("a", "b"), poll_s=3600)
    assert polled(made, START + 1)
    made.configure(document(vms=("a", "c"), poll_s=3600))
    assert made.work(START + 2).polls == ["c"]
    made.configure(document(vms=("a", "c"), poll_s=1, jitter=0))
    moments = [at for at, vm in polled(made, START + 10, START + 3) if vm == "a"]
    assert len(moments) == 7


def test_an_incident_that_waits_is_polled_first_after_a_failover() -> None:
    vms = tuple(f"vm-{number}" for number in range(3000))
    said = document({"p": policy(FAILED)}, vms)
    standing = {"p/web": {"since": START, "incident": 3, "acted": 2, "acted_at": START}}
    said["appliances"]["vm-7"]["resume"] = {"at": START, "execution": {"state": "running"}, "standing": standing}
    made = Engine()
    made.configure(said)
    assert "vm-7" in made.work(START + 5).polls[:1]
