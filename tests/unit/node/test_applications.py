"""The role applications over real processes: their ends, updates, suspensions, and a node that ends and comes back."""

from __future__ import annotations

import errno
import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pileus.node.applications import kept, logs, processes, supervisor
from pileus.node.applications.role import FOLDER
from pileus.node.role import RoleRefused

if TYPE_CHECKING:
    from tests.unit.node.applications_role import Make, ask, document, entry, is_alive, kill, pid_of, state, told, until
else:
    from applications_role import Make, ask, document, entry, is_alive, kill, pid_of, state, told, until


def test_an_application_runs_and_its_end_is_told_at_once_and_stays(make: Make) -> None:
    role = make()
    role.apply(document(web=entry()))
    assert role.status()["role"] == "applications"
    first = told(role)
    assert (first["state"], first["version"], first["exits"], first["code"]) == ("running", "1", 0, "")
    assert not select.select([role.wake_fd()], [], [], 0)[0]
    kill(role)
    found = told(role)
    assert (found["state"], found["exits"], found["code"]) == ("failed", 1, "signal 9")
    assert not select.select([role.wake_fd()], [], [], 0)[0], "once it was seen, nobody is woken any more"
    role.apply(document(web=entry()))
    assert told(role) == found, "who is to be restarted by nobody stays as it is"
    assert ask(role, do="start", application="web") == {"state": "running"}
    assert told(role)["exits"] == 1


def test_what_has_done_its_work_is_stopped_and_what_fails_says_how(make: Make) -> None:
    role = make()
    role.apply(document(done=entry(["true"]), wrong=entry(["sh", "-c", "exit 3"]), missing=entry(["/no/such"])))
    until(role, lambda: state(role, "done") == "stopped" and state(role, "wrong") == "failed")
    assert told(role, "done")["code"] == "exit 0"
    assert told(role, "wrong")["code"] == "exit 3"
    assert "No such file" in told(role, "missing")["code"]
    assert told(role, "missing")["state"] == "failed"


def test_what_shall_always_run_is_started_again_later_each_time(make: Make) -> None:
    role = make()
    role.apply(document(web=entry(["sh", "-c", "exit 1"], restart="always")))
    began = time.monotonic()
    until(role, lambda: told(role)["exits"] == 3)
    assert time.monotonic() - began >= 2.9, "after 1 s, and then 2 s"
    role.apply(document(web=entry(restart="always")))
    assert state(role) == "running"
    assert told(role)["exits"] == 3


def test_a_restart_starts_anew_and_the_same_request_does_so_once(make: Make) -> None:
    role = make()
    role.apply(document(web=entry()))
    before = pid_of(role)
    assert ask(role, "r-1", do="restart", application="web") == {"state": "running"}
    after = pid_of(role)
    assert after != before
    assert not is_alive(before)
    assert ask(role, "r-1", again=True, do="restart", application="web") == {"state": "running"}
    assert pid_of(role) == after
    assert told(role)["exits"] == 0
    kill(role)
    assert state(role) == "failed"
    assert ask(role, "r-2", do="restart", application="web") == {"state": "running"}


def test_a_suspended_application_stands_still_and_can_be_ended(make: Make) -> None:
    role = make()
    role.apply(document(web=entry(["sh", "-c", "sleep 1000 & wait"])))
    for _ in range(2):
        assert ask(role, do="suspend", application="web") == {"state": "suspended"}
    stat = Path(f"/proc/{pid_of(role)}/stat")
    until(role, lambda: stat.read_text().rpartition(")")[2].split()[0] == "T")
    assert state(role) == "suspended"
    assert ask(role, do="resume", application="web") == {"state": "running"}
    until(role, lambda: stat.read_text().rpartition(")")[2].split()[0] == "S")
    ask(role, do="suspend", application="web")
    began = time.monotonic()
    assert ask(role, do="terminate", application="web") == {"state": "stopped"}
    assert time.monotonic() - began < 1.5, "it was not waited for until it had to be killed"
    assert told(role)["exits"] == 0
    with pytest.raises(RoleRefused, match="does not run"):
        ask(role, do="resume", application="web")
    assert ask(role, do="start", application="web") == {"state": "running"}


def test_who_does_not_want_to_end_is_killed_with_all_that_it_started(make: Make, tmp_path: Path) -> None:
    role = make()
    note = tmp_path / "child"
    script = f"trap '' TERM; sleep 1000 & echo $! > {note}.new; mv {note}.new {note}; while :; do wait; done"
    role.apply(document(web=entry(["sh", "-c", script], stop_s=1)))
    until(role, note.exists)
    assert ask(role, do="terminate", application="web") == {"state": "stopped"}
    until(role, lambda: not is_alive(int(note.read_text())))


