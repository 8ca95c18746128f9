"""The verbs, run against a real server: what they print, what they leave, how they end."""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pileus.cli import client, contexts
from pileus.cli.failure import NOT_FOUND, NOT_SIGNED_IN, OK, REFUSED, TIMED_OUT, UNREACHABLE, USAGE
from pileus.cli.session import Session
from pileus.registry import KINDS

if TYPE_CHECKING:
    from tests.cloud.cli.cli_world import Cloud
    from tests.cloud.cli.cli_world import cloud as another_cloud
    from tests.cloud.cli.conftest import Run
else:
    from cli_world import cloud as another_cloud

    Cloud = Run = Any


@pytest.fixture
def web(pileus: Run, account: str) -> str:
    """A running VM."""
    ran = pileus("create", "vm", "web", "--account", account, "--label", "tier=front", "--wait")
    assert (ran.code, ran.out) == (OK, f"vm web of account {account} is ready\n"), ran.err
    return "web"


def vm(pileus: Run, account: str, name: str = "web") -> Any:
    return pileus("get", "vm", name, "--account", account, "-o", "json").json


# the main path


def test_the_tour_of_the_first_milestone(pileus: Run, account: str, cloud: Cloud, tmp_path: Path) -> None:
    script = tmp_path / "start.sh"
    script.write_text("#!/bin/sh\necho hello\n")
    made = pileus(
        "create", "vm", "web", "--account", account, "--image", "tiny", "--offering", "tiny",
        "--network", "default", "--address", "10.1.1.10", "--user-data", str(script), "--wait",
    )  # fmt: skip
    assert made.code == OK, made.err
    there = vm(pileus, account)
    assert there["desired"]["user_data"] == script.read_text()
    (nic,) = there["desired"]["nics"]
    assert (nic["network"], nic["address"], nic["extra_addresses"]) == ("default", "10.1.1.10", [])
    assert {"desired", "assigned", "observed", "conditions"} <= there.keys()
    assert [(one["type"], one["status"]) for one in there["conditions"]] == [("Ready", "true")]
    cloud.hosts.logs[there["id"]] = b"booting\nhello\n"
    assert pileus("logs", "vm", "web", "--account", account).out == "booting\nhello\n"
    assert pileus("logs", "vm", "web", "--account", account, "--tail", "1").out == "hello\n"
    gone = pileus("delete", "vm", "web", "--account", account, "--wait")
    assert (gone.code, gone.out) == (OK, f"vm web of account {account} is gone\n")
    assert pileus("get", "vm", "web", "--account", account).code == NOT_FOUND


def test_a_key_is_printed_once_and_signs_in(pileus: Run, account: str, tmp_path: Path, cloud: Cloud) -> None:
    assert pileus("create", "user", "alice", "--account", account, "--role", "owner").code == OK
    made = pileus("create", "key", "laptop", "--account", account, "--user", "alice")
    secret = made.out.strip()
    assert secret.startswith("pil_")
    assert secret not in made.err
    assert secret not in pileus("get", "key", "laptop", "--account", account, "-o", "json").out
    ca = tmp_path / "ca.pem"
    ca.write_text(cloud.started.ca)
    ran = pileus("login", "--server", cloud.started.url, "--ca", str(ca), "--key", secret, "--name", "mine")
    assert (ran.code, ran.out) == (OK, f"signed in as alice of account {account}; context mine is current\n")
    assert f"user alice, role owner, account {account}" in pileus("whoami").out
    assert pileus("get", "network").out.split()[:1] == ["NAME"]
    assert pileus("status").out.splitlines()[-1] == "0 VMs, 0 as wished"
    assert pileus("create", "vm", "web", "--wait").code == OK
    assert pileus("status").out.splitlines()[-1] == "1 VM, 1 as wished"
    assert pileus("--context", "local", "whoami").out.startswith("user admin")
    assert secret not in pileus("context", "show").out
    again = ("login", "--server", cloud.started.url, "--ca", str(ca), "--key", secret, "--name")
    other = pileus(*again, "local")
    assert (other.code, other.err) == (
        USAGE,
        "error: context local has another key\nhint: keep both with --name OTHER, or replace it with --force\n",
    )
    assert contexts.load().contexts["local"] == cloud.operator
    assert pileus(*again, "mine").code == OK, "the same key is no other"
    assert pileus(*again, "local", "--force").code == OK
    assert contexts.load().contexts["local"].key == secret


