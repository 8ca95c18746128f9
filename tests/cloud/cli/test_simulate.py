"""``pileus simulate policy``: over a file that was pulled, with policies that are there or only drafted; nothing is written."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from pileus.cli import contexts
from pileus.cli.contexts import Context
from pileus.cli.failure import OK, REFUSED, USAGE
from pileus.monitor.state.types import StateExecution, StateObserved

if TYPE_CHECKING:
    from tests.cloud.cli.cli_world import Cloud
    from tests.cloud.cli.conftest import Run
    from tests.cloud.cli.test_history_pull import Trial
else:
    from test_history_pull import Trial

    Cloud = Run = Any

DRAFT = """
kind: monitor.policy
name: {name}
desired:
  monitor: of-trial
  when: [{{field: execution.state, value: {value}}}]
  do: [{{do: restart}}]
"""


def state(word: Any, vm: str = "vm-1", boots: int = 1) -> dict[str, Any]:
    """Return the body of an entry, as a watcher notes it."""
    row = StateObserved(at=1.0, execution=StateExecution(state=word, boots=boots))
    return {"vm": vm, "name": f"name-{vm}", "row": msgspec.to_builtins(row)}


@pytest.fixture
def pulled(cloud: Cloud, pileus: Run, account: str, tmp_path: Path) -> Path:
    """A file with the past of two appliances, of which one stopped and the other hung and is gone."""
    trial = Trial(cloud, pileus, account)
    trial.note(state("running"), state("running", "vm-2"))
    trial.note(state("stopped"))
    trial.note(state("hung", "vm-2"))
    trial.note({"vm": "vm-2", "name": "name-vm-2"}, kind="gone")
    assert trial.pull(tmp_path / "states.db").code == OK
    return tmp_path / "states.db"


def _draft(folder: Path, name: str = "revive", value: str = "stopped") -> str:
    (folder / f"{name}.yaml").write_text(DRAFT.format(name=name, value=value))
    return str(folder / f"{name}.yaml")


def test_it_says_what_a_policy_would_have_done_and_writes_nothing(
    pileus: Run, account: str, pulled: Path, tmp_path: Path
) -> None:
    flags = ("--monitor", "of-trial", "--field", "execution.state", "--value", "stopped", "--do", "restart")
    assert pileus("create", "policy", "revive", "--account", account, *flags).code == OK
    before = pulled.read_bytes()
    ran = pileus("simulate", "policy", "revive", "--account", account, "--from", str(pulled))
    assert (ran.code, ran.err) == (OK, "")
    header, action, states, actions = ran.out.splitlines()
    assert header.split() == ["TIME", "APPLIANCE", "POLICY", "SUBJECT", "DO", "RESULT", "CAUSE"]
    assert action.split()[1:6] == ["name-vm-1", "revive", "-", "restart", "done"]
    assert 'execution.state is "stopped" (it is "stopped")' in action
    assert states.startswith("4 states of 2 appliances within ")
    assert actions == "1 action: 1 at once, 0 later, 0 never; held: none"
    assert pulled.read_bytes() == before
    assert pileus("get", "action", "--account", account, "-o", "json").json["items"] == []


def test_drafts_are_simulated_together_for_whoever_may_only_read(
    cloud: Cloud, pileus: Run, account: str, pulled: Path, tmp_path: Path
) -> None:
    assert pileus("create", "user", "ann", "--account", account, "--role", "reader").code == OK
    key = pileus("create", "key", "ann-key", "--account", account, "--user", "ann", "-o", "json").json["secret"]
    contexts.put("ann", Context(server=cloud.operator.server, ca=cloud.operator.ca, key=key, account=account))
    files = ("-f", _draft(tmp_path), "-f", _draft(tmp_path, "unhang", "hung"))
    ran = pileus("--context", "ann", "simulate", "policy", *files, "--from", str(pulled), "-o", "json")
    assert ran.code == OK, ran.err
    told = ran.json
    assert [(each["policy"], each["name"]) for each in told["actions"]] == [
        ("revive", "name-vm-1"),
        ("unhang", "name-vm-2"),
    ]
    assert all(each["done_at"] == each["at"] for each in told["actions"])
    assert told["held"] == {"actions_per_hour": 0, "fleet_percent": 0}
    assert (told["states"], told["appliances"], told["unwritten"]) == (4, 2, 0)


def test_what_the_monitors_caps_hold_is_said(pileus: Run, account: str, pulled: Path, tmp_path: Path) -> None:
    assert pileus("patch", "monitor", "of-trial", "--account", account, "--fleet-percent", "0").code == OK
    ran = pileus("simulate", "policy", "-f", _draft(tmp_path), "--account", account, "--from", str(pulled))
    assert ran.code == OK, ran.err
    assert "held: still held at the end" in ran.out
    assert ran.out.endswith("1 action: 0 at once, 0 later, 1 never; held: 1 by fleet_percent\n")


def test_what_cannot_be_simulated_is_said(
    cloud: Cloud, pileus: Run, account: str, pulled: Path, tmp_path: Path
) -> None:
    other = Trial(cloud, pileus, account, "other")
    assert other.pull(tmp_path / "other.db").code == OK
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(DRAFT.format(name="wrong", value="broken"))
    flags = ("--account", account, "--from")
    draft = ("-f", _draft(tmp_path))
    (tmp_path / "text.db").write_text("no database, " * 100)
    cases: list[tuple[tuple[str, ...], int, str]] = [
        ((*flags, str(pulled)), USAGE, "name a policy, or give one with --file"),
        (("-f", str(wrong), *flags, str(pulled)), REFUSED, "execution.state is never 'broken'"),
        ((*draft, *flags, str(tmp_path / "none.db")), USAGE, "there is no file"),
        ((*draft, *flags, str(tmp_path / "text.db")), REFUSED, "is no SQLite database"),
        ((*draft, *flags, str(tmp_path / "other.db")), REFUSED, "has the past of monitor of-other"),
        ((*draft, *flags, str(pulled), "--since", "yesterday"), REFUSED, "'yesterday' is no time"),
        ((*draft, *flags, str(pulled), "--since", "2999-01-01T00:00:00Z"), REFUSED, "knows of no state since 2999"),
        ((*draft, *flags, "postgresql://user:secret@localhost:1/d"), USAGE, "cannot read localhost:1/d: "),
    ]
    for arguments, code, words in cases:
        ran = pileus("simulate", "policy", *arguments)
        assert (ran.code, words in ran.err) == (code, True), (arguments, ran.err)
        assert "secret" not in ran.err
