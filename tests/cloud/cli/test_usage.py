"""``pileus usage`` against a real server: what was used, in every form, and what is said to those who ask wrongly."""

from __future__ import annotations

import asyncio
from datetime import datetime
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from pileus.cli import contexts
from pileus.cli.failure import NOT_FOUND, OK, REFUSED, USAGE
from pileus.kernel.clock import unix
from pileus.kernel.transaction import Transaction

if TYPE_CHECKING:
    from tests.cloud.cli.cli_world import LIMIT_S, Cloud
    from tests.cloud.cli.conftest import Run
else:
    from cli_world import LIMIT_S

    Cloud = Run = Any

NIGHT = ("--since", "2020-01-31T22:00:00Z", "--until", "2020-02-01T02:00:00Z")
SPAN = "from 2020-01-31T22:00:00Z to 2020-02-01T02:00:00Z\n"
SIZE = {"vcpus": 2, "memory_mib": 4096, "disk_mib": 10_240}


@pytest.fixture
def night(pileus: Run, account: str, cloud: Cloud) -> str:
    """An account whose VM web was on from 23:00 to 01:00, at the turn of a month, and then had its disk only."""
    assert pileus("create", "vm", "web", "--account", account).code == OK
    vm = pileus("get", "vm", "web", "--account", account, "-o", "json").json
    about = {word: vm[word] for word in ("id", "kind", "name", "account_id", "account")}

    async def used(tx: Transaction) -> None:
        for since, until, amounts in (
            ("2020-01-31T23:00:00Z", "2020-02-01T01:00:00Z", SIZE),
            ("2020-02-01T01:00:00Z", "2020-02-01T01:30:00Z", {"disk_mib": 10_240}),
        ):
            run = {"since": unix(since), "until": unix(until), "host": ""}
            await tx.change(tx.insert.usage, **about, **run, amounts=msgspec.json.encode(amounts).decode())
        for hour, sent in (("2020-01-31T23:00:00Z", 1_500_000_000), ("2020-02-01T00:00:00Z", 1_234)):
            await tx.change(tx.insert.traffic, **about, hour=unix(hour), received_bytes=0, sent_bytes=sent)

    asyncio.run_coroutine_threadsafe(cloud.started.parts.store.write(used), cloud.loop).result(LIMIT_S)
    return account


def test_an_account_sees_what_it_used_in_whole_and_by_month(pileus: Run, night: str) -> None:
    ran = pileus("usage", "--account", night, *NIGHT)
    assert (ran.code, ran.err) == (OK, SPAN)
    assert ran.out.splitlines() == [
        "OBJECT   VCPU-HOURS   MEMORY-GIB-HOURS   DISK-GIB-HOURS   SENT-GB",
        "vm web        4.000              8.000           25.000     1.500",
    ]
    ran = pileus("usage", "--account", night, *NIGHT, "--per", "month")
    assert ran.out.splitlines() == [
        "SINCE                  OBJECT   VCPU-HOURS   MEMORY-GIB-HOURS   DISK-GIB-HOURS   SENT-GB",
        "2020-01-31T22:00:00Z   vm web        2.000              4.000           10.000     1.500",
        "2020-02-01T00:00:00Z   vm web        2.000              4.000           15.000    <0.001",
        "total                                4.000              8.000           25.000     1.500",
    ]


def test_the_wide_form_has_all_columns_and_ids(pileus: Run, night: str) -> None:
    id = pileus("get", "vm", "web", "--account", night, "-o", "json").json["id"]
    lines = pileus("usage", "--account", night, *NIGHT, "-o", "wide").out.splitlines()
    assert lines[0].split()[-4:] == ["ADDRESS-HOURS", "RECEIVED-GB", "SENT-GB", "ID"]
    assert lines[1].split()[-4:] == ["-", "-", "1.500", id]
    assert pileus("usage", "-A", *NIGHT, "-o", "wide").out.splitlines()[0].split()[-1] == "SENT-GB"


def test_programs_get_the_servers_answer(pileus: Run, night: str) -> None:
    answer = pileus("usage", "--account", night, *NIGHT, "--per", "hour", "-o", "json").json
    hours = [
        (item["since"][11:16], item["vcpu_hours"], item["disk_gib_hours"], item["sent_gb"]) for item in answer["items"]
    ]
    assert hours == [("23:00", 2.0, 10.0, 1.5), ("00:00", 2.0, 10.0, 0.000001), ("01:00", 0.0, 5.0, 0.0)]
    assert answer["total"]["vcpu_hours"] == 4.0
    assert pileus("usage", "--account", night, *NIGHT, "-o", "name").out == "web\n"
    ran = pileus("usage", "--account", night, *NIGHT, "-o", "custom-columns=WHAT:.name,DISK:.disk_gib_hours")
    assert ran.out.splitlines() == ["WHAT   DISK", "web    25.0"]


