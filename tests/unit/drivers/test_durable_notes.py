"""What an agent keeps on disk is there after a power cut, its name in the folder too."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from pileus.agent.slice import DiskSlice, Saved
from pileus.drivers.host.notes import FileNotes


def keep_note(folder: Path) -> None:
    FileNotes(folder).put("vm", b"note")


def keep_slice(folder: Path) -> None:
    DiskSlice(folder / "slice").save(Saved(7, {}))


@pytest.mark.parametrize("keep", [keep_note, keep_slice])
def test_the_folder_is_on_the_disk_once_it_names_the_new_file(
    keep: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    durable: list[set[str]] = []
    sync = os.fsync

    def watched(descriptor: int) -> None:
        if Path(f"/proc/self/fd/{descriptor}").resolve() == tmp_path:
            durable.append({file.name for file in tmp_path.iterdir()})
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", watched)
    keep(tmp_path)
    assert durable == [{file.name for file in tmp_path.iterdir()}]
    assert not any(file.suffix == ".tmp" for file in tmp_path.iterdir())
