"""``pileus create image NAME --file DISK``: the image and the upload of its parts."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import click

from pileus.cli.client import Json, segment
from pileus.cli.commands.create import finish, post
from pileus.cli.failure import Failure, usage
from pileus.cli.flags import check, desired_of, given_flags
from pileus.cli.progress import Bar
from pileus.cli.sending import send
from pileus.cli.session import Session, root
from pileus.kernel.kind import Kind

CHUNK_BYTES = 1 << 20
PARTS = ("kernel", "initrd", "disk")
"""The disk comes last: with it the image is complete and is inspected."""


def upload_options(function: Any) -> Any:
    """Add --file, --kernel and --initrd."""
    for word, text in (
        ("--initrd", "An initrd to boot with that kernel."),
        ("--kernel", "A kernel to boot directly."),
        ("--file", "The disk to upload; - for standard input. Without --format its first bytes tell."),
    ):
        function = click.option(word, metavar="FILE", default="", help=text)(function)
    return function


def create_image(session: Session, kind: Kind, **options: Any) -> None:
    """Make the image, upload its parts and say so."""
    files = {"disk": options["file"], "kernel": options["kernel"], "initrd": options["initrd"]}
    if (files["kernel"] or files["initrd"]) and not files["disk"]:
        raise usage("--kernel and --initrd need the disk too: --file DISK")
    if [name for name in files.values()].count("-") > 1:
        raise usage("standard input can be only one of --file, --kernel and --initrd")
    desired = desired_of(given_flags())
    within = click.get_current_context().with_resource
    opened = {part: within(_open(files[part])) for part in PARTS if files[part]}
    if "disk" in opened and "format" not in desired and files["disk"] != "-":
        desired["format"] = _format(opened["disk"])
    check(kind, desired)
    answer = _made(session, kind, desired, options, resumable=bool(opened))
    if not options["dry_run"]:
        for part, stream in opened.items():
            answer = _upload(session, kind, answer, part, stream)
    finish(session, kind, answer, options)


def _made(session: Session, kind: Kind, desired: Json, options: Json, *, resumable: bool) -> Json:
    """Return the new image; one of that name that still has no good disk serves as well."""
    try:
        return post(session, kind, desired, options)
    except Failure as failure:
        if failure.code != "already-exists" or not resumable or options["dry_run"]:
            raise
        there = session.get(kind, options["name"], options["account"])
        state = (there["observed"] or {}).get("state", "awaiting-upload")
        other = [name for name, value in desired.items() if there["desired"].get(name) != value]
        if state not in ("awaiting-upload", "refused"):
            raise
        if other:
            failure.hint = f"the one there has another {other[0]}; delete it first, or take another name"
            raise
        return there


def _open(name: str) -> contextlib.AbstractContextManager[BinaryIO]:
    try:
        return contextlib.nullcontext(sys.stdin.buffer) if name == "-" else Path(name).open("rb")
    except OSError as error:
        raise usage(f"cannot read {name}: {error.strerror}") from None


def _format(disk: BinaryIO) -> str:
    """Return what the first bytes say; a VHD of fixed size has its header at the end."""
    from pileus.ovf.heads import HEAD_BYTES, head_of

    found = head_of(disk.read(HEAD_BYTES)).format
    disk.seek(-min(HEAD_BYTES // 2, os.fstat(disk.fileno()).st_size), os.SEEK_END)
    if found == "unknown":
        found = head_of(disk.read()).format
        found = found if found == "vhd" else "raw"
    disk.seek(0)
    return found


def _upload(session: Session, kind: Kind, image: Json, part: str, stream: BinaryIO) -> Json:
    size = None if stream is sys.stdin.buffer else os.fstat(stream.fileno()).st_size
    bar = Bar(f"uploading {part}", size)
    path = f"{root(kind)}/{segment(image['id'])}/{part}"
    try:
        sent = send(session.client, path, [("account", image["account"])], _chunks(stream, bar))
    except Failure as failure:
        account = f" --account {image['account']}" if image["account"] else ""
        failure.hint = (
            f"the image is there without its {part}: upload again with the same command once that is mended, "
            f"or `pileus delete image {image['name']}{account}`"
        )
        raise
    finally:
        bar.close()
    sys.stderr.write(f"{part}: sha256 {sent.sha256}\n")
    return (sent.answer.json() if sent.answer is not None else {}) or image


def _chunks(stream: BinaryIO, bar: Bar) -> Iterator[bytes]:
    while chunk := stream.read(CHUNK_BYTES):
        bar.add(len(chunk))
        yield chunk