def test_a_tenant_sees_another_accounts_vm_like_one_that_is_not_there(
    pileus: Run, account: str, web: str, cloud: Cloud
) -> None:
    assert pileus("create", "account", f"{account}-b").code == OK
    pileus("create", "user", "eve", "--account", f"{account}-b", "--role", "owner")
    secret = pileus("create", "key", "k", "--account", f"{account}-b", "--user", "eve").out.strip()
    contexts.put("eve", contexts.Context(server=cloud.started.url, ca=cloud.started.ca, key=secret))
    theirs = pileus("get", "vm", web, "--account", account)
    none = pileus("get", "vm", web, "--account", "no-such-account")
    assert (theirs.code, none.code) == (NOT_FOUND, NOT_FOUND)
    assert theirs.err.replace(account, "X") == none.err.replace("no-such-account", "X")
    assert pileus("get", "host").code == REFUSED


# get


def test_all_accounts_are_told_apart_by_a_column(pileus: Run, account: str, web: str) -> None:
    ran = pileus("get", "vm", "-A", "-o", "wide")
    header, *rows = ran.out.splitlines()
    assert header.split()[:2] == ["NAME", "ACCOUNT"]
    mine = next(row for row in rows if f" {account} " in row)
    assert " main " in mine
    assert pileus("get", "vm", web, "-A", "-l", "tier=front", "-o", "json").json["items"][0]["name"] == web
    assert f"{account}/{web}" in pileus("get", "vm", "-A", "-o", "name").out.splitlines()
    assert pileus("get", "zone", "local", "-A", "-o", "name").out == "local\n"
    none = pileus("get", "vm", "no-such-vm", "-A")
    assert (none.code, none.err) == (NOT_FOUND, "error: there is no vm no-such-vm in any account\n")


def test_filters_reach_the_server(pileus: Run, account: str, web: str) -> None:
    def names(*filters: str) -> list[str]:
        return pileus("get", "vm", "--account", account, "-o", "name", *filters).out.split()

    assert names() == names("-l", "tier=front") == names("--ready", "true") == names("--vdc", "main") == ["web"]
    assert names("-l", "tier=front,tier=back") == names("-l", "tier=back") == names("--ready", "false") == []
    assert pileus("get", "vm", "--account", account, "--vdc", "nothing").code == NOT_FOUND
    empty = pileus("get", "vm", "--account", account, "-l", "tier=back")
    assert (empty.code, empty.out, empty.err) == (OK, "", f"no vms in account {account} that match\n")


def test_a_list_longer_than_a_page_comes_whole(pileus: Run, account: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "PAGE", 2)
    for number in range(5):
        assert pileus("create", "user", f"u{number}", "--account", account).code == OK
    assert len(pileus("get", "user", "--account", account, "-o", "json").json["items"]) == 5
    assert pileus("get", "user", "--account", account, "-o", "name", "--limit", "3").out == "u0\nu1\nu2\n"
    assert pileus("get", "user", "u1", "u3", "u1", "--account", account, "-o", "name").out == "u1\nu3\n"


def test_a_name_that_is_not_there_is_answered_with_the_closest(pileus: Run, account: str, web: str) -> None:
    ran = pileus("get", "vm", "wep", "--account", account)
    assert ran.code == NOT_FOUND
    assert "hint: did you mean web?" in ran.err
    operator = pileus("get", "vm", "web")
    assert operator.code == NOT_FOUND
    assert "--account" in operator.err


def test_an_operator_without_an_account_is_told_to_choose(pileus: Run) -> None:
    ran = pileus("get", "vm")
    assert ran.code == REFUSED
    assert "--account" in ran.err