def test_what_left_its_session_is_ended_all_the_same(make: Make, tmp_path: Path) -> None:
    role = make()
    note = tmp_path / "child"
    script = f"setsid sh -c 'echo $$ > {note}.new; mv {note}.new {note}; exec sleep 1000' & exec sleep 1000"
    role.apply(document(web=entry(["sh", "-c", script])))
    until(role, note.exists)
    ask(role, do="terminate", application="web")
    until(role, lambda: not is_alive(int(note.read_text())))
    note.unlink()
    ask(role, do="start", application="web")
    until(role, note.exists)
    first = int(note.read_text())
    kill(role)
    assert state(role) == "failed"
    ask(role, do="start", application="web")
    until(role, lambda: not is_alive(first))


def test_the_end_of_another_is_told_while_one_takes_its_time_to_end(make: Make, tmp_path: Path) -> None:
    role = make()
    said: list[dict[str, Any]] = []
    role.on_news(said.append)
    armed = tmp_path / "armed"
    slow = entry(["sh", "-c", f"trap 'kill -9 $OTHER' TERM; > {armed}; while :; do sleep 0.1; done"], stop_s=1)
    role.apply(document(db=entry()))
    slow["environment"] = {"OTHER": str(pid_of(role, "db"))}
    role.apply(document(db=entry(), slow=slow))
    until(role, armed.exists)
    assert ask(role, do="terminate", application="slow") == {"state": "stopped"}
    found = [one["applications"] for one in said]
    assert any(one["db"]["state"] == "failed" and one["slow"]["state"] == "running" for one in found)
    assert (told(role, "db")["exits"], told(role, "slow")["exits"]) == (1, 0)


def test_who_is_told_to_start_runs_although_nobody_saw_its_end(make: Make) -> None:
    role = make()
    role.apply(document(web=entry()))
    kill(role)
    assert ask(role, do="start", application="web") == {"state": "running"}
    assert (told(role)["state"], told(role)["exits"]) == ("running", 1)


def test_what_is_updated_while_it_is_suspended_starts_when_it_is_resumed(make: Make) -> None:
    role = make()
    role.apply(document(web=entry()))
    ask(role, do="suspend", application="web")
    assert ask(role, do="update", application="web", version="2") == {"state": "suspended", "version": "2"}
    role.close()
    again = make()
    again.apply(document(web=entry()))
    assert (state(again), told(again)["exits"]) == ("suspended", 0)
    assert ask(again, do="resume", application="web") == {"state": "running"}
    assert told(again)["version"] == "2"


def test_a_wish_of_a_request_outlives_a_boot_and_ends_with_the_entry_it_was_made_over(make: Make) -> None:
    first = make()
    first.apply(document(web=entry(), db=entry()))
    ask(first, do="terminate", application="web")
    ask(first, do="suspend", application="db")
    first.tick()
    processes.end([(process, 0.0) for process in first._supervisor._running.values()], lambda: None)
    first.close()
    second = make("boot-2")
    second.apply(document(web=entry(), db=entry()))
    assert (state(second, "web"), state(second, "db")) == ("stopped", "suspended")
    assert ask(second, do="resume", application="db") == {"state": "running"}
    second.apply(document(web=entry(version="2"), db=entry()))
    assert (state(second, "web"), state(second, "db")) == ("running", "running")


def test_an_update_takes_over_and_one_that_fails_leaves_the_old_version(make: Make) -> None:
    role = make()
    role.apply(document(web=entry(settle_s=1)))
    first = pid_of(role)
    answer = ask(role, do="update", application="web", version="2")
    assert answer == {"state": "running", "version": "2"}
    second = pid_of(role)
    assert not is_alive(first)
    assert told(role)["version"] == "2"
    with pytest.raises(RoleRefused, match="2 runs on: version 3: exit 7 within 1 s"):
        ask(role, do="update", application="web", version="3", command=["sh", "-c", "exit 7"])
    assert (told(role)["version"], told(role)["state"], told(role)["exits"]) == ("2", "running", 0)
    assert told(role)["update"] == "version 3: exit 7 within 1 s"
    third = pid_of(role)
    assert third != second
    with pytest.raises(RoleRefused, match="there is no program /no/such"):
        ask(role, do="update", application="web", version="4", command=["/no/such"])
    assert pid_of(role) == third, "it was not even ended"
    with pytest.raises(RoleRefused, match="version"):
        ask(role, do="update", application="web")
    ask(role, do="update", application="web", version="5")
    assert "update" not in told(role)
    assert told(role)["version"] == "5"


