"""What the CLI prints and reads: tables, numbers, paths, logs, streams."""

from __future__ import annotations

import io
import sys
from typing import Any

import click
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pileus.cli import table
from pileus.cli.client import parse_events, refusal
from pileus.cli.commands.logs import added, last_lines, shown
from pileus.cli.failure import BUG, NOT_FOUND, NOT_SIGNED_IN, REFUSED, UNREACHABLE
from pileus.cli.output import Output, OutputWord, render, to_yaml
from pileus.cli.paths import find, parse
from pileus.cli.progress import clean
from pileus.cli.units import human_bytes, human_duration, human_number, parse_duration
from pileus.cli.waiting import goal_of
from pileus.kernel.clock import iso
from pileus.registry import KINDS

NOW_S = 1_800_000_000.0


def resource(**changes: Any) -> dict[str, Any]:
    base: dict[str, Any] = {
        "kind": "compute.vm", "id": "019a3c4e-0000-7000-8000-000000000001", "name": "web", "account": "acme",
        "account_id": "019a3c4e-0000-7000-8000-000000000002", "owner": "", "zone": "", "vdc": "",
        "host": "019a3c4e-0000-7000-8000-00000000000a", "labels": {}, "generation": 1, "observed_generation": 1,
        "revision": 5, "created_at": iso(NOW_S - 250), "deleting_at": None,
        "desired": {"image": "tiny", "power": "running", "boot_serial": 0},
        "assigned": {"vcpus": 1, "memory_mib": 1536},
        "observed": {"power": "running", "addresses": ["10.1.1.10"]},
        "conditions": [{"type": "Ready", "status": "true", "reason": "AsDesired", "message": "", "since": ""}],
    }  # fmt: skip
    return base | changes


def unready(reason: str, message: str = "") -> list[dict[str, str]]:
    return [{"type": "Ready", "status": "false", "reason": reason, "message": message, "since": ""}]


@pytest.fixture(autouse=True)
def _fixed_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "system_clock", lambda: NOW_S)


def lines(items: list[dict[str, Any]], kind: str = "compute.vm", names: Any = None, **how: bool) -> list[str]:
    layout = table.Layout(KINDS[kind], reasons=table.needs_reason(items), **how)
    rows = [layout.cells(item, names or {}) for item in items]
    layout.fit(rows)
    return [layout.line(layout.headers), *(layout.line(row) for row in rows)]


def test_a_table_has_the_columns_of_the_kind_with_units_and_ages_for_people() -> None:
    assert lines([resource(), resource(name="a-longer-name")]) == [
        "NAME            POWER     ADDRESS     IMAGE   VCPUS   MEMORY    READY   AGE",
        "web             running   10.1.1.10   tiny    1       1.5 GiB   true    4m10s",
        "a-longer-name   running   10.1.1.10   tiny    1       1.5 GiB   true    4m10s",
    ]


def test_a_row_that_is_not_ready_says_why_and_one_being_deleted_says_so() -> None:
    items = [
        resource(),
        resource(name="new", assigned=None, observed=None, conditions=unready("NoHost", "no host has 1536 MiB free")),
        resource(name="old", deleting_at=iso(NOW_S)),
    ]
    assert lines(items) == [
        "NAME   POWER     ADDRESS     IMAGE   VCPUS   MEMORY    READY   REASON     AGE",
        "web    running   10.1.1.10   tiny    1       1.5 GiB   true               4m10s",
        "new    -         -           tiny    -       -         false   NoHost     4m10s",
        "old    running   10.1.1.10   tiny    1       1.5 GiB   true    Deleting   4m10s",
    ]


def test_a_wide_table_of_all_accounts_shows_names_instead_of_ids() -> None:
    header, row = lines([resource()], names={resource()["host"]: "local"}, wide=True, accounts=True)
    assert header.split() == (
        ["NAME", "ACCOUNT", "POWER", "ADDRESS", "IMAGE", "VCPUS", "MEMORY", "VDC", "HOST", "READY", "AGE", "ID"]
    )
    assert "acme" in row
    assert "local" in row
    assert resource()["host"] not in row


def test_a_header_that_names_its_unit_has_bare_numbers_under_it() -> None:
    offering = resource(kind="compute.offering", desired={"vcpus": 1, "memory_mib": 2048, "disk_gib": 20})
    header, row = lines([offering], kind="compute.offering")
    assert header.split()[:4] == ["NAME", "VCPUS", "MEMORY_MIB", "DISK_GIB"]
    assert row.split()[:4] == ["web", "1", "2048", "20"]


def test_what_others_wrote_cannot_steer_the_terminal() -> None:
    item = resource(desired={"image": "a\x1b]0;owned\x07b\nc"}, name="x")
    assert all(line.isprintable() for line in lines([item]))
    assert clean("\x1b[2J") == "\ufffd[2J"
    assert table.plain(("A",), [["x\x9b1mred"]]).split("\n")[1].isprintable()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-5, "0s"), (0, "0s"), (59.9, "59s"), (60, "1m"), (200, "3m20s"), (600, "10m"), (7199, "119m"),
     (7200, "2h"), (172_800, "2d"), (63_115_200, "2y")],
)  # fmt: skip
def test_durations_are_short(seconds: float, text: str) -> None:
    assert human_duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (2**30, "1 GiB"), (5 * 2**40, "5 TiB"), (2**50, "1024 TiB")],
)
def test_sizes_have_at_most_one_decimal(count: int, text: str) -> None:
    assert human_bytes(count) == text


def test_only_fields_with_a_unit_of_size_are_shown_as_sizes() -> None:
    assert human_number("observed.size_bytes", 2048) == "2 KiB"
    assert human_number("memory_mib", 1024) == "1 GiB"
    assert human_number("vcpus", 1024) == "1024"
    assert human_number("rate_limit_kbps", 1024) == "1024"


@pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("1.5m", 90), ("1h", 3600), ("x", None), ("5 weeks", None)])
def test_a_time_out_is_seconds_or_a_time(text: str, seconds: float | None) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("{.name}", ["web"]),
        ("observed.addresses.0", ["10.1.1.10"]),
        ("{.observed.addresses[-1]}", ["10.1.1.10"]),
        (".conditions[*].type", ["Ready"]),
        ("$.labels['a.b/c']", ["1"]),
        (".nothing.here", []),
        (".observed.addresses[7]", []),
        (".name.x", []),
    ],
)
def test_paths_lead_to_values_or_nowhere(path: str, found: list[Any]) -> None:
    assert find(resource(labels={"a.b/c": "1"}), parse(path)) == found


@given(st.text(max_size=30))
def test_a_path_is_parsed_or_refused(text: str) -> None:
    try:
        steps = parse(text)
    except ValueError:
        return
    assert all(step is None or isinstance(step, str | int) for step in steps)


def test_programs_get_json_yaml_names_paths_and_columns() -> None:
    one, answer = resource(), {"items": [resource(), resource(name="db")]}
    assert msgspec.json.decode(render(Output("json"), one, [one])) == one
    assert render(Output("name"), answer, answer["items"]) == "web\ndb"
    assert render(Output("jsonpath", "{.observed.power}"), one, [one]) == "running"
    assert render(Output("jsonpath", "{.items[*].name}"), answer, answer["items"]) == "web\ndb"
    assert render(Output("custom-columns", "N:.name,P:.observed.power"), answer, answer["items"]) == (
        "N     P\nweb   running\ndb    running"
    )
    assert to_yaml({"b": "x\ny\n", "a": ["é", "no", "1"]}) == "b: |\n  x\n  y\na:\n- é\n- 'no'\n- '1'\n"


@pytest.mark.parametrize("text", ["xml", "jsonpath", "jsonpath={.a", "custom-columns=a", "json=1"])
def test_an_unknown_form_is_refused_with_the_forms(text: str) -> None:
    with pytest.raises(click.UsageError, match="-o"):
        OutputWord().convert(text, None, None)


@pytest.mark.parametrize(
    ("goal", "met"),
    [
        ("ready", True),
        ("condition=Ready", True),
        ("condition=Ready=false", False),
        ("jsonpath={.observed.power}=running", True),
        ("{.observed.power}=stopped", False),
        (".observed.power=running", True),
        ("jsonpath='{.desired.boot_serial}'=0", True),
    ],
)
def test_goals_of_wait(goal: str, met: bool) -> None:
    assert goal_of(goal).met(resource()) is met


def test_what_is_being_deleted_is_not_ready() -> None:
    assert not goal_of("ready").met(resource(deleting_at=iso(NOW_S)))


@pytest.mark.parametrize("goal", ["", "readi", "jsonpath={.a}", "jsonpath={.a=b"])
def test_a_goal_that_is_none_is_refused(goal: str) -> None:
    with pytest.raises(ValueError, match=r"jsonpath|path"):
        goal_of(goal)


def test_an_event_stream_is_read_line_by_line() -> None:
    stream = (
        b'event: put\nid: 7\ndata: {"a":\ndata: 1}\n\n: heartbeat\n\nevent: synced\r\nid:8\r\ndata:{}\r\n\r\ndata: cut'
    )
    assert list(parse_events(io.BytesIO(stream))) == [("put", "7", '{"a":\n1}'), ("synced", "8", "{}")]


@pytest.mark.parametrize(
    ("status", "body", "code"),
    [
        (400, b'{"detail":"no","code":"invalid"}', REFUSED),
        (401, b'{"detail":"the key expired"}', NOT_SIGNED_IN),
        (403, b"<html>", REFUSED),
        (404, b'{"detail":"there is no vm"}', NOT_FOUND),
        (409, b'{"title":"Conflict"}', REFUSED),
        (429, b"{}", REFUSED),
        (500, b"[]", BUG),
        (503, b'"text"', UNREACHABLE),
    ],
)
def test_every_refusal_has_an_exit_code_and_a_sentence(status: int, body: bytes, code: int) -> None:
    failure = refusal(status, body)
    assert failure.exit_code == code
    assert failure.message


@given(st.binary(max_size=300), st.binary(max_size=300))
def test_a_growing_log_is_printed_once(before: bytes, more: bytes) -> None:
    # Marked lines stand for what makes real logs tell one place from another: numbers and times.
    text = b"".join(b"%d %b\n" % (n, before[n : n + 3]) for n in range(0, len(before), 3)) or b"start\n"
    grown = b"#%b\n" % more.replace(b"\n", b"")
    assert added(text, text + grown).endswith(grown) or grown in text
    assert added(text, text) == b""


def test_a_log_that_began_anew_is_printed_whole() -> None:
    assert added(b"old line\n" * 20, b"new line\n") == b"new line\n"
    assert added(b"", b"first\n") == b"first\n"
    assert last_lines(b"a\nb\nc", 2) == b"b\nc"
    assert last_lines(b"a\n", 0) == b""


def test_a_guest_cannot_steer_the_terminal_through_its_log() -> None:
    text = b"a\x1b[31mred\x1b[0m\x1b]0;title\x07b\x1b(B\tc\r\nover\rwrite\x08\x00\x1bc\n"
    assert shown(text) == b"ared" + b"b\tc\r\noverwrite\n"


def test_no_colours_without_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not table.coloured()
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert table.coloured()
    monkeypatch.setenv("NO_COLOR", "1")
    assert not table.coloured()
