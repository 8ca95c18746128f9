"""Scans from inside a machine: a PID namespace stands for it, so that nothing else on this machine is looked at."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from pileus.node.scanning import ScanRefused, _result, scan_inside
from pileus.scan import rules as rules_of_ours
from pileus.scan.rules import MODULES, eicar

TEST_FILE = "".join(rules_of_ours._EICAR_PARTS).encode()
HIDDEN = b"what only memory has, and twice as long"

VICTIM = """
import os, sys
kept = bytes(byte ^ 1 for byte in bytes.fromhex(sys.argv[1])) * 3
os.write(1, b"x")
os.read(0, 1)
"""
"""Makes the text in its memory alone: its command line has other bytes."""

OUTER = """
import json, subprocess, sys
from pileus.node.scanning import scan_inside
order = json.load(sys.stdin)
victim = subprocess.Popen(order.pop("victim"), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
victim.stdout.read(1)
called = []
found = scan_inside(order.pop("rules"), order.pop("paths"), idle=lambda: called.append(1), **order)
victim.kill()
print(json.dumps({**found, "pid": victim.pid, "idle": len(called)}))
"""


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """A folder for files of the machine; skipped where none can be made."""
    if os.geteuid() != 0:
        pytest.skip("a PID namespace needs root")
    words = ["unshare", "--pid", "--fork", "--mount-proc", "true"]
    if shutil.which("unshare") is None or subprocess.run(words, capture_output=True, check=False).returncode != 0:
        pytest.skip("namespaces cannot be made here")
    return tmp_path


def scanned(machine: Path, rules: str = "", victim: tuple[str, ...] = ("cat",), **more: object) -> dict[str, Any]:
    """Return what a scan in a machine of its own says, in which ``victim`` runs too."""
    words = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", sys.executable, "-c", OUTER]
    program = victim if victim != ("cat",) else (sys.executable, "-c", "import os; os.write(1, b'x'); os.read(0, 1)")
    order = {"rules": rules or eicar(), "paths": [str(machine / "files")], "time_s": 60, "victim": program, **more}
    done = subprocess.run(words, input=json.dumps(order), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def test_a_file_is_found_wherever_it_lies_and_once(machine: Path) -> None:
    (machine / "files" / "a" / "b").mkdir(parents=True)
    (machine / "files" / "a" / "b" / "up\nload").write_bytes(b"before " + TEST_FILE)
    os.link(machine / "files" / "a" / "b" / "up\nload", machine / "files" / "again")
    (machine / "files" / "link").symlink_to("/proc/self/environ")
    os.mkfifo(machine / "files" / "pipe")
    with (machine / "files" / "large").open("wb") as file:
        file.truncate(2**33)
        file.seek(2**32 + (4 << 20) - 30)
        file.write(TEST_FILE)
    found = scanned(machine)
    assert (found["state"], found["reason"]) == ("found", "")
    where = sorted((one["where"], one["path"].rpartition("files/")[2], one["offset"]) for one in found["findings"])
    assert where in (
        [("file", "a/b/up\\x0aload", 7), ("file", "large", 2**32 + (4 << 20) - 30)],
        [("file", "again", 7), ("file", "large", 2**32 + (4 << 20) - 30)],
    )
    assert found["processes"] == 1


def test_a_machine_without_it_is_clean(machine: Path) -> None:
    (machine / "files").mkdir()
    (machine / "files" / "some").write_bytes(b"thing")
    found = scanned(machine)
    assert (found["state"], found["findings"], found["files"] >= 2) == ("clean", [], True)
    assert scanned(machine, paths=[str(machine / "nowhere")])["state"] == "clean"


def test_what_only_memory_has_is_found_with_its_process(machine: Path) -> None:
    (machine / "files").mkdir()
    hidden = bytes(byte ^ 1 for byte in HIDDEN).hex()
    rules = f'rule hidden {{ strings: $a = "{HIDDEN.decode()}" condition: $a }}'
    victim = (sys.executable, "-c", VICTIM, hidden)
    found = scanned(machine, rules, victim)
    assert found["state"] == "found"
    assert {(one["where"], one["pid"], one["rule"]) for one in found["findings"]} == {
        ("memory", found["pid"], "hidden")
    }
    assert scanned(machine, rules, victim, memory=False)["state"] == "clean"


def test_a_program_that_was_deleted_while_it_runs_is_found(machine: Path) -> None:
    (machine / "files").mkdir()
    program = machine / "files" / "program"
    shutil.copy(Path(shutil.which("cat") or "/bin/cat").resolve(), program)
    with program.open("ab") as file:
        file.write(TEST_FILE)
    script = textwrap.dedent(f"""
        import os, subprocess, sys
        child = subprocess.Popen([{str(program)!r}], stdin=subprocess.PIPE)
        os.unlink({str(program)!r})
        os.write(1, b"x")
        os.read(0, 1)
    """)
    found = scanned(machine, victim=(sys.executable, "-c", script))
    assert [(one["where"], one["name"], "(deleted)" in one["path"]) for one in found["findings"]] == [
        ("process", "program", True)
    ]


def test_every_process_that_runs_what_is_found_is_named(machine: Path) -> None:
    (machine / "files").mkdir()
    program = machine / "files" / "program"
    shutil.copy(Path(shutil.which("cat") or "/bin/cat").resolve(), program)
    with program.open("ab") as file:
        file.write(TEST_FILE)
    script = textwrap.dedent(f"""
        import os, subprocess
        children = [subprocess.Popen([{str(program)!r}], stdin=subprocess.PIPE) for _ in range(3)]
        os.write(1, b"x")
        os.read(0, 1)
    """)
    found = scanned(machine, victim=(sys.executable, "-c", script))
    assert [one["where"] for one in found["findings"]] == ["process"] * 3
    assert len({one["pid"] for one in found["findings"]}) == 3
    assert {(one["path"], one["offset"]) for one in found["findings"]} == {(str(program), program.stat().st_size - 68)}


def test_a_library_that_was_deleted_while_it_is_used_is_found(machine: Path) -> None:
    (machine / "files").mkdir()
    (machine / "files" / "library").write_bytes(TEST_FILE.ljust(8192, b"x"))
    script = textwrap.dedent(f"""
        import mmap, os
        with open({str(machine / "files" / "library")!r}, "rb") as file:
            kept = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ, flags=mmap.MAP_PRIVATE)
        kept[0], kept[5000]
        os.unlink({str(machine / "files" / "library")!r})
        os.write(1, b"x")
        os.read(0, 1)
    """)
    found = scanned(machine, victim=(sys.executable, "-c", script))
    assert [(one["where"], one["pid"]) for one in found["findings"]] == [("memory", found["pid"])]


def test_a_command_line_is_looked_at(machine: Path) -> None:
    (machine / "files").mkdir()
    script = "import os; os.write(1, b'x'); os.read(0, 1)"
    rules = 'rule word { strings: $a = "--a-word-of-evil" condition: $a }'
    found = scanned(machine, rules, (sys.executable, "-c", script, "--a-word-of-evil"), memory=False)
    assert [(one["where"], one["pid"]) for one in found["findings"]] == [("process", found["pid"])]


def test_rules_that_explode_end_in_time_and_are_unknown(machine: Path) -> None:
    (machine / "files").mkdir()
    (machine / "files" / "large").write_bytes(b"x" * (8 << 20))
    rules = (
        "rule a { condition: filesize > 5MB and for all i in (1..filesize - 1) :"
        " (for all j in (1..filesize - 1) : (uint8(i) + uint8(j) >= 0)) }"
    )
    found = scanned(machine, rules, time_s=1)
    assert (found["state"], found["reason"]) == ("unknown", "TimedOut")
    assert found["idle"] >= 2


@pytest.mark.parametrize(
    ("rules", "word"),
    [("rule a {", "syntax"), ('import "cuckoo" rule a { condition: true }', "cuckoo"), ("x", "syntax")],
)
def test_rules_that_are_refused_make_nothing_clean(machine: Path, rules: str, word: str) -> None:
    (machine / "files").mkdir()
    found = scanned(machine, rules)
    assert (found["state"], found["reason"]) == ("unknown", "RulesRefused")
    assert word in found["message"]


def test_without_a_scanner_nothing_is_known(machine: Path) -> None:
    script = (
        "import sys; sys.modules['yara_x'] = None\n"
        "from pileus.node import scanner\n"
        "print(scanner._scan({'rules': 'rule a { condition: true }', 'paths': [], 'time_s': 1}))"
    )
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert "NoScanner" in said
    assert "no scanner here" in said


@pytest.mark.parametrize(
    ("said", "reason", "state"),
    [
        (b"", "Crashed", "unknown"),
        (b'{"finding": {"rule": "a"}}\n', "Crashed", "found"),
        (b'{"ended": {"reason": "", "message": ""', "TimedOut", "unknown"),
        (b'{"ended": {"reason": "", "message": ""}}\n', "Crashed", "clean"),
    ],
)
def test_only_a_scan_that_came_to_its_end_is_clean(said: bytes, reason: str, state: str) -> None:
    found = _result(said, reason, -9)
    assert found["left_out"] == 0
    assert found["state"] == state
    assert bool(found["reason"]) == (state != "clean")


def test_an_answer_has_an_end() -> None:
    line = json.dumps({"finding": {"rule": "a", "path": "x" * 1000}}).encode() + b"\n"
    found = _result(line * 1000 + b'{"ended": {"reason": "", "message": "", "left_out": 5}}\n', "Crashed", 0)
    assert len(json.dumps(found)) < 256 << 10
    assert len(found["findings"]) + found["left_out"] == 1005


@pytest.mark.parametrize(
    ("rules", "paths", "time_s"),
    [
        ("", ["/"], 1),
        ("x", ["relative"], 1),
        ("x", ["/a\0"], 1),
        ("x", ["/"] * 65, 1),
        ("x", ["/"], 1e9),
        ("x", "/", 1),
    ],
)
def test_orders_that_cannot_be_are_refused(rules: str, paths: list[str], time_s: float) -> None:
    with pytest.raises(ScanRefused):
        scan_inside(rules, paths, time_s=time_s)


def test_both_scanners_take_the_same_modules() -> None:
    from pileus.node import scanner

    assert scanner.MODULES == MODULES


ROLE = """
import json, os, sys
from pathlib import Path
from pileus.node.applications.role import Applications
from pileus.node.role import RoleRefused
root, rules = Path(sys.argv[1]), sys.argv[2]
role = Applications(root)
try:
    asked = {"do": "scan", "rules": rules, "paths": [str(root / "files")], "time_s": 60}
    print(role.request("1", json.dumps(asked).encode(), False).decode())
    role.request("2", b'{"do": "scan"}', False)
except RoleRefused as refused:
    print(json.dumps({"refused": refused.message}))
role.close()
"""


def test_the_role_of_applications_scans_when_it_is_asked(machine: Path) -> None:
    (machine / "files").mkdir()
    (machine / "files" / "upload").write_bytes(TEST_FILE)
    words = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", sys.executable, "-c", ROLE, str(machine)]
    # The rules are in this command line, which belongs to the role: it does not look at itself.
    done = subprocess.run([*words, eicar()], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    answer, refused = map(json.loads, done.stdout.splitlines())
    assert (answer["state"], [one["path"] for one in answer["findings"]]) == ("found", [f"{machine}/files/upload"])
    assert "YARA" in refused["refused"]