def test_a_document_whose_update_fails_is_refused_and_what_ran_before_runs_on(make: Make, tmp_path: Path) -> None:
    role = make()
    old = document(web=entry(settle_s=1), db=entry(), gone=entry())
    role.apply(old)
    ask(role, do="suspend", application="db")
    other, before = pid_of(role, "db"), pid_of(role)
    wrong = document(web=entry(["false"], version="2", settle_s=1), db=entry(), new=entry())
    with pytest.raises(RoleRefused, match="web: version 2: exit 1 within 1 s"):
        role.apply(wrong)
    assert {name: one["state"] for name, one in role.status()["applications"].items()} == {
        "web": "running", "db": "suspended", "gone": "running",
    }  # fmt: skip
    assert (told(role)["version"], told(role)["exits"]) == ("1", 0)
    assert (pid_of(role, "db"), pid_of(role) != before) == (other, True)
    before = pid_of(role)
    for refused in (wrong, document(web=entry(["/no/such"], version="3")), wrong):
        with pytest.raises(RoleRefused):
            role.apply(refused)
    assert pid_of(role, "gone") == role._kept.notes["gone"].pid
    role.apply(old)
    role.apply(document(web=entry(version="3", settle_s=1)))
    assert told(role)["version"] == "3"
    assert list(role.status()["applications"]) == ["web"]


def test_a_refused_document_is_tried_again_once_a_request_mended_something(make: Make, tmp_path: Path) -> None:
    role = make()
    key = tmp_path / "key"
    smith = entry(["sh", "-c", f"[ -e {tmp_path}/begun ] && touch {key}; touch {tmp_path}/begun"])
    role.apply(document(web=entry(settle_s=1), smith=smith))
    until(role, lambda: state(role, "smith") == "stopped")
    wish = document(web=entry(["sh", "-c", f"[ -e {key} ] && exec sleep 1000"], version="2", settle_s=1), smith=smith)
    with pytest.raises(RoleRefused, match="web: version 2: exit 1 within 1 s"):
        role.apply(wish)
    before = pid_of(role)
    ask(role, do="log", application="smith")
    with pytest.raises(RoleRefused, match="web: version 2: exit 1 within 1 s"):
        role.apply(wish)
    assert pid_of(role) == before, "it was not even tried"
    ask(role, do="start", application="smith")
    until(role, lambda: state(role, "smith") == "stopped")
    role.apply(wish)
    assert (told(role)["version"], told(role)["state"]) == ("2", "running")