def test_the_account_of_the_context_is_the_default(pileus: Run, account: str, web: str) -> None:
    assert pileus("context", "set", "--account", account).code == OK
    assert pileus("get", "vm", "-o", "name").out == "web\n"
    assert pileus("get", "zone", "-o", "name").out == "local\n"
    assert pileus("create", "zone", f"z-{account}").code == OK
    assert pileus("delete", "zone", f"z-{account}", "--wait").code == OK
    assert pileus("context", "set", "--account", "").code == OK
    assert pileus("get", "vm").code == REFUSED


# describe


def test_describe_says_what_was_wished_decided_found_and_what_to_do(pileus: Run, account: str, web: str) -> None:
    ran = pileus("describe", "vm", web, "--account", account)
    assert ran.code == OK, ran.err
    for text in ("Wish (desired)", "Decision (assigned)", "Fact (observed)", "Conditions", "Last events"):
        assert text in ran.out
    assert re.search(r"^  vdc +main \(", ran.out, re.MULTILINE)
    assert re.search(r"^  iops_limit +no limit$", ran.out, re.MULTILINE)
    wish = ran.out.partition("Wish (desired)")[2].partition("Decision (assigned)")[0]
    assert not re.search(r"^  (vcpus|memory_mib|disk_gib) ", wish, re.MULTILINE), "what nobody said is shown as 0"
    assert not re.search(r"^  (told|boot_serial|vcpus +0|memory_mib +0)", ran.out, re.MULTILINE)
    assert f"pileus logs vm web --account {account}" in ran.out
    usage = pileus("describe", "vdc", "main", "--account", account).out
    assert "vms          1         20         5 %" in usage


@pytest.mark.parametrize("kind", [kind.short for kind in KINDS])
def test_every_kind_can_be_listed_and_what_is_there_described(pileus: Run, account: str, kind: str) -> None:
    listed = pileus("get", kind, "-A", "-o", "json")
    assert listed.code == OK, listed.err
    assert pileus("get", kind, "-A", "-o", "wide").code == OK
    for item in listed.json["items"][:1]:
        ran = pileus("describe", kind, item["id"], "--account", item["account"])
        assert ran.code == OK, ran.err
        assert item["id"] in ran.out


# waiting


def test_waiting_ends_with_5_and_the_reason_when_it_takes_too_long(pileus: Run, account: str, cloud: Cloud) -> None:
    name = f"held-{account}"
    cloud.vms.held.add(name)
    assert pileus("create", "vm", name, "--account", account).code == OK
    ran = pileus("wait", "vm", name, "--account", account, "--timeout", "1.5")
    assert ran.code == TIMED_OUT
    assert f"vm {name} of account {account} is not ready after 1.5 s: NoHost: no host has 128 MiB free" in ran.err
    assert f"vm {name} of account {account}: NoHost: no host has 128 MiB free (1 s)" in ran.err, "no progress was shown"
    assert "pileus describe vm" in ran.err
    cloud.vms.held.discard(name)
    assert pileus("wait", "vm", name, "--account", account).out == f"vm {name} of account {account} is ready\n"


def test_waiting_for_what_is_gone_is_over_at_once(pileus: Run, account: str) -> None:
    for goal in ("deleted", "gone"):
        ran = pileus("wait", "vm", "never", "--account", account, "--for", goal)
        assert (ran.code, ran.out) == (OK, "vm never is gone\n")
    assert pileus("wait", "vm", "never", "--account", account).code == NOT_FOUND


def test_waiting_for_a_value(pileus: Run, account: str, web: str) -> None:
    goal = "jsonpath={.observed.power}=running"
    assert pileus("wait", "vm", web, "--account", account, "--for", goal).code == OK
    goal = "jsonpath={.observed.power}=paused"
    assert pileus("wait", "vm", web, "--account", account, "--for", goal, "--timeout", "0.3").code == TIMED_OUT
    assert pileus("wait", "vm", web, "--account", account, "--for", "condition=Ready").code == OK


# changing


