"""What a package may allow in a guest with QEMU's agent, and what of a request is refused before anything is done."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pileus.drivers.host.errors import DriverError
from pileus.drivers.host.guest.base import GuestRequest
from pileus.drivers.host.guest.qga_allowed import Allowed, Command, argv, check, read_allowed
from pileus.drivers.host.guest.qga_request import STEPS_MAX, RunStep, WriteStep, read_request

LIST: dict[str, Any] = {
    "commands": [
        {"name": "load", "path": "/usr/sbin/nft", "arguments": ["-f", "/etc/rules.nft"]},
        {
            "name": "ban",
            "path": "/usr/sbin/ban",
            "arguments": ["--for={minutes}", "{peer}", "{why}", "{list}"],
            "values": {"minutes": "number", "peer": "address", "why": "text", "list": "word"},
        },
    ],
    "files": ["/etc/rules.nft"],
    "document": "/etc/pileus.json",
    "apply": "load",
}
ALLOWED = read_allowed(json.dumps(LIST).encode())
BAN = ALLOWED.command("ban")
GOOD = {"minutes": "5", "peer": "10.0.0.0/8", "why": "it said; $(reboot)", "list": "a-1"}


def order(payload: object) -> GuestRequest:
    return GuestRequest(id="r1", sequence=1, deadline=0.0, payload=json.dumps(payload).encode())


def test_values_become_parts_of_arguments_and_never_more_arguments() -> None:
    assert argv(BAN, GOOD) == ("/usr/sbin/ban", "--for=5", "10.0.0.0/8", "it said; $(reboot)", "a-1")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("minutes", "-5"), ("minutes", "5\n"), ("minutes", "٥"), ("minutes", ""), ("minutes", "1" * 19),
        ("peer", "10.0.0.256"), ("peer", "fe80::1%eth0"), ("peer", "example.org"), ("peer", "10.0.0.1 -x"),
        ("why", "-rf"), ("why", "a\nb"), ("why", "a\0b"), ("why", ""), ("why", "x" * 1001),
        ("list", "../x"), ("list", "-x"), ("list", "a b"), ("list", "a" * 65), ("list", "{peer}"),
    ],
)  # fmt: skip
def test_a_value_that_is_not_of_its_kind_is_refused(name: str, value: str) -> None:
    with pytest.raises(DriverError, match=f"ban: {name} is no") as caught:
        argv(BAN, GOOD | {name: value})
    assert caught.value.reason == "NotAllowed"


@given(st.text())
def test_no_word_is_an_option_or_a_path(value: str) -> None:
    command = Command(name="x", path="/bin/x", arguments=("{one}",), values={"one": "word"})
    try:
        line = argv(command, {"one": value})
    except DriverError:
        return
    assert line == ("/bin/x", value)
    assert not value.startswith("-")
    assert "/" not in value


@pytest.mark.parametrize("values", [{}, {**GOOD, "more": "1"}, {"minutes": "5"}])
def test_values_that_a_command_does_not_take_are_refused(values: dict[str, str]) -> None:
    with pytest.raises(DriverError, match="takes these values: minutes, peer, why, list"):
        argv(BAN, values)


@pytest.mark.parametrize(
    "change",
    [
        {"commands": [{"name": "load", "path": "nft"}]},
        {"commands": [{"name": "load", "path": "/usr/../bin/sh"}]},
        {"commands": [{"name": "load", "path": "/bin/x", "arguments": ["{unknown}"]}]},
        {"commands": [{"name": "load", "path": "/bin/x", "arguments": ["{a b}"]}]},
        {"commands": [{"name": "load", "path": "/bin/x", "arguments": ["a\nb"]}]},
        {"commands": [{"name": "load", "path": "/bin/x", "values": {"unused": "word"}}]},
        {"commands": [{"name": "load", "path": "/bin/x", "arguments": ["{a}"], "values": {"a": ".*"}}]},
        {"commands": [{"name": "load", "path": "/bin/x", "arguments": ["{a}"], "values": {"a": "word"}}]},
        {"commands": [{"name": "load", "path": "/bin/x", "timeout_s": 0}]},
        {"commands": [{"name": "load", "path": "/bin/x"}, {"name": "load", "path": "/bin/y"}]},
        {"commands": [{"name": "Load it", "path": "/bin/x"}]},
        {"files": ["etc/x"]},
        {"files": ["/etc/./x"]},
        {"files": ["/etc/x "]},
        {"files": ["/var/lib/pileus-fleet/requests/ledger"]},
        {"apply": "other"},
        {"apply": ""},
        {"document": ""},
        {"more": 1},
    ],
)
def test_a_list_that_does_not_mean_one_thing_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(DriverError) as caught:
        read_allowed(json.dumps(LIST | change).encode())
    assert caught.value.reason == "BadPackage"


def test_an_empty_list_allows_nothing() -> None:
    check(Allowed())
    with pytest.raises(DriverError, match="no command 'reboot'"):
        Allowed().command("reboot")


def test_a_request_is_a_step_or_several() -> None:
    one = read_request(order({"run": {"command": "load"}}), ALLOWED)
    assert one.steps == (
        RunStep(command="load", argv=("/usr/sbin/nft", "-f", "/etc/rules.nft"), timeout_s=60, repeatable=False),
    )
    write = {"write": {"path": "/etc/rules.nft", "content_base64": base64.b64encode(b"\0x").decode()}}
    two = read_request(order([write, {"run": {"command": "ban", "values": GOOD}}]), ALLOWED)
    assert isinstance(two.steps[0], WriteStep)
    assert two.steps[0].content == b"\0x"
    assert two.digest != one.digest


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        ({"run": {"command": "reboot"}}, "NotAllowed"),
        ({"write": {"path": "/etc/passwd", "content_base64": ""}}, "NotAllowed"),
        ({"write": {"path": "/etc/pileus.json", "content_base64": ""}}, "NotAllowed"),
        ({"write": {"path": "/etc/rules.nft", "content_base64": "?"}}, "BadRequest"),
        ({"run": {"command": "load"}, "write": {"path": "/etc/rules.nft", "content_base64": ""}}, "BadRequest"),
        ({"run": {"command": "load", "path": "/bin/sh"}}, "BadRequest"),
        ({"read": {"path": "/etc/shadow"}}, "BadRequest"),
        ({}, "BadRequest"),
        ([], "BadRequest"),
        ([{"run": {"command": "load"}}] * (STEPS_MAX + 1), "BadRequest"),
        ("text", "BadRequest"),
    ],
)
def test_a_request_for_anything_else_is_refused(payload: object, reason: str) -> None:
    with pytest.raises(DriverError) as caught:
        read_request(order(payload), ALLOWED)
    assert caught.value.reason == reason


@pytest.mark.parametrize("payload", [b"", b"\xff", b"[" * 100_000, b"{"])
def test_a_payload_that_is_no_json_is_refused(payload: bytes) -> None:
    with pytest.raises(DriverError):
        read_request(GuestRequest(id="r", sequence=1, deadline=0.0, payload=payload), ALLOWED)


@pytest.mark.parametrize("id_", ["", "../x", "a/b", "a b", "-x"])
def test_an_id_never_becomes_another_folder(id_: str) -> None:
    with pytest.raises(DriverError):
        read_request(GuestRequest(id=id_, sequence=1, deadline=0.0, payload=b'{"run":{"command":"load"}}'), ALLOWED)