def test_on_a_full_disk_what_ran_before_an_update_runs_on(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: Path, text: bytes, mode: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    role = make()
    role.apply(document(web=entry(["sh", "-c", "cat page && exec sleep 1000"], files={"page": "one"})))
    with monkeypatch.context() as patched:
        for module in (kept, supervisor):
            patched.setattr(module, "put", full)
        for _ in range(2):
            with pytest.raises(RoleRefused, match="web: version 2: cannot be started: No space left on device"):
                role.apply(document(web=entry(["true"], version="2", files={"page": "two"})))
            assert (told(role)["version"], told(role)["state"]) == ("1", "running")
    role.apply(document(web=entry(["sh", "-c", "exec sleep 1000"], version="3", files={"page": "three"})))
    assert told(role)["version"] == "3"


def test_an_update_that_fails_while_nobody_knows_what_was_before_leaves_what_runs(make: Make, tmp_path: Path) -> None:
    child = node_with(tmp_path, document(web=entry()))
    child.kill()
    child.communicate()
    role = make()
    role.apply(document(web=entry(["/no/such"], version="2")))
    found = told(role)
    assert (found["state"], found["version"], found["update"]) == (
        "running",
        "1",
        "version 2: there is no program /no/such",
    )


def test_files_and_environment_are_as_the_entry_says(make: Make, tmp_path: Path) -> None:
    role = make()
    files = {
        "run": "#!/bin/sh\ncat etc/settings; echo $COLOUR $PILEUS_APPLICATION; pwd > $HOME/here; exec sleep 1000\n"
    }
    role.apply(document(web=entry(["./run"], files={**files, "etc/settings": "a=1\n"}, environment={"COLOUR": "red"})))
    log = tmp_path / FOLDER / "web/log"
    until(role, lambda: log.exists() and log.read_text() == "a=1\nred web\n")
    assert ask(role, do="log", application="web", lines=1) == {"state": "running", "log": "red web\n"}
    ask(role, do="update", application="web", version="2", files={**files, "etc/settings": "b=2\n"})
    until(role, lambda: log.read_text() == "a=1\nred web\nb=2\nred web\n")
    assert len(list((tmp_path / FOLDER / "web").glob("files*"))) == 1
    role.apply({})
    assert [file.name for file in (tmp_path / FOLDER / "web").iterdir()] == ["data"]


def test_a_log_is_cut_while_its_writer_goes_on(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with subprocess.Popen(
        ["sh", "-c", f"exec >> {log}; while read line; do echo $line; done"], stdin=subprocess.PIPE
    ) as child:
        assert child.stdin is not None
        for number in range(100):
            child.stdin.write(b"%d\n" % number)
            child.stdin.flush()
            while not log.exists() or not log.read_text().endswith(f"{number}\n"):
                time.sleep(0.001)
            logs.cut(log, 50)
        child.stdin.close()
    assert log.stat().st_size <= 53
    assert log.with_name("log.1").stat().st_size <= 50
    assert logs.tail(log, 3) == "97\n98\n99\n"


NODE = """
import json, sys, time
from pathlib import Path
from pileus.node.applications.role import Applications
role = Applications(Path(sys.argv[1]), "boot-1")
role.apply(json.loads(sys.argv[2]))
print("ready", flush=True)
time.sleep(1000)
"""


def node_with(folder: Path, wanted: dict[str, Any]) -> subprocess.Popen[bytes]:
    """Return a node's program that runs the document."""
    child = subprocess.Popen([sys.executable, "-c", NODE, str(folder), json.dumps(wanted)], stdout=subprocess.PIPE)
    assert child.stdout is not None
    assert child.stdout.readline() == b"ready\n"
    return child


def test_applications_outlive_the_node_and_their_ends_meanwhile_are_seen(make: Make, tmp_path: Path) -> None:
    wanted = document(web=entry(), db=entry(), gone=entry())
    child = node_with(tmp_path, wanted)
    notes = json.loads((tmp_path / FOLDER / "state.json").read_text())["notes"]
    pids = {name: note["pid"] for name, note in notes.items()}
    child.kill()
    child.communicate()
    os.kill(pids["gone"], signal.SIGKILL)
    role = make()
    assert all(is_alive(pids[name]) for name in ("web", "db"))
    role.apply(wanted)
    assert (pid_of(role), pid_of(role, "db")) == (pids["web"], pids["db"])
    assert (state(role), told(role)["exits"]) == ("running", 0)
    gone = told(role, "gone")
    assert (gone["state"], gone["exits"], gone["code"]) == ("failed", 1, "unknown")
    kill(role, "web")
    assert (told(role)["state"], told(role)["exits"], told(role)["code"]) == ("failed", 1, "unknown")
    assert ask(role, do="terminate", application="db") == {"state": "stopped"}
    assert not is_alive(pids["db"])


def test_a_number_that_the_kernel_gave_again_is_not_taken_for_the_application(make: Make, tmp_path: Path) -> None:
    wanted = document(web=entry())
    child = node_with(tmp_path, wanted)
    child.kill()
    child.communicate()
    file = tmp_path / FOLDER / "state.json"
    kept = json.loads(file.read_text())
    own = kept["notes"]["web"]["pid"]
    other = subprocess.Popen(["sleep", "1000"], start_new_session=True)
    try:
        while processes.start_of(other.pid) == kept["notes"]["web"]["start"]:
            # Within the same tick of the clock, as no kernel gives a number again.
            other.kill()
            other.wait()
            other = subprocess.Popen(["sleep", "1000"], start_new_session=True)
        kept["notes"]["web"]["pid"] = other.pid
        file.write_text(json.dumps(kept))
        role = make()
        role.apply(wanted)
        assert (state(role), told(role)["exits"]) == ("failed", 1)
        ask(role, do="terminate", application="web")
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()
    until(role, lambda: not is_alive(own))


def test_a_node_that_ends_before_it_noted_whom_it_started_finds_it(make: Make, tmp_path: Path) -> None:
    wanted = document(web=entry(), never=entry())
    child = node_with(tmp_path, wanted)
    child.kill()
    child.communicate()
    file = tmp_path / FOLDER / "state.json"
    kept = json.loads(file.read_text())
    own = kept["notes"]["web"]["pid"]
    os.kill(kept["notes"]["never"]["pid"], signal.SIGKILL)
    for note in kept["notes"].values():
        note.update(pid=0, start="")
    file.write_text(json.dumps(kept))
    role = make()
    role.apply(wanted)
    assert (state(role), pid_of(role)) == ("running", own)
    assert (state(role, "never"), told(role, "never")["exits"]) == ("running", 0)


def test_a_state_that_is_damaged_is_none(make: Make, tmp_path: Path) -> None:
    file = tmp_path / FOLDER / "state.json"
    for text in ("", "[]", '{"boot": "boot-1", "notes": {"web": {"no": 1}}}', "\0" * 4096):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        role = make()
        role.apply(document(web=entry()))
        assert state(role) == "running"
        role.apply({})
