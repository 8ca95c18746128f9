"""What describe shows of a resource, and what it leaves out."""

from __future__ import annotations

from typing import Any

import pytest

from pileus.cli.commands.delete import question
from pileus.cli.commands.describe import _Sheet, next_steps
from pileus.cli.failure import NOT_FOUND, Failure
from pileus.cli.waiting import is_refused
from pileus.kernel.clock import system_clock
from pileus.registry import KINDS

VM = "019a3c4e-0000-7000-8000-000000000001"
ACCOUNT = "019a3c4e-0000-7000-8000-000000000002"


class Server:
    """Stands in for session and client: it knows one VM, and nothing else."""

    client: Any = property(lambda self: self)

    def get(self, path: str, query: Any = ()) -> Any:
        """Answer a list of VMs. Raises: Failure for all else."""
        if path == "/v1/compute.vm":
            return {"items": [{"id": VM, "name": "web"}] if ("id", VM) in list(query) else []}
        raise Failure("there is none", exit_code=NOT_FOUND)


def sheet(kind: str, **sections: Any) -> list[str]:
    resource: dict[str, Any] = {
        "kind": kind, "id": "019a3c4e-0000-7000-8000-000000000003", "name": "it", "account": "acme",
        "account_id": ACCOUNT, "owner": ACCOUNT, "labels": {}, "generation": 1, "created_at": "", "deleting_at": None,
        "desired": {}, "assigned": {}, "observed": {}, "conditions": [],
    }  # fmt: skip
    server: Any = Server()
    return list(_Sheet(server, KINDS[kind], resource | sections).lines())


def test_what_belongs_to_a_vm_names_it() -> None:
    assert f"Belongs to:  vm web ({VM})" in sheet("network.port", owner=VM)
    assert not any(line.startswith("Belongs to") for line in sheet("network.port"))


def test_zeros_that_nobody_said_are_left_out_and_those_of_limits_say_no_limit() -> None:
    lines = sheet(
        "compute.vm",
        desired={"offering": "tiny", "vcpus": 0, "memory_mib": 0, "disk_gib": 0, "boot_serial": 3, "shutdown_timeout_s": 0},
        assigned={"vcpus": 1, "iops_limit": 0, "throughput_limit_kib_s": 0, "rate_limit_kbps": 8},
        observed={"power": "absent", "vcpus": 0, "failures": 0, "boot_serial": 3, "told": [VM]},
    )  # fmt: skip
    shown = [line.split(maxsplit=1) for line in lines if line.startswith("  ")]
    assert [row for row in shown if row[0] != "pileus"][:-1] == [
        ["offering", "tiny"], ["shutdown_timeout_s", "0"],
        ["vcpus", "1"], ["iops_limit", "no limit"], ["throughput_limit_kib_s", "no limit"], ["rate_limit_kbps", "8"],
        ["power", "absent"], ["failures", "0"],
    ]  # fmt: skip


def test_the_question_about_an_account_says_what_goes_with_it() -> None:
    assert question(KINDS["tenancy.account"], {"name": "acme", "account": ""}) == (
        "All its VMs, volumes and networks go with it. Delete account acme?"
    )
    assert question(KINDS["compute.vm"], {"name": "web", "account": "acme"}) == "Delete vm web of account acme?"


def test_times_are_written_as_such_and_what_a_monitor_owns_names_it() -> None:
    lines = sheet("monitor.state", owner=VM, observed={"at": 1_795_305_405.908, "execution": {"heard_at": 0.0}})
    (at,) = [line for line in lines if line.startswith("  at ")]
    assert at.split()[1] == "2026-11-21T23:56:45.908Z"
    assert not any("heard_at" in line for line in lines)
    assert f"Belongs to:  {VM}" in lines


def test_times_to_come_say_how_soon() -> None:
    lines = sheet("compute.request", assigned={"start": system_clock() + 7201, "end": 0})
    assert [line.split("(")[1] for line in lines if line.startswith("  start")] == ["in 2h)"]
    assert not any(line.startswith("  end") for line in lines)


@pytest.mark.parametrize(
    ("kind", "reason", "observed", "steps"),
    [
        ("monitor.action", "Failed", {"state": "failed"}, []),
        ("monitor.action", "Waiting", {"state": "waiting"}, ["pileus wait action it", "pileus events action it --follow"]),
        ("monitor.policy", "Observed", None, ["pileus patch policy it --mode enforce"]),
        ("compute.request", "Refused", {"phase": "refused"}, []),
        ("infra.host", "NoAgent", None, ["pileus join-token it", "pileus wait host it", "pileus events host it --follow"]),
    ],
)  # fmt: skip
def test_what_is_over_is_not_waited_for_and_what_helps_is_said(
    kind: str, reason: str, observed: Any, steps: list[str]
) -> None:
    status = "true" if reason == "Observed" else "false"
    ready = {"type": "Ready", "status": status, "reason": reason, "message": "", "since": ""}
    resource = {"name": "it", "account": "", "deleting_at": None, "observed": observed, "conditions": [ready]}
    assert [step for step, _ in next_steps(KINDS[kind], resource)] == steps
    assert is_refused(resource) == (not steps)
