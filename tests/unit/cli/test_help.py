"""What the command says without a server: help, explanations, usage errors."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from pileus.cli.commands.explain import WIDTH, reasons_of
from pileus.cli.failure import EXIT_CODES, NOT_SIGNED_IN, USAGE
from pileus.cli.fields import walk
from pileus.cli.main import _FLAT, main
from pileus.kernel.kind import Kind
from pileus.registry import KINDS


@pytest.fixture(autouse=True)
def _no_context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PILEUS_CONFIG", str(tmp_path / "config.json"))
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)


def test_the_help_lists_every_verb_and_every_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert all(word in text for word in _FLAT)
    assert all(f"{code} {meaning}" in text for code, meaning in EXIT_CODES)


@pytest.mark.parametrize("word", sorted(_FLAT))
def test_every_verb_that_is_there_has_help(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    code = main([word, "--help"])
    captured = capsys.readouterr()
    if code == USAGE and f'no command "{word}"' in captured.err:
        pytest.skip(f"{word} is not in this program yet")
    assert code == 0
    assert "Usage: pileus" in captured.out


@pytest.mark.parametrize("kind", list(KINDS), ids=lambda kind: kind.short)
def test_every_field_of_every_kind_is_explained(kind: Kind, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", kind.name]) == 0
    whole = capsys.readouterr().out
    assert kind.summary in " ".join(whole.split())
    assert max(map(len, whole.splitlines())) <= WIDTH
    assert all(reason in whole for reason, _ in reasons_of(kind))
    for section in ("desired", "assigned", "observed"):
        for path, field in walk(getattr(kind, section)):
            assert main(["explain", ".".join((kind.short, section, *path))]) == 0
            text = " ".join(capsys.readouterr().out.split())
            assert field.description in text


def test_an_explanation_has_unit_limits_default_and_flag(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "vm.shutdown_timeout_s"]) == 0
    text = capsys.readouterr().out
    for line in ("Unit       seconds", "Default    30", "Limits     0 to 3600", "Flag       --shutdown-timeout-s"):
        assert line in text
    assert main(["explain", "offering.throughput_limit_kib_s"]) == 0
    assert "Unit       KiB per second" in capsys.readouterr().out


def test_a_kind_is_known_in_any_case(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "VM"]) == 0
    upper = capsys.readouterr().out
    assert main(["explain", "vm"]) == 0
    assert upper == capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gett"], 'there is no command "gett"; did you mean get'),
        (["frobnicate"], "`pileus --help` lists the commands"),
        (["get", "vmm"], 'there is no kind "vmm"; did you mean vm'),
        (["get", "vm", "-o", "xml"], "-o takes table"),
        (["ls", "vm"], 'there is no command "ls"; did you mean get?'),
        (["list", "vm"], "did you mean get?"),
        (["show", "vm", "web"], "did you mean describe?"),
        (["start", "ACCOUNT", "acme"], "only a vm can start, not an account"),
        (["get", "vm", "-l", "novalue"], "--label takes KEY=VALUE"),
        (["get", "vm", "-l", "a=b,c"], "--label takes KEY=VALUE, not 'c'"),
        (["get", "vm", "-l", "a=b,"], "--label takes KEY=VALUE"),
        (["get", "vm", "-l", "a=b\n"], "a label's value is at most 255 printable characters"),
        (["create", "vm", "web", "--label", f"{'k' * 64}=b"], "a label's key is at most 63 printable characters"),
        (["patch", "vm", "web", "--label", "a\x07=b"], "a label's key is at most 63 printable characters"),
        (["create", "volume", "v", "--size-gib", "1", "--throughput-limit-kib-s", "2MiB/s"],
         "takes KiB per second as a whole number; for 2MiB/s say 2048"),
        (["get", "vm", "--limit", "0"], "--limit"),
        (["create", "vm", "web", "--imgae", "x"], "no flag --imgae; did you mean --image"),
        (["create", "policy", "p", "--monitor", "m", "--value", "hung", "--do", "restart"], "--field is missing: Field of"),
        (["create", "policy", "p", "--monitor", "m", "--labels", "a=b"], """takes JSON such as '{"key": "value"}'"""),
        (["patch", "action", "a", "--approved", "maybe"], "--approved takes one of no, yes, not 'maybe'"),
        (["create", "vm"], "missing argument 'NAME'"),
        (["create", "port", "p"], "ports are made by the cloud itself"),
        (["create", "image", "i", "--kernel", "k"], "need the disk too"),
        (["create", "image", "i", "--file", "/nowhere/disk"], "cannot read /nowhere/disk"),
        (["patch", "vm", "web"], "nothing to change"),
        (["patch", "vm", "web", "--image", "x"], "--image cannot change once the vm is made"),
        (["patch", "vm", "web", "--colour", "x"], "no flag --colour"),
        (["patch", "vm", "web", "--reset", "colour"], "has no field 'colour'"),
        (["explain", "vm.imag"], "did you mean image"),
        (["wait", "vm", "web", "--for", "happy"], "--for takes ready, deleted"),
        (["wait", "vm", "web", "--timeout", "soon"], "--timeout takes seconds"),
        (["start", "network", "default"], "only a vm can start"),
        (["logs", "network", "default"], "only a vm has a log"),
        (["events", "vm"], "events takes KIND and NAME"),
        (["apply", "-f", "/nowhere/file"], "cannot read /nowhere/file"),
        (["login", "--server", "http://x", "--ca", __file__, "--key", "k"], "must be like https://"),
        (["login", "--server", "https://x", "--ca", __file__, "--key", "k"], "not a PEM certificate"),
        (["completion", "ksh"], "ksh"),
    ],
)  # fmt: skip
def test_a_command_line_that_cannot_be_ends_with_2_and_says_why(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == USAGE
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.startswith("error: ")
    assert "Traceback" not in captured.err


@pytest.mark.parametrize("arguments", [["get", "vm"], ["create", "vm", "web"], ["delete", "vm", "web"], ["whoami"]])
def test_without_a_context_a_command_ends_with_7_and_says_how_to_get_one(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == NOT_SIGNED_IN
    assert "pileus up" in capsys.readouterr().err


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_are_printed(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    assert "_PILEUS_COMPLETE" in capsys.readouterr().out
