"""What the role applications takes and refuses: documents, requests, registrations."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pileus.node.applications.model import APPLICATIONS_MAX, REGISTRATIONS_MAX, USERS_MAX
from pileus.node.applications.supervisor import UPDATE_MAX
from pileus.node.role import RoleRefused
from pileus.node.serve import STATUS_BYTES_MAX

if TYPE_CHECKING:
    from tests.unit.node.applications_role import KEY, Make, ask, document, entry, pid_of
else:
    from applications_role import KEY, Make, ask, document, entry, pid_of


def test_the_longest_status_is_short_enough(make: Make) -> None:
    role = make()
    program = "/no/\u00e4" + "x" * 4000
    role.apply({
        "applications": {f"{n:a>63}": entry([program], version="v" * 64) for n in range(APPLICATIONS_MAX)},
        "registrations": {f"{n:a>63}": {"until": "2026-01-01T00:00:00Z"} for n in range(REGISTRATIONS_MAX)},
    })  # fmt: skip
    spare = APPLICATIONS_MAX * UPDATE_MAX + 34 * USERS_MAX
    assert len(json.dumps(role.status())) + spare < STATUS_BYTES_MAX


@pytest.mark.parametrize(
    ("section", "name", "fields"),
    [
        ("applications", "web", {"command": []}),
        ("applications", "web", {"command": "sleep 1"}),
        ("applications", "web", {"command": ["sleep\0"]}),
        ("applications", "web", {"command": ["\ud800"]}),
        ("applications", "web", {"command": ["sleep"], "environment": {"A": "\ud800"}}),
        ("applications", "web", {"command": ["sleep"], "files": {"x": "\0"}}),
        ("applications", "web", {"command": ["sleep"], "files": {"x": "x" * (1 << 20)}}),
        ("applications", "../web", {"command": ["sleep"]}),
        ("applications", "web", {"command": ["sleep"], "files": {"../x": ""}}),
        ("applications", "web", {"command": ["sleep"], "files": {"/x": ""}}),
        ("applications", "web", {"command": ["sleep"], "environment": {"PILEUS_LAUNCH": "x"}}),
        ("applications", "web", {"command": ["sleep"], "restart": "often"}),
        ("applications", "web", {"command": ["sleep"], "user": "who"}),
        ("applications", "web", {"command": ["sleep"], "stop_s": 1000}),
        ("applications", "web", {"command": ["sleep"], "comand": []}),
        ("users", "root", {"keys": []}),
        ("users", "a b", {}),
        ("users", "ann", {"keys": [f'command="x" {KEY}']}),
        ("users", "ann", {"keys": [f"{KEY}\n{KEY}"]}),
        ("users", "ann", {"rights": ["/bin/sh, ALL"]}),
        ("users", "ann", {"rights": ["/bin/../bin/sh"]}),
        ("users", "ann", {"shell": "/bin/sh:0"}),
        ("registrations", "db", {"until": "soon"}),
        ("registrations", "db", {"until": "2026-13-01T00:00:00Z"}),
        ("rules", "x", {}),
    ],
)
def test_what_cannot_be_is_refused_and_changes_nothing(
    make: Make, tmp_path: Path, section: str, name: str, fields: dict[str, Any]
) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/false\n")
    role = make()
    role.apply(document(web=entry()))
    before = (pid_of(role), role.status())
    with pytest.raises(RoleRefused):
        role.apply({section: {name: fields}})
    assert (pid_of(role), role.status()) == before


@pytest.mark.parametrize(
    "payload",
    [b"", b"[]", b"{}", b'{"do": "fly"}', b'{"do": "start"}', b'{"do": "start", "application": "no"}', b"[" * 100_000,
     b'{"do": "log", "application": "web", "lines": 0}', b'{"do": "registration", "name": "no", "revoke": true}'],
)  # fmt: skip
def test_a_request_that_makes_no_sense_is_refused(make: Make, payload: bytes) -> None:
    role = make()
    role.apply(document(web=entry()))
    with pytest.raises(RoleRefused):
        role.request("r", payload, again=False)


def test_registrations_end_are_renewed_and_revoked(make: Make) -> None:
    def at(seconds: float) -> str:
        return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + seconds))

    role = make()
    role.apply({"registrations": {"db": {"until": at(-10), "token": "t"}, "web": {"until": at(1000)}}})
    assert role.status()["registrations"] == {"db": "expired", "web": "valid"}
    assert ask(role, do="registration", name="db", renew=at(1000)) == {"state": "valid"}
    assert ask(role, do="registration", name="web", revoke=True) == {"state": "revoked"}
    with pytest.raises(RoleRefused, match="was revoked"):
        ask(role, do="registration", name="web", renew=at(1000))
    again = make()
    again.apply({"registrations": {"db": {"until": at(-10), "token": "t"}, "web": {"until": at(1000)}}})
    assert again.status()["registrations"]["web"] == "revoked"
    again.apply({"registrations": {"web": {"until": at(2000)}}})
    assert again.status()["registrations"] == {"web": "valid"}