def test_patch_changes_what_is_named_and_nothing_else(pileus: Run, account: str, web: str) -> None:
    before = vm(pileus, account)
    ran = pileus(
        "patch", "vm", web, "--account", account, "--shutdown-timeout-s", "5", "--label", "a=b", "--label", "tier-"
    )
    assert ran.code == OK, ran.err
    after = vm(pileus, account)
    assert after["desired"] == before["desired"] | {"shutdown_timeout_s": 5}
    assert after["labels"] == {"a": "b"}
    assert pileus("patch", "vm", web, "--account", account, "--reset", "shutdown-timeout-s").code == OK
    assert vm(pileus, account)["desired"] == before["desired"]


def test_what_the_server_refuses_ends_with_3_and_its_sentence(pileus: Run, account: str, web: str) -> None:
    taken = pileus("create", "vm", web, "--account", account)
    assert taken.code == REFUSED
    assert "web" in taken.err
    name = pileus("create", "vm", "Not_A_Name", "--account", account)
    assert name.code == REFUSED
    assert "Not_A_Name" in name.err
    missing = pileus("create", "vm", "x", "--account", account, "--image", "nothing")
    assert missing.code in (REFUSED, NOT_FOUND)
    assert "nothing" in missing.err


def test_a_dry_run_leaves_nothing(pileus: Run, account: str) -> None:
    ran = pileus("create", "vm", "ghost", "--account", account, "--dry-run")
    assert (ran.code, ran.out) == (OK, f"vm ghost of account {account} would be created (nothing was changed)\n")
    assert pileus("get", "vm", "ghost", "--account", account).code == NOT_FOUND


def test_apply_makes_changes_and_leaves_alone(pileus: Run, account: str, tmp_path: Path) -> None:
    file = tmp_path / "wish.yaml"
    text = f"""
kind: network
name: back
account: {account}
desired: {{range: 10.9.0.0/24}}
---
kind: compute.vm
name: db
account: {account}
labels: {{tier: data}}
desired: {{nics: [{{network: back}}], shutdown_timeout_s: 10}}
"""
    file.write_text(text)
    dry = pileus("apply", "-f", str(file), "--dry-run")
    assert dry.out.splitlines()[:1] == ["network back would be created"]
    assert pileus("get", "network", "back", "--account", account).code == NOT_FOUND
    first = pileus("apply", "-f", str(file), "--wait")
    assert (first.code, first.out) == (OK, "network back created\nvm db created\n"), first.err
    assert pileus("apply", "-f", str(file)).out == "network back unchanged\nvm db unchanged\n"
    file.write_text(text.replace("shutdown_timeout_s: 10", "shutdown_timeout_s: 20"))
    assert pileus("apply", "-f", str(file), "--dry-run").out == "network back unchanged\nvm db would be changed\n"
    assert vm(pileus, account, "db")["desired"]["shutdown_timeout_s"] == 10
    assert pileus("apply", "-f", str(file)).out == "network back unchanged\nvm db changed\n"
    assert vm(pileus, account, "db")["desired"]["shutdown_timeout_s"] == 20
    file.write_text(pileus("get", "vm", "db", "--account", account, "-o", "yaml").out)
    assert pileus("apply", "-f", str(file)).out == "vm db unchanged\n"


def test_a_document_that_is_refused_is_named_with_its_place(pileus: Run, account: str, tmp_path: Path) -> None:
    file = tmp_path / "wish.yaml"
    file.write_text(f"kind: vm\nname: a\naccount: {account}\ndesired: {{imagge: x}}")
    ran = pileus("apply", "-f", str(file))
    assert ran.code == REFUSED
    assert "wish.yaml, document 1: vm a: " in ran.err
    assert "did you mean image" in ran.err


def editor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    """Make ``program``, Python that changes ``text``, the editor."""
    script = tmp_path / "editor.py"
    script.write_text(
        "import sys, pathlib\n"
        "file = pathlib.Path(sys.argv[1])\ntext = file.read_text()\n"
        f"{program}\nfile.write_text(text)\n"
    )
    monkeypatch.delenv("VISUAL", raising=False)
    monkeypatch.setenv("EDITOR", f"{sys.executable} {script}")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


