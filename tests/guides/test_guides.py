"""The guides do what they say: every command exists, and run on a real cloud prints what the guide shows."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click
import pytest
from tools.code import ROOT

from pileus.cli.main import cli

if TYPE_CHECKING:
    from tests.guides.console import Command, Guide, matches, read
else:
    from console import Command, Guide, matches, read

GUIDES = sorted((ROOT / "docs" / "guides").glob("*.md"))
LONG = {
    "a-firewall-manager",
    "bad-input",
    "balancing",
    "bring-licences-in",
    "feed-suricata",
    "foreign-appliance",
    "first-network",
    "keep-a-service-alive",
    "lab",
    "ovf",
    "reach-a-vm",
    "scan-a-fleet",
    "ship-history",
    "site-vpn",
    "what-mirroring-costs",
    "when-a-host-dies",
    "who-talks-to-my-server",
}
"""What they show is also shown by tests/vm/test_fleet.py, test_appliance.py, test_networks.py, test_sites.py,
test_bad_input.py, test_lab.py, test_ovf.py, test_monitor.py and test_decapsulator.py, by tests/contract/monitor_history and
tests/cloud/monitor.
"""
PAGES = [ROOT / "README.md", *GUIDES, *sorted((ROOT / "docs" / "concepts").glob("*.md"))]

LIMIT_S = 120
"""A VM without acceleration on a busy machine boots in 10 s; nothing in a guide takes longer than three of those."""

SETTLE_S = 40
"""How long what is only read may take to become what the guide shows: a script in a VM that has just started."""

PROGRAMS = ("qemu-system-x86_64", "qemu-img", "ovs-vswitchd", "xorriso", "ssh")


def parse(command: Command) -> None:
    """Raises: UsageError when ``pileus`` has no such command or flag."""
    words = command.words[1:]
    group: click.Command = cli
    context = cli.make_context("pileus", words)
    while isinstance(group, click.Group):
        rest = [*context._protected_args, *context.args]
        if not rest:
            return
        name, below, left = group.resolve_command(context, rest)
        assert below is not None
        group, context = below, below.make_context(name, left, parent=context)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_command_of_a_page_exists(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    guide = read(page)
    monkeypatch.chdir(tmp_path)
    for name, text in guide.files.items():
        Path(name).write_text(text)
    for command in guide.commands:
        if command.words[0] == "pileus" and command.succeeds and "--help" not in command.words:
            try:
                parse(command)
            except (click.FileError, click.BadParameter):
                # A file that another command of the guide makes.
                continue
            except click.UsageError as error:
                if "No such file" in error.format_message():
                    continue
                pytest.fail(f"{page.name}:{command.line}: {command.text}: {error.format_message()}")


@pytest.fixture
def environment(page: Path, tmp_path: Path) -> Iterator[Mapping[str, str]]:
    """A cloud on this machine, as ``pileus up`` makes it, and the environment in which ``pileus`` uses it.

    A guide that starts a lab gets no other cloud.
    """
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if missing:
        pytest.skip(f"a real cloud needs {', '.join(missing)}")
    if os.geteuid() != 0:
        pytest.skip("a real cloud needs root")
    tools = str(Path(sys.executable).parent)
    made = os.environ | {
        "PATH": f"{tools}:{os.environ['PATH']}",
        "PILEUS_CONFIG": str(tmp_path / "config.json"),
        "PILEUS_LAB": str(tmp_path / "lab"),
        "NO_COLOR": "1",
    }
    if any(command.words[:2] == ["pileus", "lab"] for command in read(page).commands):
        try:
            yield made
        finally:
            subprocess.run(["pileus", "lab", "stop", "--delete"], env=made, check=True, timeout=LIMIT_S)
        return
    state = tmp_path / "cloud"
    up = ["pileus", "up", "--detach", "--port", "0", "--accelerator", "tcg", "--data", str(state)]
    try:
        subprocess.run(up, env=made, check=True, stdin=subprocess.DEVNULL, timeout=LIMIT_S)
        yield made
    finally:
        subprocess.run(["pileus", "down", "--data", state], env=made, check=True, timeout=LIMIT_S)


def run(command: Command, folder: Path, environment: Mapping[str, str]) -> tuple[bool, str]:
    """Return whether the command succeeded, and everything it printed."""
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command.text],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=LIMIT_S,
        check=False,
    )
    return done.returncode == 0, done.stdout.decode(errors="replace")


def is_as_shown(command: Command, folder: Path, environment: Mapping[str, str]) -> tuple[bool, str]:
    """Run a command, again while it may still come to what is expected, and return the verdict and its output."""
    end = time.monotonic() + SETTLE_S
    while True:
        succeeded, printed = run(command, folder, environment)
        good = succeeded == command.succeeds and matches(command.expected, printed)
        if good or not command.reads or time.monotonic() > end:
            return good, printed
        time.sleep(0.3)


@pytest.mark.parametrize(
    "page", [pytest.param(page, id=page.stem, marks=[pytest.mark.long] * (page.stem in LONG)) for page in GUIDES]
)
def test_a_guide_run_from_top_to_bottom_prints_what_it_shows(
    page: Path, tmp_path: Path, environment: Mapping[str, str]
) -> None:
    guide = read(page)
    folder = tmp_path / "reader"
    folder.mkdir()
    for name, text in guide.files.items():
        (folder / name).write_text(text)
    for command in guide.commands:
        good, printed = is_as_shown(command, folder, environment)
        shown = "\n".join(command.expected)
        assert good, f"{page.name}:{command.line}: $ {command.text}\nthe guide shows:\n{shown}\nit printed:\n{printed}"


def test_a_guide_is_read_into_commands_files_and_output(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("text\n```sh start.sh\necho x\n```\n```console\n$ pileus get vm\nNAME …\n…\n$ ls | wc\n```\n")
    assert read(page) == Guide(
        page,
        (Command(6, "pileus get vm", ("NAME …", "…")), Command(9, "ls | wc", ())),
        {"start.sh": "echo x\n"},
    )


@pytest.mark.parametrize(
    ("expected", "printed", "good"),
    [
        (("a … c",), "a b   c\n", True),
        (("a", "…", "z"), "a\nb\n\nc\nz\n", True),
        (("a",), "a\nb\n", False),
        (("a", "…"), "a\n", True),
        ((), "anything\n", True),
        (("…", "b"), "b\n", True),
        (("error: x",), "error: xy\n", False),
    ],
)
def test_output_is_compared_by_line_with_wildcards(expected: tuple[str, ...], printed: str, good: bool) -> None:
    assert matches(expected, printed) is good