def test_an_operator_sees_all_by_account(pileus: Run, night: str) -> None:
    for words in (("-A",), ()):
        lines = pileus("usage", *words, *NIGHT).out.splitlines()
        assert lines[0].split() == ["ACCOUNT", "VCPU-HOURS", "MEMORY-GIB-HOURS", "DISK-GIB-HOURS", "SENT-GB"]
        assert [night, "4.000", "8.000", "25.000", "1.500"] in [line.split() for line in lines]
    assert night in pileus("usage", "-A", *NIGHT, "-o", "name").out.splitlines()
    found = [line.split() for line in pileus("usage", "-A", "--by", "object", *NIGHT).out.splitlines()]
    assert [night, "vm", "web", "4.000", "8.000", "25.000", "1.500"] in found


@pytest.mark.parametrize("form", [("vm", "web"), ("vm/web",), ("compute.vm", "web")])
def test_one_resource(pileus: Run, night: str, form: tuple[str, ...]) -> None:
    lines = pileus("usage", *form, "--account", night, *NIGHT).out.splitlines()
    assert [line.split()[0] for line in lines] == ["OBJECT", "vm"]
    assert pileus("create", "volume", "data", "--size-gib", "1", "--account", night).code == OK
    ran = pileus("usage", "volume", "data", "--account", night, *NIGHT)
    assert (ran.code, ran.out, ran.err) == (OK, "", f"{SPAN}nothing was used\n")


def test_what_is_deleted_stays_in_the_list_and_is_pointed_at(pileus: Run, night: str) -> None:
    assert pileus("delete", "vm", "web", "--account", night, "-y", "--wait").code == OK
    assert "vm web" in pileus("usage", "--account", night, *NIGHT).out
    ran = pileus("usage", "vm", "web", "--account", night)
    assert ran.code == NOT_FOUND
    assert "`pileus usage` without a name has what is deleted, too" in ran.err


def test_a_tenant_sees_its_own(pileus: Run, night: str, cloud: Cloud) -> None:
    other = f"{night}-other"
    assert pileus("create", "account", other).code == OK
    assert pileus("create", "user", "ann", "--account", night, "--role", "reader").code == OK
    key = pileus("create", "key", "ann", "--account", night, "--user", "ann").out.split()[-1]
    contexts.put("ann", msgspec.structs.replace(cloud.operator, key=key, account=night))
    for words in ((), ("-A",), ("vm", "web")):
        lines = pileus("usage", *words, *NIGHT).out.splitlines()
        assert [line.split()[:2] for line in lines[1:]] == [["vm", "web"]]
    assert pileus("usage", "--account", other).code == NOT_FOUND


def test_the_month_until_now_is_what_is_meant_without_times(pileus: Run, account: str) -> None:
    answer = pileus("usage", "--account", account, "-o", "json").json
    since, until = (datetime.fromisoformat(answer[word]) for word in ("since", "until"))
    assert since == until.replace(day=1, hour=0, minute=0, second=0, microsecond=0)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("vm",), USAGE, "usage takes KIND and NAME, or neither"),
        (("vm/",), USAGE, "usage takes KIND and NAME, or neither"),
        (("vm", "a", "b"), USAGE, "usage takes KIND and NAME, or neither"),
        (("network", "default"), USAGE, "networks are not metered; "),
        (("zone", "local"), USAGE, "zones are not metered; "),
        (("vm", "web", "-A"), USAGE, "-A is of all accounts"),
        (("vm", "nix"), NOT_FOUND, "there is no vm 'nix'"),
        (("--per", "week"), USAGE, "'week' is not one of"),
        (("--since", "yesterday"), REFUSED, "since 'yesterday' is no time such as"),
        (("--since", "2999-01-01T00:00:00Z"), REFUSED, "must be before until"),
        (("--since", "2020-01-01T00:00:00Z", "--per", "hour"), REFUSED, "more than 800 periods"),
    ],
)
def test_what_cannot_be_is_said(pileus: Run, account: str, words: tuple[str, ...], code: int, said: str) -> None:
    place = () if "-A" in words else ("--account", account)
    ran = pileus("usage", *words, *place)
    assert (ran.code, ran.out) == (code, "")
    assert said in ran.err
