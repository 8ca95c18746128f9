"""What outlives the agent: maps and links pinned in a bpffs of the host's own, and a note of which program each link runs.

On kernels without TCX a program of traffic control is a classifier instead of a link; its note says where it is.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from pileus.drivers.host.mirror import classifiers
from pileus.drivers.host.mirror.layout import FORMAT, SHAPES, Maps
from pileus.drivers.host.mirror.wanted import Attachment
from pileus.drivers.host.notes import FileNotes
from pileus.node.ebpf import kernel

MNT_DETACH = 2
_libc = ctypes.CDLL(None, use_errno=True)


class Pins:
    """The pins of one host in ``folder``, where a bpffs is mounted as long as there are any; notes lie in ``notes``."""

    def __init__(self, folder: Path, notes: Path) -> None:
        self._folder = folder
        self._notes_folder = notes
        self._notes: FileNotes | None = None
        self._maps: Maps | None = None
        self.has_tcx = True

    def exist(self) -> bool:
        """Return whether anything can be pinned here now."""
        return os.path.ismount(self._folder)

    def maps(self) -> Maps:
        """Return the maps; those that are not there are made. Raises OSError."""
        if self._maps is None:
            self._mount()
            self._maps = Maps(**{name: self._map(name) for name in SHAPES})
        return self._maps

    def is_right(self, name: str, wanted: Attachment) -> bool:
        """Return whether the link runs the program on the device."""
        if self._is_classifier(wanted.kind):
            found = classifiers.digest_of(wanted.device, wanted.attach, name)
            return found == wanted.digest and self._links().get(name) == _note(wanted)
        note = self._links().get(name)
        if note != wanted.digest.encode():
            return False
        with self._link(name) as link:
            return link is not None and kernel.attached_to(link) == wanted.device

    def put(self, name: str, wanted: Attachment) -> None:
        """Let the link run the program on the device; one that runs another there is changed in one step. Raises OSError."""
        is_classifier = self._is_classifier(wanted.kind)
        program = kernel.load(wanted.kind, wanted.code(self.maps()), name, 0 if is_classifier else wanted.attach)
        try:
            if is_classifier:
                self._put_classifier(name, program, wanted)
                return
            self._links().remove(name)
            with self._link(name) as link:
                if link is not None and kernel.attached_to(link) == wanted.device:
                    kernel.replace(link, program)
                else:
                    self._path(name).unlink(missing_ok=True)
                    self._attach(name, program, wanted)
            self._links().put(name, wanted.digest.encode())
        finally:
            os.close(program)

    def drop(self, name: str) -> None:
        """Take the link away; none: nothing."""
        note = self._links().get(name)
        if note is not None and b" " in note:
            _, device, attach = note.split()
            classifiers.drop(int(device), int(attach), name)
        self._path(name).unlink(missing_ok=True)
        self._links().remove(name)

    def links(self) -> list[str]:
        """Return the names of the links that are there."""
        if not self.exist():
            return []
        pinned = {path.name.removeprefix("link-") for path in self._folder.iterdir() if path.name.startswith("link-")}
        notes = self._links()
        return sorted(pinned.union(name for name in notes.ids() if b" " in (notes.get(name) or b"")))

    def close(self) -> None:
        """Let go of the maps; they stay."""
        for name in SHAPES if self._maps else ():
            os.close(getattr(self._maps, name))
        self._maps = None

    def remove(self) -> None:
        """Remove everything: what is pinned ends with its file."""
        self.close()
        while self.exist():
            for path in [*self._folder.glob("link-*"), *self._folder.glob("map-*")]:
                path.unlink()
            if _libc.umount2(os.fsencode(self._folder), MNT_DETACH) != 0:
                code = ctypes.get_errno()
                raise OSError(code, os.strerror(code), str(self._folder))
        with contextlib.suppress(FileNotFoundError):
            self._folder.rmdir()
        self._notes = None
        shutil.rmtree(self._notes_folder, ignore_errors=True)

    def _mount(self) -> None:
        if self.exist():
            return
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if _libc.mount(b"bpf", os.fsencode(self._folder), b"bpf", 0, b"mode=700") != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), str(self._folder))

    def _map(self, name: str) -> int:
        path = self._folder / f"map-{name}-{FORMAT}"
        if path.exists():
            return kernel.open_pinned(path)
        kind, key_bytes, value_bytes, entries = SHAPES[name]
        made = kernel.create_map(kind, key_bytes, value_bytes, entries, name=name)
        kernel.pin(made, path)
        return made

    def _is_classifier(self, kind: int) -> bool:
        return kind == kernel.SCHED_CLS and not self.has_tcx

    def _put_classifier(self, name: str, program: int, wanted: Attachment) -> None:
        """Note it first: what is noted and not there is made anew, what is there and not noted would stay for ever."""
        before = self._links().get(name)
        if before is not None and before.split()[1:] != _note(wanted).split()[1:]:
            self.drop(name)
        self._links().put(name, _note(wanted))
        classifiers.put(wanted.device, wanted.attach, name, program, wanted.digest)

    def _attach(self, name: str, program: int, wanted: Attachment) -> None:
        link = kernel.attach(program, wanted.device, wanted.attach, wanted.flags)
        try:
            kernel.pin(link, self._path(name))
        finally:
            os.close(link)

    @contextlib.contextmanager
    def _link(self, name: str) -> Iterator[int | None]:
        path = self._path(name)
        if not path.exists():
            yield None
            return
        link = kernel.open_pinned(path)
        try:
            yield link
        finally:
            os.close(link)

    def _path(self, name: str) -> Path:
        return self._folder / f"link-{name}"

    def _links(self) -> FileNotes:
        if self._notes is None:
            self._notes = FileNotes(self._notes_folder)
        return self._notes


def _note(wanted: Attachment) -> bytes:
    """Return what is noted of a classifier: its program, and where it is."""
    return f"{wanted.digest} {wanted.device} {wanted.attach}".encode()
