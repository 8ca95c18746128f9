"""``pileus ovf inspect`` and ``validate``: what they print, and with which exit code they end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from tests.unit.ovf import styles
from tests.unit.ovf.descriptors import envelope
from tests.unit.ovf.packages import FILES, NAME, TEXT, Signer, file_of, manifest, put, tar, with_manifest


def pileus(*words: str | Path) -> tuple[int, str, str]:
    from click.testing import CliRunner

    from pileus.cli.commands.ovf import command
    from pileus.cli.failure import Failure

    done = CliRunner().invoke(command, [str(word) for word in words])
    failure = done.exception if isinstance(done.exception, Failure) else None
    assert done.exception is None or failure is not None or isinstance(done.exception, SystemExit), done.exception
    return (
        failure.exit_code if failure else done.exit_code,
        done.stdout,
        done.stderr + (failure.message if failure else ""),
    )


def test_a_sound_package_is_said_to_be_sound(tmp_path: Path) -> None:
    (tmp_path / "x.ova").write_bytes(tar(with_manifest(FILES)))
    code, out, messages = pileus("validate", tmp_path / "x.ova")
    assert (code, messages) == (0, "")
    assert out.endswith("is sound; it is what its manifest says, and nobody signed it\n")


def test_each_fault_is_a_line_with_its_place(tmp_path: Path) -> None:
    text = envelope(files=file_of(b"abc", href="../disk1.vmdk"), networks="")
    put(tmp_path, {NAME: text, "x.mf": manifest({NAME: TEXT})})
    code, out, messages = pileus("validate", tmp_path)
    assert (code, out) == (3, "")
    lines = messages.splitlines()
    assert 'x.ovf:4: file "../disk1.vmdk" is refused: it climbs out of the package (climbing-name)' in lines
    assert 'x.ovf:17: network "lan" is not in a NetworkSection (no-network)' in lines
    assert any(line.startswith("x.mf:1: ") and line.endswith("(digest-differs)") for line in lines)
    assert lines[-1].endswith("is refused: 3 errors")


def test_what_is_no_package_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.ova").write_bytes(b"\x1f\x8b" + bytes(2000))
    for verb in ("validate", "inspect"):
        code, _, messages = pileus(verb, tmp_path / "x.ova")
        assert code == 3
        assert "x.ova: this is gzip, not an OVA; unpack it first: gunzip (wrapped)" in messages
        assert pileus(verb, tmp_path / "none.ova")[0] == 3


def test_a_signature_is_judged_by_the_given_certificates(tmp_path: Path) -> None:
    # Valid around today, whatever the day is.
    signer = Signer("maker", days=36_500)
    listed = manifest(FILES)
    (tmp_path / "x.ova").write_bytes(tar(FILES | {"x.mf": listed, "x.cert": signer.sign(listed)}))
    (tmp_path / "root.pem").write_bytes(signer.pem)
    code, out, _ = pileus("validate", tmp_path / "x.ova", "--trust", tmp_path / "root.pem")
    assert code == 0
    assert "signature: trusted, CN=maker" in out
    code, out, messages = pileus("validate", tmp_path / "x.ova")
    assert code == 0
    assert 'warning: signed by unknown: "CN=maker", issued by itself (self-signed) (unknown-signer)' in messages


def test_inspect_shows_what_a_package_has(tmp_path: Path) -> None:
    (tmp_path / "suite.ovf").write_text(styles.COMPOSED)
    code, out, messages = pileus("inspect", tmp_path / "suite.ovf")
    assert (code, messages) == (0, "")
    for words in (
        "Product:    Suite", "Vendor:     Somebody", "Version:    3.1.4", "VM db: 4 CPUs, 2 GiB, bios",
        "starts in stage 0, then 60 s",
        "20 GiB", "You may use it.", "rootsize", "large", "mgmt", "Signature:  none",
    ):  # fmt: skip
        assert words in out, words
    code, out, _ = pileus("inspect", tmp_path / "suite.ovf", "--configuration", "small")
    assert "VM db: 1 CPUs" in out


@pytest.mark.parametrize("form", ["json", "yaml"])
def test_inspect_speaks_to_programs(form: str, tmp_path: Path) -> None:
    (tmp_path / "x.ovf").write_text(styles.VSPHERE)
    code, out, _ = pileus("inspect", tmp_path / "x.ovf", "-o", form)
    assert code == 0
    found = json.loads(out) if form == "json" else yaml.safe_load(out)
    assert found["machines"][0]["memory_mib"] == 8192
    assert found["disks"][0]["file_bytes"] == 1000
    assert {fault["severity"] for fault in found["faults"]} == {"note"}


def test_a_strangers_text_does_not_steer_the_terminal(tmp_path: Path) -> None:
    (tmp_path / "x.ovf").write_text(
        styles.COMPOSED.replace("Suite<", "Sui\u009b31mte<").replace("You may use", "You \u009bmay use")
    )
    code, out, _ = pileus("inspect", tmp_path / "x.ovf")
    assert code == 0
    assert "\u009b" not in out


def test_the_command_loads_only_what_it_needs() -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "pileus.cli.main", "ovf", "--help"],
        capture_output=True, text=True, check=True, env=os.environ | {"NO_COLOR": "1"},
    )  # fmt: skip
    assert "validate" in done.stdout
    for module in ("pileus.ovf", "cryptography", "sqlalchemy", "yaml"):
        assert f" {module}" not in done.stderr, module
