"""Disks of real VMs are scanned by their host: what lies in files, and what was deleted or never was a file, is found."""

from __future__ import annotations

import random
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.contract.scan.test_scan_clamd import real

from pileus.scan import rules

if TYPE_CHECKING:
    from tests.vm import realcloud
    from tests.vm.realcloud import SplitCloud, pids_naming, until
    from tests.vm.terminal import Terminal
else:
    import realcloud
    from realcloud import SplitCloud, pids_naming, until
    from terminal import Terminal

pytestmark = pytest.mark.long

TEST_FILE = "".join(rules._EICAR_PARTS)
ALPHABET = "A-Z N-ZA-M"
OVER = ("clean", "found", "unknown")
SCAN_LIMIT_S = 180.0
SLOW = "rule slow { condition: for all i in (0..filesize) : (uint8(i) >= 0 or i < 0) }"
"""Looks at each byte by itself, and matches nothing that is shown as a piece of a disk."""
FILL_MIB = 48


def turned(text: str) -> str:
    """Return the text in the alphabet that ``tr`` turns back."""
    return text.translate({ord(one): chr((ord(one) - 65 + 13) % 26 + 65) for one in "ABCDEFGHIJKLMNOPQRSTUVWXYZ"})


def infected(folder: Path) -> Path:
    """Return a disk of ext4: the test file in a folder, once more in a file that was deleted, and something else."""
    tree = folder / "tree"
    (tree / "srv").mkdir(parents=True)
    (tree / "srv" / "letter").write_text(TEST_FILE)
    (tree / "deleted").write_text("x" * 100 + TEST_FILE)
    (tree / "other").write_bytes(random.Random(6).randbytes(FILL_MIB << 20))
    path = folder / "infected.raw"
    for words in (
        ["mke2fs", "-q", "-F", "-t", "ext4", "-d", str(tree), str(path), f"{FILL_MIB + 32}M"],
        ["debugfs", "-w", "-R", "rm /deleted", str(path)],
    ):
        subprocess.run(words, check=True, capture_output=True)
    return path


@pytest.fixture(scope="module")
def cloud() -> Iterator[SplitCloud]:
    """A cloud with a VM that has such a disk, and one that has none."""
    with realcloud.split() as running:
        running.pileus("patch", "zone", "one", "--router", "none")
        running.pileus("create", "image", "infected", "--account", "acme", "--format", "raw", "--file",
                       str(infected(running.folder)), "--wait", "--timeout", "60", timeout_s=70)  # fmt: skip
        running.pileus("create", "volume", "data", "--account", "acme", "--size-gib", "1", "--image", "infected")
        running.pileus("create", "vm", "bad", "--account", "acme", "--volume", "data")
        running.pileus("create", "vm", "good", "--account", "acme")
        running.pileus("wait", "vm", "bad", "good", "--account", "acme", "--timeout", "120", timeout_s=130)
        running.pileus("create", "monitor", "watch", "--account", "acme", "--wait", "--timeout", "60", timeout_s=70)
        yield running


def scan_of(cloud: SplitCloud, vm: str, signature: str) -> dict[str, Any]:
    """Return what the newest scan of a VM says; nothing while there is none."""
    id = cloud.vm(vm)["id"]
    scans = cloud.json("get", "scan", "--account", "acme")["items"]
    found = [one for one in scans if one["assigned"]["vm"] == id and one["assigned"]["signature_name"] == signature]
    return dict(found[-1]["observed"]) if found else {}


def over(cloud: SplitCloud, vm: str, signature: str) -> dict[str, Any]:
    """Return what a scan says at its end."""

    def look() -> dict[str, Any] | None:
        said = scan_of(cloud, vm, signature)
        return said if said.get("state") in OVER else None

    return until(f"the scan of {vm} is over", look, SCAN_LIMIT_S)


def remains(cloud: SplitCloud) -> list[str]:
    """Return what there is of scans: copies, folders, processes."""
    scans = cloud.paths.state / "scans"
    files = [*(cloud.paths.pool / "volumes").glob("*.tmp"), *scans.iterdir()]
    return [str(file) for file in files] + [str(pid) for pid in pids_naming(str(scans))]


def nothing_remains(cloud: SplitCloud) -> None:
    until("nothing remains of scans", lambda: not remains(cloud))
    assert cloud.json("get", "look", "--account", "acme")["items"] == []


