"""Roles that are programs: what they are given, what becomes of what they say, and what they cannot do to the node."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from pileus.node.ledger import ANSWER_BYTES_MAX
from pileus.node.program import ProgramFailed, ProgramRole, find, run
from pileus.node.role import RoleRefused

PROGRAM = r"""#!/bin/sh
echo "$*" >> calls
case "$1" in
apply) cat > document; grep -q wrong document && { echo "no rule 7
more" >&2; exit 3; } ;;
request) cat; [ -z "$3" ] || echo " $3" ;;
status) [ -e document ] || exit 3; echo "{\"runs\": $(wc -c < document)}" ;;
*) exit 3 ;;
esac
exit 0
"""


def role(folder: Path, text: str = PROGRAM) -> ProgramRole:
    program = folder / "firewall"
    program.write_text(text)
    program.chmod(0o755)
    return ProgramRole(find("firewall", folder), folder / "state")


def calls(folder: Path) -> list[str]:
    return (folder / "state/firewall/calls").read_text().splitlines()


def test_a_program_is_given_documents_and_requests_and_says_how_it_is(tmp_path: Path) -> None:
    made = role(tmp_path)
    made.apply({"rules": {"1": {"action": "drop"}}})
    assert (tmp_path / "state/firewall/document").read_text() == '{"rules":{"1":{"action":"drop"}}}'
    assert made.request("r-1", b"one\0two", again=False) == b"one\0two"
    assert made.request("r-1", b"one", again=True) == b"one again\n"
    assert made.status() == {"runs": 33}
    assert made.status() == {"runs": 33}
    made.tick()
    assert calls(tmp_path) == ["apply", "request r-1", "request r-1 again", "status"]


def test_a_program_refuses_in_its_first_line_and_what_it_does_not_have_is_not_asked_again(tmp_path: Path) -> None:
    made = role(tmp_path)
    with pytest.raises(RoleRefused) as caught:
        made.apply({"wrong": {}})
    assert caught.value.message == "no rule 7"
    (tmp_path / "state/firewall/document").unlink()
    for _ in range(3):
        made.tick()
        assert made.status() == {}
        made._look_at = 0.0
    assert calls(tmp_path) == ["apply", "tick", "status"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("#!/bin/sh\necho oops >&2\nexit 1\n", "firewall request: exit code 1: oops"),
        ("#!/bin/sh\nkill -9 $$\n", "firewall request: signal 9: "),
        ("#!/no/such/shell\n", "cannot be started"),
        ("", "cannot be started"),
    ],
)
def test_every_other_end_is_a_failure(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ProgramFailed) as caught:
        role(tmp_path, text).request("r-1", b"", again=False)
    assert words in str(caught.value)


def test_a_status_that_is_no_object_is_a_failure(tmp_path: Path) -> None:
    for said in ("[1]", "nothing"):
        with pytest.raises(ProgramFailed):
            role(tmp_path, f"#!/bin/sh\necho '{said}'\n").status()


def test_a_program_that_takes_too_long_ends_with_all_that_it_started(tmp_path: Path) -> None:
    program = tmp_path / "slow"
    program.write_text("#!/bin/sh\nsleep 1000 & echo $! > child; wait\n")
    program.chmod(0o755)
    with pytest.raises(ProgramFailed, match=r"took longer than 0\.5 s"):
        run([str(program)], b"", tmp_path, 0.5, 100)
    child = int((tmp_path / "child").read_text())
    for _ in range(100):
        state = Path(f"/proc/{child}/stat")
        if not state.exists() or state.read_text().split()[2] == "Z":
            return
        time.sleep(0.05)
    os.kill(child, signal.SIGKILL)
    raise AssertionError("what it started runs on")


def test_what_a_program_leaves_running_does_not_hold_it_up(tmp_path: Path) -> None:
    program = tmp_path / "starter"
    program.write_text("#!/bin/sh\nsleep 1000 & echo $!\n")
    program.chmod(0o755)
    ran = run([str(program)], b"", tmp_path, 20.0, 100)
    os.kill(int(ran.said), signal.SIGKILL)


def test_outputs_are_cut_and_long_payloads_go_through(tmp_path: Path) -> None:
    payload = os.urandom(16 << 20)
    said = role(tmp_path, "#!/bin/sh\ncat\n").request("r-1", payload, again=False)
    assert said == payload[:ANSWER_BYTES_MAX]
    assert role(tmp_path, "#!/bin/sh\nexit 0\n").request("r-1", payload, again=False) == b"", "it need not read"


def test_a_program_sees_nothing_of_the_nodes_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "x")
    said = role(tmp_path, "#!/bin/sh\nenv; pwd\n").request("r-1", b"", again=False).decode()
    assert "SECRET" not in said
    assert str(tmp_path / "state/firewall") in said


@pytest.mark.parametrize("name", ["", "../sh", "a/b", "-x", "Firewall", "none"])
def test_a_role_that_the_image_does_not_have_is_none(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="no role"):
        find(name, tmp_path)


def test_a_program_whose_interpreter_is_missing_says_that(tmp_path: Path) -> None:
    program = tmp_path / "role"
    program.write_text("#!/no/such/interpreter\n")
    program.chmod(0o755)
    with pytest.raises(ProgramFailed, match="the interpreter that its first line names is not in the image"):
        run([str(program), "apply"], b"", tmp_path, 5.0, 1000)