def test_edit_sends_what_was_changed(
    pileus: Run, account: str, web: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    editor(tmp_path, monkeypatch, "text = text.replace('restart: on-failure', 'restart: always')")
    ran = pileus("edit", "vm", web, "--account", account)
    assert (ran.code, ran.out) == (OK, f"vm web of account {account} changed\n"), ran.err
    assert vm(pileus, account)["desired"]["restart"] == "always"
    assert pileus("edit", "vm", web, "--account", account).out == f"vm web of account {account} unchanged\n"
    assert not list(tmp_path.glob("pileus-vm-web-*"))


@pytest.mark.parametrize(
    ("program", "expected"),
    [
        ("text = text.replace('restart: on-failure', 'restart: perhaps')", (REFUSED, "restart")),
        ("text = text.replace('name: web', 'name: other')", (USAGE, "a name cannot change")),
        ("text = '['", (USAGE, "neither YAML nor JSON")),
        ("sys.exit(3)", (USAGE, "the editor ended with 3")),
    ],
)
@pytest.mark.usefixtures("web")
def test_an_edit_that_cannot_be_keeps_the_text(
    pileus: Run, account: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, expected: tuple[int, str]
) -> None:
    editor(tmp_path, monkeypatch, program)
    ran = pileus("edit", "vm", "web", "--account", account)
    code, message = expected
    assert ran.code == code
    assert message in ran.err
    (kept,) = tmp_path.glob("pileus-vm-web-*.yaml")
    assert f"your text is kept in {kept}" in ran.err


def test_an_edit_does_not_overwrite_what_another_changed_meanwhile(
    pileus: Run, account: str, web: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = contexts.path()
    change = (
        "import os, subprocess\n"
        f"subprocess.run([sys.executable, '-m', 'pileus.cli.main', 'patch', 'vm', 'web', '--account', '{account}',"
        f" '--shutdown-timeout-s', '7'], check=True, env=os.environ | {{'PILEUS_CONFIG': '{config}'}})\n"
        "text = text.replace('restart: on-failure', 'restart: always')"
    )
    editor(tmp_path, monkeypatch, change)
    ran = pileus("edit", "vm", web, "--account", account)
    assert ran.code == REFUSED
    there = vm(pileus, account)["desired"]
    assert (there["shutdown_timeout_s"], there["restart"]) == (7, "on-failure")


# images, tokens, events, console


def test_an_upload_arrives_as_it_was(pileus: Run, account: str, cloud: Cloud, tmp_path: Path) -> None:
    disk, kernel = tmp_path / "disk.img", tmp_path / "vmlinuz"
    disk.write_bytes(b"QFI\xfb" + bytes(range(256)) * 9000)
    kernel.write_bytes(b"kernel")
    ran = pileus(
        "create", "image", "mine", "--account", account, "--file", str(disk), "--kernel", str(kernel), "--wait"
    )
    assert (ran.code, ran.out) == (OK, f"image mine of account {account} is ready\n"), ran.err
    there = pileus("get", "image", "mine", "--account", account, "-o", "json").json
    assert there["desired"]["format"] == "qcow2"
    stored = cloud.data / "images" / there["id"]
    assert (stored / "kernel").read_bytes() == b"kernel"
    assert [part for part, _, _ in cloud.uploads[-2:]] == ["kernel", "disk"]
    assert cloud.uploads[-1][1] in ran.err
    assert cloud.uploads[-1][2] == disk.stat().st_size


def test_an_upload_that_is_not_what_it_says_can_be_repeated(
    pileus: Run, account: str, tmp_path: Path, cloud: Cloud
) -> None:
    disk = tmp_path / "disk.img"
    disk.write_bytes(b"not what was meant")
    digest = "0" * 63 + "1"
    ran = pileus("create", "image", "bad", "--account", account, "--file", str(disk), "--sha256", digest)
    assert ran.code == REFUSED
    assert digest in ran.err
    assert "upload again" in ran.err
    again = pileus("create", "image", "bad", "--account", account, "--file", str(disk), "--sha256", digest)
    assert again.code == REFUSED
    assert "already" not in again.err


def test_an_upload_that_inspection_refuses_ends_the_wait_and_can_be_repeated(
    pileus: Run, account: str, tmp_path: Path
) -> None:
    disk = tmp_path / "disk.img"
    disk.write_bytes(b"x" * 777)
    create = ("create", "image", "odd", "--account", account, "--file", str(disk), "--wait")
    ran = pileus(*create)
    assert ran.code == REFUSED
    assert f"image odd of account {account} is refused: BadSize: this is no disk; upload it again" in ran.err
    disk.write_bytes(b"x" * 1024)
    other = pileus(*create, "--format", "qcow2")
    assert other.code == REFUSED
    assert "the one there has another format" in other.err
    assert pileus(*create).code == OK
    taken = pileus(*create)
    assert taken.code == REFUSED
    assert "odd" in taken.err


def test_a_disk_may_come_from_standard_input(
    pileus: Run, account: str, monkeypatch: pytest.MonkeyPatch, cloud: Cloud
) -> None:
    stdin = io.TextIOWrapper(io.BytesIO(b"x" * 3_000_000))
    monkeypatch.setattr(sys, "stdin", stdin)
    ran = pileus("create", "image", "piped", "--account", account, "--file", "-", "--format", "raw", "--wait")
    assert ran.code == OK, ran.err
    assert cloud.uploads[-1][2] == 3_000_000


def test_a_host_gets_a_join_token(pileus: Run, account: str) -> None:
    pileus("create", "pod", "local")
    assert pileus("create", "host", f"h-{account}").code == OK
    ran = pileus("join-token", f"h-{account}")
    assert ran.code == OK, ran.err
    assert len(ran.out.strip()) > 40
    assert "works once, until" in ran.err
    assert pileus("join-token", "nothing").code == NOT_FOUND
    described = pileus("describe", "host", f"h-{account}").out
    assert f"pileus join-token h-{account}" in described
    assert pileus("delete", "host", f"h-{account}", "--wait").code == OK


def test_events_of_one_of_an_account_and_of_all(pileus: Run, account: str, web: str) -> None:
    one = pileus("events", "vm", web, "--account", account).out
    assert "vm web" in one
    assert "network default" not in one
    mine = pileus("events", "--account", account).out
    assert "network default" in mine
    everywhere = pileus("events", "-A", "--limit", "1000").out
    assert everywhere.splitlines()[0].split()[1] == "ACCOUNT"
    assert f"   {account}   " in everywhere
    assert pileus("events", "--account", account, "-o", "json").json["items"]


# the server away


def test_a_connection_that_was_closed_meanwhile_is_opened_again(pileus: Run) -> None:
    session = Session()
    try:
        assert session.client.get("/v1")["version"]
        connection = session.client._connection
        assert connection is not None
        connection.sock.close()
        assert session.client.get("/v1")["version"]
    finally:
        session.close()


def test_no_server_ends_with_6(pileus: Run, cloud: Cloud) -> None:
    contexts.put("away", contexts.Context(server="https://127.0.0.1:1", ca=cloud.started.ca, key="pil_x"))
    ran = pileus("get", "vm", "-A")
    assert ran.code == UNREACHABLE
    assert ran.err == (
        "error: no server answers at https://127.0.0.1:1; start one with `pileus up` or choose another context\n"
    )


def test_a_server_of_another_authority_gets_no_key(pileus: Run, cloud: Cloud, tmp_path: Path) -> None:
    with another_cloud(tmp_path) as another:
        other = contexts.Context(server=cloud.started.url, ca=another.started.ca, key="pil_x")
    contexts.put("other", other)
    ran = pileus("get", "vm", "-A")
    assert ran.code == UNREACHABLE
    assert "is not the server of this context" in ran.err


def test_a_key_that_is_refused_ends_with_7(pileus: Run, cloud: Cloud) -> None:
    contexts.put("bad", contexts.Context(server=cloud.started.url, ca=cloud.started.ca, key="pil_" + "x" * 40))
    ran = pileus("get", "vm", "-A")
    assert ran.code == NOT_SIGNED_IN
    assert "pileus login" in ran.err
    assert "pil_" not in ran.err