def test_files_and_what_is_in_none_are_found_while_the_vm_runs_on(cloud: SplitCloud) -> None:
    cloud.until_printed("bad", r"PILEUS-READY (\S+) [0-9.]+$")
    with Terminal(cloud, "bad") as bad:
        # The guest writes it where no file is: the file system takes up a part of the disk only.
        bad.shell(f"printf '%s' '{turned(TEST_FILE)}' | tr {ALPHABET} | dd of=/dev/vdb bs=512 seek=1900000 "
                  "conv=notrunc,fsync 2>/dev/null")  # fmt: skip
    before = cloud.vm("bad")["observed"]
    cloud.pileus("create", "signature", "eicar", "--account", "acme", "--monitor", "watch", "--every-s", "0",
                 "--scan-serial", "1")  # fmt: skip
    said = over(cloud, "bad", "eicar")
    assert said["state"] == "found", said
    assert said["findings"][0]["path"] == "/srv/letter"
    assert said["findings"][0]["volume"] == "data"
    elsewhere = sorted(one["offset"] for one in said["findings"] if one["where"] == "disk")
    assert len(elsewhere) == 3, said
    assert elsewhere[-1] == 1_900_000 * 512
    assert any(offset % 512 == 100 for offset in elsewhere), "the deleted file was not found"
    assert [disk["state"] for disk in said["disks"]] == ["clean", "found"]
    assert over(cloud, "good", "eicar")["state"] == "clean"
    after = cloud.vm("bad")["observed"]
    assert (after["power"], after["boots"]) == ("running", before["boots"])
    nothing_remains(cloud)


def test_a_vm_that_is_paused_or_stopped_is_looked_at_as_well(cloud: SplitCloud) -> None:
    for serial, verb in ((2, "pause"), (3, "stop")):
        cloud.pileus(verb, "vm", "bad", "--account", "acme", "--wait", "--timeout", "90", timeout_s=100)
        cloud.pileus("patch", "signature", "eicar", "--account", "acme", "--scan-serial", str(serial))
        until("the scan begins anew", lambda: scan_of(cloud, "bad", "eicar").get("state") not in OVER)
        said = over(cloud, "bad", "eicar")
        assert (said["state"], said["findings"][0]["path"]) == ("found", "/srv/letter"), said
        nothing_remains(cloud)
    cloud.pileus("start", "vm", "bad", "--account", "acme", "--wait", "--timeout", "120", timeout_s=130)


def test_an_agent_that_is_killed_meanwhile_leaves_nothing_and_the_next_one_ends_it(cloud: SplitCloud) -> None:
    cloud.pileus("create", "signature", "slow", "--account", "acme", "--monitor", "watch", "--every-s", "0",
                 "--scan-serial", "1", "--rules", cloud.file("slow.yar", SLOW))  # fmt: skip
    copies = until("a copy is read", lambda: is_reading(cloud))
    machines = cloud.qemus()
    ready = cloud.agent_ready_lines()
    cloud.kill(cloud.agent)
    until("its scanner died with it", lambda: not pids_naming(str(cloud.paths.state / "scans")))
    cloud.start_agent()
    cloud.until_agent(ready)
    assert not any(copy.exists() for copy in copies)
    for vm in ("bad", "good"):
        assert over(cloud, vm, "slow")["state"] in OVER
    assert cloud.qemus() == machines
    nothing_remains(cloud)


def test_what_the_hosts_clamav_knows_is_found(cloud: SplitCloud, tmp_path: Path) -> None:
    cloud.pileus("create", "signature", "clam", "--account", "acme", "--monitor", "watch", "--every-s", "0",
                 "--scan-serial", "1", "--engine", "clamav")  # fmt: skip
    said = over(cloud, "bad", "clam")
    assert said["state"] == "unknown"
    assert "clamav-daemon" in said["message"]
    for socket in real(tmp_path, TEST_FILE.encode()):
        cloud.kill(cloud.agent)
        ready = cloud.agent_ready_lines()
        cloud.start_agent("--clamd", str(socket))
        cloud.until_agent(ready)
        until("the host says what it has", lambda: cloud.json("get", "host", "one")["observed"]["clamd"])
        cloud.pileus("patch", "signature", "clam", "--account", "acme", "--scan-serial", "2")
        until("the scan begins anew", lambda: scan_of(cloud, "bad", "clam").get("state") != "unknown")
        said = over(cloud, "bad", "clam")
        assert said["state"] == "found", said
        assert [(one["rule"], one["path"]) for one in said["findings"]] == [("Test.Text.UNOFFICIAL", "/srv/letter")]
        assert over(cloud, "good", "clam")["state"] == "clean"
        nothing_remains(cloud)


def is_reading(cloud: SplitCloud) -> list[Path]:
    """Return the copies that there are while a process reads one."""
    copies = list((cloud.paths.pool / "volumes").glob("*.tmp"))
    return copies if pids_naming(str(cloud.paths.state / "scans")) else []
