"""Users of an appliance: what is written of them, what is left alone, and what becomes of one that goes."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import pytest

from pileus.node.applications.accounts import FIRST_UID, Accounts
from pileus.node.applications.model import User, read_user
from pileus.node.applications.role import Applications
from pileus.node.role import RoleRefused

if os.geteuid() != 0:
    pytest.skip("files are given to users by root", allow_module_level=True)

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHxVJ0sXJ0v8 one@host"
PASSWD = "root:x:0:0:root:/root:/bin/false\nnobody:x:65534:65534:nobody:/:/bin/false\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The root of a machine as the image makes it."""
    etc = tmp_path / "etc"
    etc.mkdir()
    (etc / "passwd").write_text(PASSWD)
    (etc / "shadow").write_text("root:!:19000:0:99999:7:::\nnobody:!:19000:0:99999:7:::\n")
    (etc / "shadow").chmod(0o600)
    (etc / "group").write_text("root:x:0:\nnogroup:x:65534:\n")
    return tmp_path


def users(**fields: dict[str, Any]) -> dict[str, User]:
    return {name: read_user(name, one) for name, one in fields.items()}


def text(root: Path, name: str) -> str:
    return (root / "etc" / name).read_text()


def test_users_come_with_keys_and_the_rights_that_they_were_given(root: Path) -> None:
    (root / "etc/ssh/sshd_config.d").mkdir(parents=True)
    accounts = Accounts(root, {})
    accounts.make(users(ann={"keys": [KEY], "rights": ["all"]}, ben={"rights": ["/bin/ls", "/sbin/reboot"]}, cy={}))
    assert text(root, "passwd").startswith(PASSWD)
    assert f"ann:x:{FIRST_UID}:{FIRST_UID}::/home/ann:/bin/sh\n" in text(root, "passwd")
    assert "ann:*:" in text(root, "shadow"), "no password fits, and the account is not locked"
    assert stat.S_IMODE((root / "etc/shadow").stat().st_mode) == 0o600
    assert text(root, "ssh/authorized_keys.d/ann") == f"{KEY}\n"
    assert text(root, "ssh/authorized_keys.d/cy") == ""
    assert text(root, "ssh/sshd_config.d/pileus.conf").endswith("authorized_keys.d/%u\n")
    assert text(root, "sudoers.d/pileus-applications") == (
        "ann ALL=(root) NOPASSWD: ALL\nben ALL=(root) NOPASSWD: /bin/ls, /sbin/reboot\n"
    )
    assert stat.S_IMODE((root / "etc/sudoers.d/pileus-applications").stat().st_mode) == 0o440
    home = (root / "home/ann").stat()
    assert (home.st_uid, stat.S_IMODE(home.st_mode)) == (FIRST_UID, 0o700)


def test_who_goes_has_no_account_key_or_right_and_the_number_is_nobody_elses(root: Path) -> None:
    uids: dict[str, int] = {}
    accounts = Accounts(root, uids)
    accounts.make(users(ann={"keys": [KEY], "rights": ["all"]}))
    accounts.make(users(ben={}))
    assert "ann" not in text(root, "passwd") + text(root, "shadow") + text(root, "group")
    assert not (root / "etc/ssh/authorized_keys.d/ann").exists()
    assert not (root / "etc/sudoers.d/pileus-applications").exists()
    assert uids == {"ann": FIRST_UID, "ben": FIRST_UID + 1}
    accounts.make({})
    assert text(root, "passwd") == PASSWD


def test_nothing_is_touched_where_nobody_is_to_be(root: Path) -> None:
    before = {file: file.stat().st_ino for file in (root / "etc").rglob("*")}
    Accounts(root, {}).make({})
    assert {file: file.stat().st_ino for file in (root / "etc").rglob("*")} == before


def test_a_user_or_group_of_the_image_is_not_taken(root: Path) -> None:
    accounts = Accounts(root, {})
    for name in ("nobody", "nogroup"):
        with pytest.raises(RoleRefused, match="of that name"):
            accounts.check(users(**{name: {}}))


def test_an_application_runs_as_its_user_and_requests_change_users(root: Path) -> None:
    role = Applications(root, "boot-1")
    entry = {"command": ["sh", "-c", "id -u; id -G; exec sleep 1000"], "user": "ann"}
    role.apply({"users": {"ann": {}}, "applications": {"web": entry}})
    pid = role._kept.notes["web"].pid
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    assert status["Uid"].split() == [str(FIRST_UID)] * 4
    assert status["Groups"].split() == []
    with pytest.raises(RoleRefused, match="runs as the user"):
        role.request("r", b'{"do": "user", "name": "ann", "remove": true}', again=False)
    answer = role.request(
        "r", b'{"do": "user", "name": "ben", "rights": ["all"], "keys": ["%s"]}' % KEY.encode(), again=False
    )
    assert answer == b'{"state": "present"}'
    role.request("r", b'{"do": "user", "name": "ben", "rights": []}', again=False)
    assert not (root / "etc/sudoers.d/pileus-applications").exists()
    assert text(root, "ssh/authorized_keys.d/ben") == f"{KEY}\n", "what is not said stays"
    assert role.status()["users"] == ["ann", "ben"]
    with pytest.raises(RoleRefused):
        role.request("r", b'{"do": "user", "name": "ben", "rights": ["ALL = ALL"]}', again=False)
    assert role.request("r", b'{"do": "user", "name": "ben", "remove": true}', again=False) == b'{"state": "absent"}'
    assert role.status()["users"] == ["ann"]
    role.apply({})
    assert role.status()["users"] == []
    assert not Path(f"/proc/{pid}").exists()
    role.close()
